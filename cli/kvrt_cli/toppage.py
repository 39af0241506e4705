"""The page of ``kvrt top``: a table of tenants that keeps up, and keys for what `kvrt ctl` asks.

The ledgers are looked at, and tenants asked, on threads of their own: a process that was stopped
while it held a lock keeps nobody from the keyboard.
"""

import threading
import time
from collections.abc import Callable, Mapping
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import DataTable, Footer, Input, Static

from kvrt.errors import KvrtError
from kvrt.sharing.looking import Seen, ledger_of, shares
from kvrt.sharing.orders import Outcome, Verb, post
from kvrt.units import parse_bytes
from kvrt_cli.tenants import COLUMNS, Key, cells_of, key_of, rates_of, title_of, tokens_of

ANSWER_S = 60.0
"""As `kvrt ctl` waits."""

LEVEL = 2
"""To sleep: weights go as well."""


class Looked(Message):
    """What shares there are now."""

    def __init__(self, found: list[Seen]) -> None:
        super().__init__()
        self.found = found


class Said(Message):
    """Something for the line below the table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text


class TopPage(App[None]):
    """See the module.

    Args:
        every: seconds between two looks.
    """

    TITLE = "kvrt top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    DataTable { height: 1fr; }
    #size { display: none; }
    #size.asked { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("l", "size('limit')", "limit"),
        Binding("g", "size('guarantee')", "guarantee"),
        Binding("r", "ask('reclaim')", "reclaim"),
        Binding("s", "ask('sleep')", "sleep"),
        Binding("w", "ask('wake')", "wake"),
        Binding("escape", "leave", "leave", show=False),
        Binding("q", "quit", "quit"),
    ]

    def __init__(self, every: float) -> None:
        super().__init__()
        self._every = every
        self._seen: dict[str, tuple[Seen, Seen]] = {}
        """Of each line of the table: the share, and the tenant."""
        self._before: tuple[Mapping[Key, int], float] = {}, 0.0
        self._looking = threading.Lock()
        self._sized: tuple[Seen, Seen, Verb] | None = None
        """What a size is being typed for."""

    def compose(self) -> ComposeResult:
        yield Static(id="shares", markup=False)
        yield DataTable(cursor_type="row")
        yield Static(id="said", markup=False)
        yield Input(id="size")
        yield Footer()

    def on_mount(self) -> None:
        table = self._table
        table.add_column("share", key="share")
        for name in COLUMNS:
            table.add_column(Text(name, justify="right"), key=name)
        self._look()
        self.set_interval(self._every, self._look)

    # --- what is seen ------------------------------------------------------------------------

    @property
    def _table(self) -> "DataTable[Text]":
        return self.query_one(DataTable)

    def on_said(self, said: Said) -> None:
        self.query_one("#said", Static).update(said.text)

    def _look(self) -> None:
        """Unless the last look has not ended."""
        if self._looking.acquire(blocking=False):
            _on_its_own(self._looked)

    def _looked(self) -> None:
        try:
            self.post_message(Looked(shares()))
        except KvrtError as error:
            self.post_message(Said(_told(error)))
        finally:
            self._looking.release()

    def on_looked(self, looked: Looked) -> None:
        found = looked.found
        tokens, now = tokens_of(found), time.monotonic()
        before, then = self._before
        rates = rates_of(before, tokens, now - then)
        self._before = tokens, now
        titles = "\n".join(map(title_of, found))
        self.query_one("#shares", Static).update(
            titles or "nothing is shared: kvrt run --share NAME begins it"
        )
        lines = {
            "\n".join(map(str, key_of(share, tenant))): (share, tenant)
            for share in found
            for tenant in share["tenants"]
        }
        table = self._table
        for line in self._seen.keys() - lines.keys():
            table.remove_row(line)
        for line, (share, tenant) in lines.items():
            cells = cells_of(tenant, rates.get(key_of(share, tenant)))
            texts = [Text(f"{share['share']}.{share['device']}")]
            texts += [Text(cell, justify="right") for cell in cells]
            if line not in self._seen:
                table.add_row(*texts, key=line)
                continue
            for column, text in zip(("share", *COLUMNS), texts, strict=True):
                table.update_cell(line, column, text, update_width=True)
        self._seen = lines

    # --- what is asked -----------------------------------------------------------------------

    def _marked(self) -> tuple[Seen, Seen] | None:
        """The share and the tenant under the cursor; None: there is none."""
        table = self._table
        if not table.row_count:
            self.post_message(Said("there is nobody to ask"))
            return None
        line = table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value
        return self._seen.get(line or "")

    def action_size(self, verb: str) -> None:
        """A size is asked for first."""
        if (marked := self._marked()) is None:
            return
        self._sized = *marked, Verb[verb.upper()]
        box = self.query_one(Input)
        box.placeholder = f"{verb} of {marked[1]['tenant']}, such as 4GiB or 50%"
        box.value = ""
        box.add_class("asked")
        box.focus()

    def action_leave(self) -> None:
        """No size after all."""
        self._sized = None
        self.query_one(Input).remove_class("asked")
        self._table.focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        sized = self._sized
        self.action_leave()
        if sized is None:
            return
        try:
            size = parse_bytes(event.value, whole=sized[0]["size"])
        except KvrtError as error:
            self.post_message(Said(_told(error)))
            return
        _on_its_own(lambda: self._order(*sized, size))

    def action_ask(self, verb: str) -> None:
        if (marked := self._marked()) is not None:
            _on_its_own(lambda: self._order(*marked, Verb[verb.upper()], LEVEL))

    def _order(self, share: Seen, tenant: Seen, verb: Verb, value: int) -> None:
        """Ask, and say what came of it."""
        alike = [each for each in share["tenants"] if each["tenant"] == tenant["tenant"]]
        who = tenant["tenant"] if len(alike) == 1 else str(tenant["process"])
        asked = f"{verb.name.lower()} of {who}"
        self.post_message(Said(f"{asked} ..."))
        try:
            answer = post(ledger_of(share), who, verb, value, timeout=ANSWER_S)
        except KvrtError as error:
            said = f"{asked}: {_told(error)}"
        else:
            said = f"{asked}: {answer.outcome.name.lower()}, revision {answer.revision}"
            if answer.outcome is Outcome.REFUSED:
                said = f"{asked}: {answer.text}"
        self.post_message(Said(said))
        self._look()


def _on_its_own(job: Callable[[], None]) -> None:
    """Whoever leaves the page does not wait for it."""
    threading.Thread(target=job, daemon=True).start()


def _told(error: KvrtError) -> str:
    return f"{error}: {error.fix}" if error.fix else str(error)
