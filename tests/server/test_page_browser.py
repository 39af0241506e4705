"""The page: how it looks and works in a browser."""

import importlib
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.batches.inputs import line

from .conftest import Server, started, until
from .test_models import save_variant
from .test_page import ASK, basic, crowded, started_with_keys

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

UNNAMED = """[...document.querySelectorAll("button, input, textarea, canvas, table, progress, a")]
  .filter((each) => !(each.labels?.length || each.textContent.trim() || each.caption
                      || each.getAttribute("aria-label"))).length"""


def jsonl(lines: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, dict[str, str]]]:
    with started_with_keys(tmp_path_factory.mktemp("page")) as found:
        yield found


@pytest.fixture
def browser() -> Iterator[Any]:
    """A real one, where there is one."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    try:
        api = importlib.import_module("playwright.sync_api")
    except ImportError:
        pytest.skip("playwright is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(
    browser: Any, server: Server, key: str, part: str = "", scheme: str = "light"
) -> Iterator[Any]:
    """The page as a key sees it; all it asks is this server, and nothing on it fails."""
    context = browser.new_context(
        http_credentials={"username": "me", "password": key}, color_scheme=scheme,
        viewport={"width": 1240, "height": 900},
    )  # fmt: skip
    page = context.new_page()
    faults: list[str] = []
    asked: list[str] = []
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{server.url}/{part}")
    page.wait_for_selector("#state:text-is('ready')")
    yield page
    assert page.evaluate(UNNAMED) == 0, "a screen reader has a name for everything"
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert all(url.startswith(f"{server.url}/") for url in asked)
    assert not faults, faults
    context.close()


@pytest.mark.extra
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_conversation_in_a_real_browser_by_keyboard_alone(
    keyed: Any, browser: Any, scheme: str, tmp_path: Path
) -> None:
    """PICTURES=docs writes the picture of docs/serve.md."""
    server, keys = keyed
    pictures = Path(os.environ.get("PICTURES", tmp_path))
    with opened(browser, server, keys["admin"], scheme=scheme) as page:

        def holds(expression: str) -> None:
            until(lambda: page.evaluate(expression), 60)

        assert page.title() == "tiny - kvrt"

        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "say"
        page.locator("#max_tokens").evaluate("field => field.value = 80")
        page.keyboard.type("<b>Say</b> something.")
        page.keyboard.press("Enter")
        page.wait_for_selector("#said li.assistant small", timeout=60_000)
        assert page.locator("#said li.user span").inner_text() == "<b>Say</b> something."
        assert page.locator("#said b b").count() == 0, "what was said is text"
        assert page.locator("#said").get_attribute("aria-busy") == "false"
        assert "first token after" in page.locator("#said li.assistant small").inner_text()
        holds("document.querySelectorAll('#flights tr').length > 0")
        holds("document.querySelector('#facts dd').textContent === 'tiny'")
        holds("/[1-9][0-9]* cached/.test(document.querySelector('figcaption').textContent)")
        with ThreadPoolExecutor(8) as pool:
            long = {**ASK, "max_tokens": 800}
            for number in range(8):
                body = {**long, "prompt": [20 + number] * 180}
                key = keys["bob" if number % 3 else "alice"]
                pool.submit(server.post, "/v1/completions", body, headers=basic(key))
            holds(
                "document.querySelectorAll('#flights td:nth-child(4)')[7]?.textContent === 'runs'"
            )
            holds("/[1-9][0-9]* used/.test(document.querySelector('figcaption').textContent)")
            holds(
                "[...document.querySelectorAll('#owners li')].map((each) => each.textContent)"
                ".sort().join() === 'alice,bob'"
            )
            assert "alice" in page.locator("figcaption").first.inner_text()
            page.evaluate("window.scrollTo(0, 0)")
            page.screenshot(path=pictures / f"page-{scheme}.png")

        page.locator("#max_tokens").evaluate("field => field.value = 900")
        page.locator("#say").fill("Count.")
        page.keyboard.press("Enter")
        holds("document.querySelectorAll('#said li.assistant').length === 2")
        holds("document.querySelectorAll('#said li.assistant span')[1].textContent")
        page.keyboard.press("Escape")
        holds("!document.getElementById('send').disabled")
        until(lambda: json.loads(
            server.ask("GET", "/status", headers=basic(keys["admin"]))[2])["requests"] == []
        )  # fmt: skip


@pytest.mark.extra
def test_a_batch_is_begun_watched_cancelled_and_asked_again_in_a_real_browser(
    keyed: Any, browser: Any, tmp_path: Path
) -> None:
    """PICTURES=docs writes the picture of docs/serve.md."""
    server, keys = keyed
    pictures = Path(os.environ.get("PICTURES", tmp_path))
    lines = [line(f"line-{n}", prompt=f"def f{n}(", max_tokens=8, temperature=0) for n in range(60)]
    for number in (3, 20):
        lines[number]["body"]["temperature"] = 7
    for each in lines[30:]:
        each["body"].update(max_tokens=900, ignore_eos=True)
    (tmp_path / "requests.jsonl").write_bytes(jsonl(lines))
    (tmp_path / "odd.jsonl").write_bytes(b"no request\n")
    with opened(browser, server, keys["alice"]) as page:
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Now"
        page.keyboard.press("End")
        page.keyboard.press("Home")
        page.keyboard.press("ArrowRight")
        while page.evaluate("document.activeElement.textContent") != "Batches":
            page.keyboard.press("ArrowRight")
        assert page.url.endswith("/#batches")
        assert page.locator("#now").is_hidden()
        page.wait_for_selector("text=There are none yet.")

        page.locator("#file").set_input_files(tmp_path / "odd.jsonl")
        page.locator("#start").press("Enter")
        page.wait_for_selector("#batch-fault:has-text('no request')")
        page.locator("#file").set_input_files(tmp_path / "requests.jsonl")
        page.locator("#start").press("Enter")
        card = page.locator("#all-batches > li")
        told = "2 failed"
        page.wait_for_selector(f"#all-batches p:has-text('{told}')", timeout=60_000)
        assert card.locator("h3").inner_text() == "requests.jsonl"
        assert card.locator("[role=status]").inner_text() == "in progress"
        assert card.locator("progress").evaluate("bar => 0 < bar.value && bar.value < bar.max")
        assert card.get_by_text("Download output").is_hidden()
        card.locator("summary").press("Enter")
        page.wait_for_selector("#all-batches td:has-text('line-20')")
        reasons = card.locator("tbody tr").all_inner_texts()
        assert [each.split("\t")[:3] for each in reasons] == [
            ["4", "line-3", "400"], ["21", "line-20", "400"]
        ]  # fmt: skip
        assert all("temperature" in each for each in reasons)
        page.wait_for_selector("#all-batches p:has-text('tokens/s')")
        page.screenshot(path=pictures / "page-batches.png")

        card.get_by_text("Cancel").press("Enter")
        page.wait_for_selector("#all-batches [role=status]:has-text('cancelled')", timeout=60_000)
        page.wait_for_selector("#all-batches td:has-text('the batch was cancelled')")
        with page.expect_download() as download:
            card.get_by_text("Download output").press("Enter")
        output = download.value.path().read_bytes().splitlines()
        with page.expect_download() as download:
            card.get_by_text("Download errors").press("Enter")
        errors = download.value.path().read_bytes().splitlines()
        names = sorted(json.loads(each)["custom_id"] for each in output + errors)
        assert names == sorted(each["custom_id"] for each in lines)
        assert f"Failed lines: {len(errors)}" in card.locator("summary").inner_text()

        card.get_by_text("Retry failed lines").press("Enter")
        page.wait_for_selector("#all-batches [role=status]:has-text('completed')", timeout=120_000)
        page.wait_for_selector("#all-batches p:has-text('58 of 60 lines answered, 2 failed')")
        page.wait_for_selector("#all-batches summary:has-text('Failed lines: 2')")
        assert page.evaluate(UNNAMED) == 0, "a screen reader has a name for everything"
        page.reload()
        page.wait_for_selector("#all-batches p:has-text('58 of 60')")
    with opened(browser, server, keys["bob"], "#batches") as page:
        page.wait_for_selector("text=There are none yet.")


@pytest.mark.extra
def test_the_queue_is_shown_with_the_reason_in_a_real_browser(
    keyed: Any, browser: Any, tmp_path: Path
) -> None:
    server, keys = keyed
    pictures = Path(os.environ.get("PICTURES", tmp_path))
    with opened(browser, server, keys["admin"], "#queue") as page:
        page.wait_for_selector("#queue-lines:has-text('0 lines are asked')")
        with crowded(server, keys["alice"]):
            page.wait_for_selector("#queued td:has-text('no more may run at once')")
            cells = page.locator("#queued td").all_inner_texts()
            assert (cells[0], cells[2], cells[3]) == ("1", "alice", "0")
            page.screenshot(path=pictures / "page-queue.png")


@pytest.mark.extra
def test_each_key_sees_what_it_has_taken_in_a_real_browser(
    keyed: Any, browser: Any, tmp_path: Path
) -> None:
    server, keys = keyed
    for name in ("alice", "bob", "bob"):
        assert server.post("/v1/completions", ASK, headers=basic(keys[name]))[0] == 200

    def shown(page: Any) -> set[str]:
        return set(page.locator("#days td:nth-child(3)").all_inner_texts())

    with opened(browser, server, keys["bob"], "#usage") as page:
        page.wait_for_selector("#days td:has-text('bob')")
        page.wait_for_selector("#quotas li:has-text('daily tokens of the key bob')")
        assert page.locator("#quotas progress").evaluate("bar => 0 < bar.value")
        assert shown(page) == {"bob"}
        with page.expect_download() as download:
            page.locator("#csv").press("Enter")
        assert download.value.path().read_text().startswith("day,workspace,key,model,requests")
        page.locator("#since").fill("2100-01-01")
        until(lambda: shown(page) == set())
    with opened(browser, server, keys["admin"], "#usage") as page:
        until(lambda: {"alice", "bob"} <= shown(page))
        pictures = Path(os.environ.get("PICTURES", tmp_path))
        page.screenshot(path=pictures / "page-usage.png")


@pytest.mark.extra
def test_models_are_loaded_asked_and_unloaded_in_a_real_browser(
    browser: Any, tmp_path: Path
) -> None:
    """PICTURES=docs writes the picture of docs/several-models.md."""
    for name in ("small", "other"):
        save_variant(tmp_path / "models" / name, 2, 1.0)
    args = ("--models", str(tmp_path / "models"), "--memory-limit", "32MiB")
    args = (*args, "--chat-template", "plain")
    with (
        started(tmp_path, *args, model=str(tmp_path / "models" / "small")) as server,
        opened(browser, server, "", "#models") as page,
    ):

        def become(name: str, state: str) -> None:
            page.wait_for_selector(f"tr:has(th:text-is('{name}')) td:text-is('{state}')")

        def order(what: str, name: str) -> None:
            page.locator(f"button[aria-label='{what} {name}']").press("Enter")

        for name in ("small", "other"):
            until(lambda name=name: page.locator(f"th:text-is('{name}')").is_visible())
            if page.locator(f"button[aria-label='Load {name}']").is_visible():
                order("Load", name)
            become(name, "loaded")
        page.wait_for_selector("button[aria-label='Load other']", state="hidden")
        page.screenshot(path=Path(os.environ.get("PICTURES", tmp_path)) / "page-models.png")
        page.goto(f"{server.url}/#say")
        assert page.locator("#now").is_visible()
        page.locator("summary:text-is('Settings')").press("Enter")
        page.locator("#which").select_option("other")
        page.locator("#max_tokens").fill("8")
        page.locator("#say").fill("Say something.")
        page.locator("#say").press("Enter")
        page.wait_for_selector("#said li.assistant small")
        page.locator("#tab-models").press("Enter")
        order("Sleep", "other")
        become("other", "sleeping")
        for name in ("other", "small"):
            order("Unload", name)
            become(name, "unloaded")
        page.locator("#tab-now").press("Enter")
        page.wait_for_selector("#memory", state="hidden")


@pytest.mark.extra
def test_a_server_that_keeps_nothing_says_so_on_its_page(server: Server, browser: Any) -> None:
    page = browser.new_page()
    page.goto(f"{server.url}/#batches")
    page.wait_for_selector("#batches-told:has-text('--batches')")
    assert page.locator("#begin").is_hidden()
    page.goto(f"{server.url}/#models")
    page.wait_for_selector("#models-told:has-text('one model')")
    assert page.locator("#all-models button:visible").count() == 0
    page.goto(f"{server.url}/#models")
    page.wait_for_selector("#models-told:has-text('one model')")
    assert page.locator("#all-models button:visible").count() == 0
    page.goto(f"{server.url}/#usage")
    page.wait_for_selector("#usage-told:has-text('--usage')")
    assert page.locator("#usage-kept").is_hidden()


@pytest.mark.extra
def test_markup_that_gets_onto_the_page_is_not_run(server: Server, browser: Any) -> None:
    page = browser.new_page()
    page.goto(server.url)
    page.evaluate(
        """() => { const box = document.createElement("div");
             box.innerHTML = "<img src=x onerror='window.run = 1'>";
             const script = document.createElement("script");
             script.textContent = "window.run = 1";
             document.body.append(box, script); }"""
    )
    page.wait_for_timeout(300)
    assert page.evaluate("window.run") is None
    with pytest.raises(Exception, match="Failed to fetch"):
        page.evaluate("fetch('http://127.0.0.1:9/')")
