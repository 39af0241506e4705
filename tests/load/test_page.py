"""The page of a result, in a real browser."""

import re
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from kvrt.bench.page import page
from kvrt.bench.words import Held

from .runs import run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SHOWN = """[...document.querySelectorAll("svg")].map((svg) => ({
  name: svg.getAttribute("aria-label"),
  marks: svg.querySelectorAll("rect, circle, polyline").length,
  seen: [...svg.querySelectorAll("rect, circle, polyline")].every((mark) => {
    const box = mark.getBoundingClientRect(), whole = svg.getBoundingClientRect();
    const style = getComputedStyle(mark);
    const ink = mark.tagName === "polyline" ? style.stroke : style.fill;
    return box.left >= whole.left - 1 && box.right <= whole.right + 1 && box.top >= whole.top - 1
      && box.bottom <= whole.bottom + 1 && whole.width > 100 && ink !== "none"
      && ink !== "rgb(0, 0, 0)";
  }),
}))"""


@pytest.mark.extra
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_real_browser_shows_all_plots_and_asks_for_nothing(tmp_path: Path, scheme: str) -> None:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    api: Any = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    held = [Held(0.1 * n, n << 20, 1 << 20, n + 4 << 20, 64 << 20) for n in range(20)]
    path = tmp_path / "run.html"
    path.write_text(page(run(1, held=held, per_hour=2.0, name="<b>&run</b>")))
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(color_scheme=scheme, viewport={"width": 1240, "height": 900})
        faults: list[str] = []
        asked: list[str] = []
        opened.on("console", lambda said: faults.append(said.text))
        opened.on("request", lambda request: asked.append(request.url))
        opened.goto(path.as_uri())
        plots = {each["name"]: each for each in opened.evaluate(SHOWN)}
        assert asked == [path.as_uri()]
        assert not faults, faults
        assert opened.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert opened.inner_text("h1").startswith("<b>&run</b>")
        assert "0.1 * 3200" in opened.inner_text("body")  # a formula with its numbers
        browser.close()
    names = {f"{name}, how often" for name in ("TTFT", "TPOT", "ITL", "E2E")}
    names |= {"TTFT", "E2E", "Pieces of answers per second", "Requests under way", "KV memory"}
    assert plots.keys() == names
    for name, each in plots.items():
        assert each["seen"], name
        assert each["marks"] >= 1, name
    assert plots["TTFT"]["marks"] == 200
    assert plots["KV memory"]["marks"] == 3


def test_a_run_without_anything_is_a_page_that_says_so() -> None:
    text = page(run(1, records=[], held=[], held_why="nobody <asked>", seconds=0.0))
    assert "no values" in text
    assert "nobody &lt;asked&gt;" in text
    assert "there is no counter" in text


def test_whatever_is_on_the_page_has_its_style_in_light_and_in_dark() -> None:
    text = page(run(1, held=[Held(0.1, 1 << 20, 1 << 20, 3 << 20, 8 << 20)], per_hour=2.0))
    style = text[text.index("<style>") : text.index("</style>")]
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    dark = dark[: dark.index("}")]
    used = set(re.findall(r"var\(--([\w-]+)\)", text))
    assert used == set(re.findall(r"--([\w-]+):", light))
    assert used - set(re.findall(r"--([\w-]+):", dark)) == {"grid"}, "it is half transparent"
    classes = {name for names in re.findall(r'class="([^"]*)"', text) for name in names.split()}
    assert classes <= set(re.findall(r"\.([a-z][\w-]*)", style))
    ElementTree.fromstring(text[text.index("<body>") : text.index("</html>")])
