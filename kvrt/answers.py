"""What the logits of a step become: forks, new tokens, verified drafts, beams, ended sequences."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from kvrt import beaming
from kvrt.errors import CapacityError, KvrtError
from kvrt.live import Live
from kvrt.outputs import FinishReason, TokenLogprobs
from kvrt.request import Request
from kvrt.sampler import Choice, Chosen, likeliest, sample, token_logprobs
from kvrt.sched.batching import Row
from kvrt.sched.beams import BeamSearch
from kvrt.sched.drafting import Speculation
from kvrt.sched.seq import Seq
from kvrt.sched.speculation import Drafts

UNKNOWN = -1
"""Stands for a token that the step in flight will yield."""


@dataclass(slots=True)
class Drawn:
    """What was chosen from a step's logits.

    Args:
        tokens: for sequences that sample: one token each, and one behind each draft.
        offers: for beams: their likeliest continuations.
        spreads: sequences that stand for several beams, which part now.
    """

    tokens: list[tuple[Seq, Drafts, list[Chosen]]] = field(default_factory=list)
    offers: list[tuple[Seq, list[TokenLogprobs]]] = field(default_factory=list)
    spreads: list[Seq] = field(default_factory=list)


class Answers:
    """Belongs to the engine's thread.

    Args:
        live: the sequences that run.
        speculation: told what became of drafts.
        eos_ids: the model's end tokens.
    """

    def __init__(self, live: Live, speculation: Speculation, eos_ids: frozenset[int]) -> None:
        self._live = live
        self._memory = live.memory
        self._speculation = speculation
        self._eos_ids = eos_ids

    def begin(self, request: Request, seq: Seq) -> None:
        """A request has come, with its first sequence."""
        params = request.params
        request.ends = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            request.ends |= self._eos_ids
        if params.beam_width > 1:
            beaming.begin(request, seq)
        else:
            request.open_output(seq.id)

    def scored(self, row: Row) -> range:
        """Positions in the row whose logits give the log-probability of a prompt token."""
        request = self._live.request(row.seq)
        if request.params.prompt_logprobs is None:
            return range(0)
        first = max(row.start, len(request.prompt_logprobs))
        last = min(row.start + row.count, len(request.prompt) - 1)
        return range(first, last)

    def branches(self, row: Row) -> bool:
        """Whether the row's sequence may become several, or end for another's sake."""
        return row.samples and (row.seq.width > 1 or self._live.request(row.seq).beams is not None)

    # --- before the step has ended -----------------------------------------------------------

    def draw(self, rows: Sequence[Row], scored: Sequence[range], logits: torch.Tensor) -> Drawn:
        """Choose from logits: of each row at scored positions, at the sample, and at drafts."""
        drawn = Drawn()
        at = 0
        picks: list[int] = []
        choices: list[Choice] = []
        receivers: list[tuple[Seq, Drafts]] = []
        beams: list[tuple[Seq, BeamSearch, int]] = []
        for row, positions in zip(rows, scored, strict=True):
            seq, request = row.seq, self._live.request(row.seq)
            for position in positions:
                token = request.prompt[position + 1]
                top = request.params.prompt_logprobs or 0
                request.prompt_logprobs.append(token_logprobs(logits[at], token, top))
                at += 1
            if not row.samples:
                continue
            if request.beams is not None:
                if request.beams.gathered:
                    drawn.spreads.append(seq)
                else:
                    beams.append((seq, request.beams.search, at))
                at += 1
                continue
            for heir in (seq, *self._fork(seq, request)):
                picks.append(at)
                choices.append(self._choice(heir, request))
                receivers.append((heir, row.drafts))
            at += 1
            for node in range(len(row.drafts)):
                picks.append(at)
                choices.append(self._choice(seq, request, row.drafts.line(node)))
                at += 1
        if beams:
            drawn.offers = self._offers(beams, logits)
        if picks != list(range(at)):
            logits = logits[torch.tensor(picks, dtype=torch.int64)]
        chosen = iter(sample(logits, choices))
        for seq, drafts in receivers:
            drawn.tokens.append((seq, drafts, list(itertools.islice(chosen, 1 + len(drafts)))))
        return drawn

    def _fork(self, seq: Seq, request: Request) -> list[Seq]:
        """The siblings that share `seq`'s pages from the end of its prompt on, if it has any."""
        heirs = [self._live.fork(seq) for _ in range(1, seq.width)]
        for heir in heirs:
            request.open_output(heir.id)
        seq.width = 1
        return heirs

    def _choice(self, seq: Seq, request: Request, drafted: Sequence[int] = ()) -> Choice:
        """How to draw what follows the sequence and, if it comes true, a line of drafts."""
        output = request.outputs[seq.id]
        seed = (request.seed + output.index) % 2**64
        said = [*output.token_ids, *drafted] if drafted else output.token_ids
        return Choice(request.params, seed, request.prompt, said)

    def _offers(
        self, beams: Sequence[tuple[Seq, BeamSearch, int]], logits: torch.Tensor
    ) -> list[tuple[Seq, list[TokenLogprobs]]]:
        """Of beams, by the row of logits that each one has."""
        seqs, searches, places = zip(*beams, strict=True)
        rows = logits[torch.tensor(places, device=logits.device)]
        tops = [self._live.request(seq).params.logprobs or 0 for seq in seqs]
        offers = likeliest(rows, [search.choices for search in searches], tops)
        return list(zip(seqs, offers, strict=True))

    # --- after it ----------------------------------------------------------------------------

    def take(self, drawn: Drawn, step: int) -> None:
        """Append what was drawn in step number `step`, end what has ended, deliver it."""
        for seq, drafts, chosen in drawn.tokens:
            self._verify(seq, drafts, chosen, step)
        for seq in drawn.spreads:
            beaming.spread(self._live, seq)
        for seq, offered in drawn.offers:
            request = self._live.request(seq)
            if not beaming.offer(self._live, seq, offered, step):
                self._end_beams(request, "length", step)

    def _verify(self, seq: Seq, drafts: Drafts, chosen: Sequence[Chosen], step: int) -> None:
        """Take the token drawn behind the sequence, and those behind drafts that came true."""
        request, start = self._live.request(seq), seq.computed
        path = drafts.path([choice.token_id for choice in chosen]) if drafts else []
        request.drafted_tokens += len(drafts)
        self._speculation.drafted += len(drafts)
        for node in (-1, *path):
            if node >= 0:
                seq.tokens.append(UNKNOWN)
                request.accepted_tokens += 1
                self._speculation.accepted += 1
            self._take(seq, chosen[1 + node], step)
            if seq not in self._live:
                return
        if drafts:
            self._settle(seq, start, path, step)
        if seq.drafter is not None:
            seq.drafter.observe(seq.tokens)

    def _settle(self, seq: Seq, start: int, path: Sequence[int], step: int) -> None:
        """Of the drafts' keys and values, from slot `start` on, only those of `path` stay."""
        picked = [start + node for node in path]
        table = self._memory.cache.table
        self._memory.commit(table.pick(seq.id, start, picked, after=step))
        seq.computed += len(path)
        self._memory.computed(seq)

    def _take(self, seq: Seq, chosen: Chosen, step: int) -> None:
        """Append a sampled token; end the sequence if it was its last."""
        request = self._live.request(seq)
        if request.first_token is None:
            request.first_token = time.perf_counter()
        seq.tokens[-1] = chosen.token_id
        ends: FinishReason | None = None
        end_token = chosen.token_id in request.ends
        if end_token:
            ends = "stop"
        elif len(seq.tokens) >= seq.max_len:
            ends = "length"
        delta = request.outputs[seq.id].push(chosen, ends=ends, visible=not end_token)
        request.deliver(delta)
        if delta.finish_reason is not None:
            self._drop(seq, step)

    # --- ends --------------------------------------------------------------------------------

    def end(self, seq: Seq, reason: FinishReason, step: int) -> None:
        """End a sequence from outside, without a further token; beams end together."""
        request = self._live.request(seq)
        if request.beams is not None:
            self._end_beams(request, reason, step)
        else:
            request.deliver(request.outputs[seq.id].finish(reason))
            self._drop(seq, step)

    def fail(self, error: KvrtError) -> None:
        """End every request with `error`; pages stay as they are."""
        for request in self._live.requests:
            for output in request.outputs.values():
                if output.finish_reason is None:
                    request.deliver(output.finish("error"))
            request.deliver(request.result(error))
        self._live.clear()

    def _end_beams(self, request: Request, reason: FinishReason, step: int) -> None:
        beaming.end(self._live, request, reason, step)
        self._finish(request)

    def _drop(self, seq: Seq, step: int) -> None:
        """Free a finished sequence's pages; with its last sequence, the request is answered."""
        request = self._live.request(seq)
        self._live.drop(seq, step)
        if request.finished:
            self._finish(request)

    def _finish(self, request: Request) -> None:
        error = None
        if any(o.finish_reason == "capacity" for o in request.outputs.values()):
            error = CapacityError("the memory limit leaves no room to go on, even alone")
        request.deliver(request.result(error))
