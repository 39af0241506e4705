"""What is left of a server that is killed: nothing, once the next one has started."""

from pathlib import Path

import psutil
import pytest

from .conftest import PROMPT, started


@pytest.mark.promise("P9")
def test_no_process_is_left_and_its_files_go_at_the_next_start(tmp_path: Path) -> None:
    share = tmp_path / "share"
    env = {"KVRT_SHARE_DIR": str(share), "XDG_RUNTIME_DIR": str(tmp_path)}
    with started(tmp_path, "two=tiny", "--memory-limit", "64MiB", env=env) as first:
        asked = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4}
        form = {"type": "json_object"}  # which is compiled in a process of its own
        status, answer = first.post(
            "/v1/chat/completions", {"model": "two", "response_format": form, **asked}
        )
        assert status == 200, answer
        children = psutil.Process(first.process.pid).children(recursive=True)
        assert children, "else this shows nothing"
        left = {path.name for path in share.iterdir()} - {".bells"}
        assert left
        first.process.kill()
        _, alive = psutil.wait_procs(children, timeout=2)
        assert not alive
    with started(tmp_path, "two=tiny", "--memory-limit", "64MiB", env=env):
        assert not left & {path.name for path in share.iterdir()}
