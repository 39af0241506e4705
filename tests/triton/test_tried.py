"""`ci/kernels` tries what has changed."""

from pathlib import Path

import pytest

from tests.triton import tried


def test_what_has_been_tried_is_tried_again_once_anything_of_it_is_different(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "kernels.md"
    page.write_text(f"before {tried.TRIED.format('')} after")
    assert not tried.main(page, now=False)
    assert tried.main(page, now=True)
    assert tried.main(page, now=False)
    kernel = tmp_path / "kernels/kvrt_kernels/triton/decode.py"
    kernel.parent.mkdir(parents=True)
    for name in ("ci/kernels", "ci/constraints.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((tried.ROOT / name).read_bytes())
    monkeypatch.setattr(tried, "ROOT", tmp_path)
    seen = set()
    for source in ("", "a kernel", "another"):
        kernel.write_text(source)
        assert not tried.main(page, now=False)
        seen.add(tried.digest())
    assert len(seen) == 3


def test_kernels_the_kit_and_what_runs_them_decide_about_it_and_mutants_do_not() -> None:
    names = {str(path.relative_to(tried.ROOT)) for path in tried.decides()}
    assert names >= {
        "kernels/kvrt_kernels/triton/decode.py", "kernels/kvrt_kernels/gpu.py",
        "kvrt/testing/suite/test_attention.py", "kvrt/testing/paged.py", "kvrt/spi/layout.py",
        "ci/kernels",
    }  # fmt: skip
    assert not any("mutants" in name for name in names)


def test_the_page_on_kernels_has_its_place() -> None:
    text = (tried.ROOT / "docs/kernels.md").read_text()
    assert text.count(tried.TRIED.partition("{")[0]) == 1
