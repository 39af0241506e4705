"""The unit of scheduling: one stream of tokens with its own row in the page table."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from kvrt.drafting.drafter import Drafter
from kvrt.kv.tiers.media import Medium, least, uncut
from kvrt.kv.tiers.names import PageName

Rank = tuple[int, int]
"""Order of service, smallest first."""


@dataclass(slots=True, eq=False)
class Seq:
    """A prompt and what was generated after it. The scheduler reads it; the engine changes it.

        tokens    |<------ prompt ------>|<- generated ->|
        in pages  |<---- computed ---->|<--- pending --->|

    A running sequence in decode has one pending token: the one sampled last. A preempted one has
    lost its pages, so that all its tokens are pending again, generated ones included.

    Args:
        id: its key in the page table.
        tokens: token ids, prompt first.
        prompt_len: how many of them are the prompt.
        max_len: it ends when it has so many tokens.
        priority: smaller is served first (under the priority policy).
        arrival: a number that grows with each submission.
        width: so many sequences it becomes when its prompt is computed (parallel sampling).
        tenant: whose it is; tenants take turns where memory is short.
        root: what the names of its pages begin with; see `kvrt.kv.tiers.names`.
        matches: it may begin with pages that were computed before.
        shares: others may use its pages, also after it has ended.
        names: of its full pages, as far as anyone has asked.
        named: how many of its first pages can be found by their names.
        last_named: the prefix index's entry of the last of them.
        drafter: guesses at its next tokens, if it wants that.
        guesses: so many tokens a small model may draft for it in a step.
        drafted: how many of its first tokens that model has computed.
        together: sequences with the same number lose their pages together; None: it is alone.
        adapter: the number of what is added to the model for it; 0: nothing.
        media: what stands in its prompt in place of tokens' own embeddings.
        apart: it ran out of pages beside no other, and runs beside none from then on.
        needs: chunks that there were too few of for it alone: it waits for so many, or for all that
            others may give back.
    """

    id: int
    tokens: list[int]
    prompt_len: int
    max_len: int
    priority: int = 0
    arrival: int = 0
    width: int = 1
    computed: int = 0
    preemptions: int = 0
    waiting_since: int = 0
    rank: Rank = field(default=(0, 0))
    tenant: str = ""
    root: bytes = b""
    matches: bool = True
    shares: bool = True
    names: list[PageName] = field(default_factory=list)
    named: int = 0
    last_named: object = None
    drafter: Drafter | None = None
    guesses: int = 0
    drafted: int = 0
    together: int | None = None
    adapter: int = 0
    media: Sequence[Medium] = ()
    apart: bool = False
    needs: int = 0

    def uncut(self, start: int, count: int) -> int:
        """See `kvrt.kv.tiers.media.uncut`."""
        return uncut(self.media, start, count) if self.media else count

    def least(self, start: int) -> int:
        """See `kvrt.kv.tiers.media.least`."""
        return least(self.media, start)

    @property
    def pending(self) -> int:
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_len
