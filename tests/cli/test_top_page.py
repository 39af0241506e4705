"""The page of ``kvrt top``: real runtimes on a share, and keys that are pressed."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from kvrt_cli.tenants import COLUMNS
from kvrt_cli.toppage import TopPage
from textual.pilot import Pilot
from textual.widgets import DataTable, Input, Static

from kvrt import Runtime, SamplingParams, Share

SHARE = Share(name="lab", size="64MiB")
LONG = SamplingParams(max_tokens=400, ignore_eos=True)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVRT_SHARE_DIR", str(tmp_path / "shares"))


def play(act: "Callable[[TopPage, Pilot[None]], Awaitable[None]]") -> None:
    """On a page of a terminal that is wide enough."""

    async def run() -> None:
        page = TopPage(0.1)
        async with page.run_test(size=(160, 24)) as pilot:
            await act(page, pilot)

    asyncio.run(run())


async def until(pilot: "Pilot[None]", true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        await pilot.pause(0.02)


def text(page: TopPage, name: str) -> str:
    return str(page.query_one(f"#{name}", Static).content)


def lines(page: TopPage) -> list[dict[str, str]]:
    table = page.query_one(DataTable)
    rows = [table.get_row_at(number) for number in range(table.row_count)]
    return [dict(zip(("share", *COLUMNS), map(str, row), strict=True)) for row in rows]


def test_the_page_keeps_up_with_tenants_that_come_work_and_go() -> None:
    async def act(page: TopPage, pilot: "Pilot[None]") -> None:
        await until(pilot, lambda: "nothing is shared" in text(page, "shares"))
        with Runtime("tiny", keep_warm=0, share=SHARE) as runtime:
            await until(pilot, lambda: len(lines(page)) == 1)
            assert "lab on cpu0" in text(page, "shares")
            (line,) = lines(page)
            assert (line["share"], line["tenant"], line["weight"]) == ("lab.cpu0", "tiny", "1")
            with runtime.stream([1, 2, 3], LONG):
                await until(pilot, lambda: lines(page)[0]["tokens/s"] not in ("-", "0"))
        await until(pilot, lambda: not lines(page))

    play(act)


def test_keys_ask_the_tenant_that_is_marked() -> None:
    async def act(page: TopPage, pilot: "Pilot[None]") -> None:
        with Runtime("tiny", keep_warm=0, share=SHARE) as runtime:
            await until(pilot, lambda: len(lines(page)) == 1)
            await pilot.press("s")
            await until(pilot, lambda: text(page, "said") == "sleep of tiny: applied, revision 1")
            assert runtime.asleep == 2
            await pilot.press("w")
            await until(pilot, lambda: "wake of tiny: applied" in text(page, "said"))
            assert runtime.asleep == 0
            await pilot.press("r")
            await until(pilot, lambda: "reclaim of tiny: applied" in text(page, "said"))

    play(act)


def test_a_size_is_typed_for_a_limit_and_a_bad_one_is_refused() -> None:
    async def act(page: TopPage, pilot: "Pilot[None]") -> None:
        with Runtime("tiny", keep_warm=0, share=SHARE) as runtime:
            await until(pilot, lambda: len(lines(page)) == 1)
            before = runtime.stats().cache.asked_bytes
            await pilot.press("l", *"50", "escape")
            assert not page.query_one(Input).display
            for keys, said in (
                ("l", "'much' is not a size"),
                ("l", "limit of tiny: a memory limit of 1 MiB is too small"),
                ("g", "guarantee of tiny: applied"),
            ):
                size = {"'much' is not a size": "much"}.get(said, "1MiB")
                await pilot.press(keys, *size, "enter")
                await until(pilot, lambda said=said: said in text(page, "said"))  # type: ignore[misc]
            assert runtime.stats().cache.asked_bytes == before
            await pilot.press("l", *"50%", "enter")
            await until(pilot, lambda: "limit of tiny: applied" in text(page, "said"))
            assert runtime.stats().cache.asked_bytes == (32 << 20) - runtime.stats().weight_bytes
            await until(pilot, lambda: lines(page)[0]["guaranteed"] == "1 MiB")

    play(act)


def test_where_nobody_shares_a_key_asks_nobody() -> None:
    async def act(page: TopPage, pilot: "Pilot[None]") -> None:
        await until(pilot, lambda: bool(text(page, "shares")))
        await pilot.press("r")
        await until(pilot, lambda: "nobody to ask" in text(page, "said"))
        await pilot.press("q")

    play(act)
