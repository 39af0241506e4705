"""What the logits of a step become: forks, new tokens, verified drafts, beams, ended sequences."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ParamSpec

import torch

from kvrt.drafting.drafts import Drafts
from kvrt.engine import beaming
from kvrt.engine.live import Live
from kvrt.engine.request import Request
from kvrt.engine.sampler import Choice, Chosen, Scores
from kvrt.engine.spans import Spans
from kvrt.errors import CapacityError, DeviceError, IntegrityError, KvrtError, RequestError
from kvrt.kv.seq import Seq
from kvrt.outputs import Delta, FinishReason, TokenLogprobs
from kvrt.sched.plan import Row
from kvrt.sched.speculation import Speculation

log = logging.getLogger(__name__)
P = ParamSpec("P")

_NOBODYS = (KeyboardInterrupt, SystemExit, GeneratorExit)
"""What is no fault of any request."""

UNKNOWN = -1
"""Stands for a token that the step in flight will yield."""


@dataclass(slots=True)
class Drawn:
    """What was chosen from a step's logits.

    Args:
        tokens: for sequences that sample: how many drafts they had, which of them came true, and
            the token that follows the last one and each of those.
        beams: beams that go on, and the row of logits of each.
        offers: their likeliest continuations.
        spreads: sequences that stand for several beams, which part now.
        scored: sequences whose prompt has its log-probabilities, and that want no more.
    """

    tokens: list[tuple[Seq, int, list[int], list[Chosen]]] = field(default_factory=list)
    beams: list[tuple[Seq, int]] = field(default_factory=list)
    offers: list[tuple[Seq, list[TokenLogprobs]]] = field(default_factory=list)
    spreads: list[Seq] = field(default_factory=list)
    scored: list[Seq] = field(default_factory=list)


class Answers:
    """Belongs to the engine's thread.

    What is done for one request is done behind `_alone`: if it fails, that request ends with its
    error when the step's answers are taken, and all others go on.

    Args:
        live: the sequences that run.
        speculation: told what became of drafts.
        eos_ids: the model's end tokens.
        spans: told while text is made of tokens.
    """

    def __init__(
        self, live: Live, speculation: Speculation, eos_ids: frozenset[int], spans: Spans
    ) -> None:
        self._live = live
        self._memory = live.memory
        self._speculation = speculation
        self._eos_ids = eos_ids
        self._spans = spans
        self._failed: dict[Request, KvrtError] = {}

    def begin(self, request: Request, seq: Seq, step: int) -> None:
        """A request has come, with its first sequence."""
        self._alone(request, self._begin, request, seq)
        self._end_failed(step)

    def _begin(self, request: Request, seq: Seq) -> None:
        params = request.params
        request.ends = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            request.ends |= self._eos_ids
        if params.beam_width > 1:
            beaming.begin(request, seq)
        else:
            request.open_output(seq.id)
            if request.said:
                self._say_again(request, seq)

    def _say_again(self, request: Request, seq: Seq) -> None:
        """What was said elsewhere, as one piece: with it, all that what follows depends on is as it
        was there."""
        output, said = request.outputs[seq.id], request.said
        text = ""
        for token in said:
            delta = output.push(Chosen(token), ends=None, visible=True)
            text += delta.text
            if token in request.ends or delta.finish_reason is not None:
                raise RequestError("said: the answer has ended there already", param="said")
        if output.guide is not None and output.guide.complete(said):
            raise RequestError("said: the answer has ended there already", param="said")
        request.deliver(Delta(output.index, text, said, again=True))

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
        drawn, scores = Drawn(), Scores(logits)
        at = 0
        for row, positions in zip(rows, scored, strict=True):
            request = self._live.request(row.seq)
            self._alone(request, self._read, request, row, positions, scores, at, drawn)
            at += len(positions) + (1 + len(row.drafts) if row.samples else 0)
        if drawn.beams:
            drawn.offers = self._offers(drawn.beams, scores)
        return drawn

    def _read(
        self, request: Request, row: Row, positions: range, scores: Scores, at: int, drawn: Drawn
    ) -> None:
        """What the logits of one row say, which begin at `at`."""
        for position in positions:
            token, top = request.prompt[position + 1], request.params.prompt_logprobs or 0
            request.prompt_logprobs.append(scores.logprobs(at, token, top))
            at += 1
        seq, drafts = row.seq, row.drafts
        if not row.samples:
            return
        if request.params.scores_only:
            drawn.scored.append(seq)
            return
        if request.beams is not None:
            if request.beams.gathered:
                drawn.spreads.append(seq)
            else:
                scores.check(at)
                drawn.beams.append((seq, at))
            return
        for heir in (seq, *self._fork(seq, request)):
            path, chosen = self._sample(request, heir, drafts, scores, at)
            drawn.tokens.append((heir, len(drafts), path, chosen))

    def _sample(
        self, request: Request, seq: Seq, drafts: Drafts, scores: Scores, at: int
    ) -> tuple[list[int], list[Chosen]]:
        """The drafts that came true, and the tokens behind the sequence and behind each of them;
        row `at` of the scores is the sequence's, and those of its drafts follow."""
        chosen: list[Chosen] = []

        def follows(node: int) -> int:
            choice = self._choice(request, seq, drafts.line(node))
            if choice is None:
                return UNKNOWN
            chosen.append(scores.choose(at + 1 + node, choice))
            return chosen[-1].token_id

        return drafts.path(follows), chosen

    def guess(self, seq: Seq, drafted: Sequence[int], scores: Scores, at: int) -> int | None:
        """What would be drawn behind a line of drafts if row `at` of the scores were the
        model's; None: nothing is."""
        request = self._live.request(seq)
        if seq.id not in request.outputs:
            return None
        try:
            choice = self._choice(request, seq, drafted)
            return None if choice is None else scores.token(at, choice)
        except KvrtError:  # it says so where it is verified
            return None

    def ends(self, seq: Seq) -> frozenset[int]:
        """The tokens that end a sequence."""
        return self._live.request(seq).ends

    def _fork(self, seq: Seq, request: Request) -> list[Seq]:
        """The siblings that share `seq`'s pages from the end of its prompt on, if it has any."""
        heirs = [self._live.fork(seq) for _ in range(1, seq.width)]
        for heir in heirs:
            request.open_output(heir.id)
        seq.width = 1
        return heirs

    def _choice(self, request: Request, seq: Seq, drafted: Sequence[int]) -> Choice | None:
        """How to draw what follows the sequence and, if it comes true, a line of drafts; None:
        nothing does."""
        output = request.outputs[seq.id]
        seed = (request.seed + output.index) % 2**64
        said = [*output.token_ids, *drafted] if drafted else output.token_ids
        allowed = None
        if output.guide is not None:
            if output.guide.complete(said):
                return None
            allowed = output.guide.allowed(said)
        return Choice(
            request.params, seed, request.prompt, said, request.ends, request.bad_words, allowed
        )

    def _offers(
        self, beams: Sequence[tuple[Seq, int]], scores: Scores
    ) -> list[tuple[Seq, list[TokenLogprobs]]]:
        """Of beams, by the row of logits that each one has."""
        seqs, places = zip(*beams, strict=True)
        requests = [self._live.request(seq) for seq in seqs]
        counts = [r.beams.search.choices for r in requests if r.beams is not None]
        tops = [request.params.logprobs or 0 for request in requests]
        masks = [
            None if r.guide is None else r.guide.allowed(seq.tokens[seq.prompt_len :])
            for r, seq in zip(requests, seqs, strict=True)
        ]
        return list(zip(seqs, scores.likeliest(places, counts, tops, masks), strict=True))

    # --- after it ----------------------------------------------------------------------------

    def take(self, drawn: Drawn, step: int) -> None:
        """Append what was drawn in step number `step`, end what has ended, deliver it."""
        for seq, drafted, path, chosen in drawn.tokens:
            request = self._live.request(seq)
            self._alone(request, self._verify, request, seq, drafted, path, chosen, step)
        for seq in drawn.scored:
            request = self._live.request(seq)
            self._alone(request, self._end, request, seq, "length", step)
        for seq in drawn.spreads:
            self._alone(self._live.request(seq), beaming.spread, self._live, seq)
        for seq, offered in drawn.offers:
            request = self._live.request(seq)
            self._alone(request, self._offer, request, seq, offered, step)
        self._end_failed(step)

    def _verify(
        self,
        request: Request,
        seq: Seq,
        drafted: int,
        path: Sequence[int],
        chosen: Sequence[Chosen],
        step: int,
    ) -> None:
        """Take the token drawn behind the sequence, and those behind drafts that came true."""
        start = seq.computed
        request.drafted_tokens += drafted
        self._speculation.verified(seq, drafted, len(path))
        for place, choice in enumerate(chosen):
            if place:
                seq.tokens.append(UNKNOWN)
                request.accepted_tokens += 1
                self._speculation.accepted += 1
            self._take(request, seq, choice, step)
            if seq not in self._live:
                return
        if drafted:
            self._settle(seq, start, path, step)
        if seq.drafter is not None:
            output = request.outputs[seq.id]
            guide = output.guide
            seq.drafter.observe(seq.tokens, guide.forced(output.token_ids) if guide else ())

    def _offer(self, request: Request, seq: Seq, offered: list[TokenLogprobs], step: int) -> None:
        if not beaming.offer(self._live, seq, offered, step):
            self._end_beams(request, "length", step)

    def _settle(self, seq: Seq, start: int, path: Sequence[int], step: int) -> None:
        """Of the drafts' keys and values, from slot `start` on, only those of `path` stay."""
        picked = [start + node for node in path]
        table = self._memory.cache.table
        self._memory.commit(table.pick(seq.id, start, picked, after=step))
        seq.computed += len(path)
        self._memory.computed([seq])

    def _take(self, request: Request, seq: Seq, chosen: Chosen, step: int) -> None:
        """Append a sampled token; end the sequence if it was its last."""
        if request.first_token is None:
            request.first_token = time.perf_counter()
        seq.tokens[-1] = chosen.token_id
        output = request.outputs[seq.id]
        ends: FinishReason | None = None
        end_token = chosen.token_id in request.ends
        whole = output.guide is not None and output.guide.complete(
            [*output.token_ids, chosen.token_id]
        )
        if end_token or whole:
            ends = "stop"
        elif len(seq.tokens) >= seq.max_len:
            ends = "length"
        self._spans.enter("detokenise")
        delta = output.push(chosen, ends=ends, visible=not end_token)
        self._spans.leave()
        request.deliver(delta)
        if delta.finish_reason is not None:
            self._drop(request, seq, step)

    # --- ends --------------------------------------------------------------------------------

    def end(self, seq: Seq, reason: FinishReason, step: int) -> None:
        """End a sequence from outside, without a further token; beams end together."""
        request = self._live.request(seq)
        self._alone(request, self._end, request, seq, reason, step)
        self._end_failed(step)

    def _end(self, request: Request, seq: Seq, reason: FinishReason, step: int) -> None:
        if request.beams is not None:
            self._end_beams(request, reason, step)
        else:
            request.deliver(request.outputs[seq.id].finish(reason))
            self._drop(request, seq, step)

    def fail_rows(self, rows: Sequence[Row], error: KvrtError, step: int) -> None:
        """A step could not be computed: end the requests it was for with `error`."""
        for row in rows:
            self._failed[self._live.request(row.seq)] = error
        self._end_failed(step)

    def fail(self, error: KvrtError) -> None:
        """End every request with `error`; pages stay as they are."""
        requests = self._live.requests
        self._live.clear()
        for request in requests:
            _tell_failed(request, error)

    def _end_beams(self, request: Request, reason: FinishReason, step: int) -> None:
        beaming.end(self._live, request, reason, step)
        self._finish(request)

    def _drop(self, request: Request, seq: Seq, step: int) -> None:
        """Free a finished sequence's pages; with its last sequence, the request is answered."""
        self._live.drop(seq, step)
        if request.finished:
            self._finish(request)

    def _finish(self, request: Request) -> None:
        error = None
        if any(o.finish_reason == "capacity" for o in request.outputs.values()):
            error = CapacityError("no memory is left to go on, even alone")
        request.deliver(request.result(error))

    # --- the firewall ------------------------------------------------------------------------

    def _alone(
        self, request: Request, do: Callable[P, None], *args: P.args, **kw: P.kwargs
    ) -> None:
        """Do what concerns one request. What it raises is that request's end and nobody else's,
        unless it is the device's fault, or the page table's. Once it has failed, nothing more is
        done for it."""
        if request in self._failed:
            return
        try:
            do(*args, **kw)
        except (*_NOBODYS, DeviceError, IntegrityError, torch.AcceleratorError):
            raise
        except KvrtError as error:
            self._failed[request] = error
        except BaseException as error:  # a panic of a tokenizer's compiled code, say
            log.exception("request %s failed", request.id)
            what = str(error).partition("\n")[0]
            self._failed[request] = KvrtError(f"engine: {type(error).__name__}: {what:.200}")

    def _end_failed(self, step: int) -> None:
        """Those that failed lose their sequences, whose pages nobody shall use."""
        for request, error in self._failed.items():
            for seq in self._live.of(request):
                self._live.drop(seq, step, sound=False)
            _tell_failed(request, error)
        self._failed.clear()


def _tell_failed(request: Request, error: KvrtError) -> None:
    """Nothing of the request's own is computed for that."""
    try:
        for output in request.outputs.values():
            if output.finish_reason is None:
                request.deliver(output.fail())
        request.deliver(request.result(error))
    except _NOBODYS:
        raise
    except BaseException:
        log.exception("the end of request %s could not be delivered", request.id)
