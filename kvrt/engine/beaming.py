"""Beam search on forked tables: what `kvrt.sched.beams` decides, done to sequences and pages.

    prompt ----------> offer, advance -----> live beams: sequences that share pages,
             |                                  one decode row each
             |  preempted: gather into            |
             |  what they have in common          |  all have offered: advance; the page table
             |                                    |  forks who goes on twice, frees who does not
             +------- spread <--------------------+

Beams are preempted together, since none can go on without the others; what they had in common is
computed, or found again, once.
"""

import itertools
import time

from kvrt.engine.live import Live
from kvrt.engine.request import Request
from kvrt.engine.sampler import Chosen
from kvrt.kv.seq import Seq
from kvrt.outputs import Delta, FinishReason, TokenLogprobs
from kvrt.sched.beams import Beams, BeamSearch, Finished
from kvrt.structured.guide import BeamGuide


def begin(request: Request, seq: Seq) -> None:
    """A request that wants beams has got its first sequence."""
    params = request.params
    max_tokens = request.max_len - len(request.prompt)
    search = BeamSearch(params.beam_width, max_tokens, request.ends, params.length_penalty)
    request.beams = Beams(search, [seq])
    if (guide := request.new_guide()) is not None:
        request.guide = BeamGuide(guide, params.beam_width)


def offer(live: Live, seq: Seq, offered: list[TokenLogprobs], step: int) -> bool:
    """Take a beam's likeliest continuations; the last beam to offer its own moves all one on.

    Returns:
        False: the search has ended.
    """
    request, beams = live.request(seq), _beams(live.request(seq))
    beams.offers[seq] = offered
    if len(beams.offers) < len(beams.seqs):
        return True
    if request.first_token is None:
        request.first_token = time.perf_counter()
    before = beams.seqs
    parents = beams.search.advance([beams.offers[seq] for seq in before])
    beams.offers.clear()
    beams.seqs = []
    for parent, heirs in itertools.groupby(parents):
        before[parent].width = 1
        forks = [live.fork(before[parent]) for _ in itertools.islice(heirs, 1, None)]
        beams.seqs += [before[parent], *forks]
    for index, seq in enumerate(before):
        if index not in parents:
            live.drop(seq, step)
    for seq, beam in zip(beams.seqs, beams.search.live, strict=True):
        assert beam.last is not None, "it has just got its last token"
        seq.tokens.append(beam.last.token_id)
    return bool(parents)


def spread(live: Live, trunk: Seq) -> None:
    """What its beams have in common is computed again: each goes on from there by itself."""
    beams = _beams(live.request(trunk))
    trunk.width = 1
    beams.seqs = [trunk, *(live.fork(trunk) for _ in beams.search.live[1:])]
    for seq, beam in zip(beams.seqs, beams.search.live, strict=True):
        seq.tokens += beam.token_ids[seq.generated :]


def gather(live: Live, request: Request, step: int) -> Seq:
    """Its beams have lost their pages: one sequence stands for all of them from now on."""
    beams = _beams(request)
    trunk, *others = beams.seqs
    for seq in others:
        live.drop(seq, step)
    beams.seqs = [trunk]
    beams.offers.clear()
    trunk.width = len(beams.search.live)
    del trunk.tokens[trunk.prompt_len + beams.search.common :]
    del trunk.names[(len(trunk.tokens) - 1) // live.memory.cache.page_size :]
    return trunk


def end(live: Live, request: Request, reason: FinishReason, step: int) -> None:
    """Deliver the best beams so far; `reason` is why those end that could have gone on."""
    beams = _beams(request)
    for index, best in enumerate(beams.search.best(request.params.n)):
        _deliver(request, index, best, reason)
    for seq in beams.seqs:
        live.drop(seq, step)


def _beams(request: Request) -> Beams:
    assert request.beams is not None, "only called for those that have beams"
    return request.beams


def _deliver(request: Request, index: int, best: Finished, reason: FinishReason) -> None:
    """One completion, as a single piece."""
    output = request.open_output(index)
    output.score = best.score
    tokens = best.beam.tokens
    ends = _beams(request).search.why_ended(best.beam) or reason
    if not tokens:
        request.deliver(output.finish(ends))
        return
    asked = request.params.logprobs is not None
    pieces = []
    for place, token in enumerate(tokens, start=1):
        last = place == len(tokens)
        pieces.append(
            output.push(
                Chosen(token.token_id, token if asked else None),
                ends=ends if last else None,
                visible=not (last and ends == "stop"),
            )
        )
    text = "".join(piece.text for piece in pieces)
    logprobs = tuple(output.logprobs) if asked else None
    request.deliver(Delta(index, text, tuple(output.token_ids), ends, logprobs))
