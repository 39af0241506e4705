"""Faults of one line, over the whole tree, and the tests that should notice each.

They were drawn: lines by chance, and in each the fault that somebody could most likely make there.
Of later draws only those are kept that the tests let pass at first: see `tests.mutants.survived`.

Where one of these lines changes, so does its entry; one whose line is gone is drawn anew.
"""

from tests.mutants.run import LineMutant as M

DRAWN = {
    "a table counts free pages beyond its limit": M(
        "kvrt.kv.pages.placement",
        "max(0, min(found, geometry.pages_in(limit) - self.used_pages))",
        "max(0, found)",
        "pages/test_placement.py",
    ),
    "a sequence's own tokens follow themselves": M(
        "kvrt.sched.speculation",
        "parents += range(-1, own - 1)",
        "parents += range(own)",
        "sched/test_speculation.py runtime/test_speculation.py",
    ),
    "the last free page is not used": M(
        "kvrt.kv.pages.table",
        "if len(taken) < needed:",
        "if len(taken) <= needed:",
        "pages/test_table.py",
    ),
    "pages are free before the step that reads them has ended": M(
        "kvrt.kv.pages.table",
        "if after is None or not any(released):",
        "if True:",
        "pages/test_table.py",
    ),
    "freed pages are scrubbed only where nobody asked": M(
        "kvrt.kv.pages.table",
        "for page in own] if self.scrub else ()",
        "for page in own] if not self.scrub else ()",
        "pages/test_table.py pages/test_cache.py",
    ),
    "an average runs away from what was measured": M(
        "kvrt.kv.index.cost", "before + _WEIGHT *", "before - _WEIGHT *", "sched/test_cost.py"
    ),
    "the dearer of two ways back counts": M(
        "kvrt.kv.index.cost",
        "return min(compute, nbytes * fetch_s)",
        "return max(compute, nbytes * fetch_s)",
        "sched/test_cost.py",
    ),
    "pages are fetched where computing is faster": M(
        "kvrt.kv.index.cost",
        "return nbytes * fetch_s < self._seconds",
        "return nbytes * fetch_s > self._seconds",
        "sched/test_cost.py",
    ),
    "a page file takes one block that it does not have": M(
        "kvrt.kv.tiers.space",
        "self._blocks.add(at, self.data_bytes // BLOCK - at)",
        "self._blocks.add(at, self.data_bytes // BLOCK - at + 1)",
        "tiers/test_pagefile.py",
    ),
    "a record at the end of the budget is beyond it": M(
        "kvrt.kv.tiers.space",
        "return end > self._data_limit",
        "return end >= self._data_limit",
        "tiers/test_pagefile.py",
    ),
    "blocks that were taken are free": M(
        "kvrt.kv.tiers.extents",
        "self._counts[n] -= count",
        "self._counts[n] -= count - 1",
        "tiers/test_extents.py tiers/test_pagefile.py",
    ),
    "blocks that are free already may be freed": M(
        "kvrt.kv.tiers.extents",
        "if (n > 0 and before > start) or",
        "if (n > 0 and before > start) and",
        "tiers/test_extents.py tiers/test_pagefile.py",
    ),
    "layers of one page may lie in the next": M(
        "kvrt.wrappers.attention",
        "pages = min(outside) // layout.page_stride if outside else 1",
        "pages = max(outside) // layout.page_stride if outside else 1",
        "registry/test_checked_attention.py",
    ),
    "elements may share a place by one": M(
        "kvrt.wrappers.attention",
        "if stride < reach:",
        "if stride < reach - 1:",
        "registry/test_checked_attention.py",
    ),
    "a page is found though the one before it is not": M(
        "kvrt.kv.index.reuse",
        "if start and (before is None or self.index.find(before.name) is not before):",
        "if False:",
        "runtime/test_cache_control.py",
    ),
    "cached tokens count beyond the prompt": M(
        "kvrt.kv.index.reuse",
        "min(pages * self._page_size, seq.prompt_len)",
        "max(pages * self._page_size, seq.prompt_len)",
        "runtime/test_prefix_reuse.py",
    ),
    "a page is lost though its copy would have made room": M(
        "kvrt.kv.offload",
        "if slot is None and saves:",
        "if slot is None and not saves:",
        "tiers/test_offload.py",
    ),
    "the check overlooks chunks that are not mapped": M(
        "kvrt.kv.pages.integrity",
        "lost = set(users) - mapped",
        "lost = mapped - mapped",
        "pages/test_table.py pages/test_mutants.py",
    ),
    "unmapped chunks are not counted": M(
        "kvrt.executor.local",
        "unmaps=before.unmaps + applied.unmaps",
        "unmaps=before.unmaps",
        "pages/test_cache.py",
    ),
    "a full host memory evicts nobody": M(
        "kvrt.kv.tiers.host",
        "victims = self._victims(group)",
        "victims = None",
        "tiers/test_host.py",
    ),
    "each group has the budget of host memory for itself": M(
        "kvrt.kv.tiers.host",
        "* self._slab_bytes <= self._budget",
        "* self._slab_bytes <= self._budget * len(self.sizes)",
        "tiers/test_host.py",
    ),
    "what goes for a page of another size leaves its frame in use": M(
        "kvrt.kv.tiers.host",
        "return [*page.frame.pages]",
        "return [page]",
        "tiers/test_host.py::test_one_budget_serves_pages_of_all_sizes",
    ),
    "a file does not say whose pages it has": M(
        "kvrt.kv.tiers.format",
        'page, row["group"] = record.name',
        "page, _ = record.name",
        "tiers/test_snapshots.py",
    ),
    "a sequence resumes where a group has no page outside": M(
        "kvrt.kv.index.outside",
        "for each, group in enumerate(groups)\n            if group.window",
        "for each, group in enumerate(groups[:1])\n            if group.window",
        "sched/test_outside.py",
    ),
    "what a sequence can resume with in any case is not held": M(
        "kvrt.kv.index.outside",
        "for part in group.kept(start * size):",
        "for part in ():",
        "sched/test_outside.py",
    ),
    "a failed fetch resumes each group at a border of its own": M(
        "kvrt.kv.memory",
        "border = last_border(table.groups, rows, len(rows[0]))",
        "border = last_border(table.groups[:1], rows[:1], len(rows[0]))",
        "tiers/test_life.py::test_a_fetch_that_fails_at_any_page_goes_on_where_all_groups_can",
    ),
    "of a window nothing is worth a copy": M(
        "kvrt.kv.index.prefix",
        "if last.resumed or last.after != 1 or last.next is None:",
        "if last.resumed or last.after > 1:",
        "sched/test_windows.py",
    ),
    "a prompt's end is no place to resume at": M(
        "kvrt.kv.index.prefix",
        "if last.resumed or last.after != 1 or last.next is None:",
        "if last.after != 1 or last.next is None:",
        "sched/test_windows.py",
    ),
    "the slab that is kept is not the lower one": M(
        "kvrt.kv.tiers.host",
        "self._drop(max(empty))",
        "self._drop(min(empty))",
        "tiers/test_host.py",
    ),
    "a guess that came true counts as vain": M(
        "kvrt.drafting.drafter",
        "self._vain = 0 if hit else self._vain",
        "self._vain = self._vain if hit else 0",
        "sched/test_speculation.py",
    ),
    "who was preempted is preempted again": M(
        "kvrt.sched.batching",
        "return (-seq.rank[0], seq.preemptions, cost)",
        "return (-seq.rank[0], -seq.preemptions, cost)",
        "sched/test_batching.py",
    ),
    "the first of all may be preempted": M(
        "kvrt.sched.batching",
        "victim = min([seq for seq in order if seq not in first] or first, key=price)",
        "victim = min(order, key=price)",
        "sched/test_batching.py",
    ),
    "siblings need no pages of their own": M(
        "kvrt.sched.batching",
        "needed += (seq.width - 1) * min(needed, own)",
        "needed += 0",
        "sched/test_batching.py",
    ),
    "weights are packed without a gap": M(
        "kvrt.model.weights",
        "return -(-nbytes // ALIGNMENT) * ALIGNMENT",
        "return nbytes",
        "model/test_checkpoint.py",
    ),
    "the peak is the least there ever was": M(
        "kvrt.executor.local",
        "peak_mapped_chunks=max(",
        "peak_mapped_chunks=min(",
        "pages/test_cache.py",
    ),
    "heads are scaled by their size": M(
        "kvrt.model.decoder",
        "scale = spec.attention_scale or spec.head_dim**-0.5",
        "scale = spec.attention_scale or 1 / spec.head_dim",
        "model/test_families.py",
    ),
    "a recorded step leaves out norms behind branches": M(
        "kvrt.model.branches",
        "and not spec.post_norms",
        "and True",
        "model/test_families.py",
    ),
    "logits are not capped": M(
        "kvrt.model.branches",
        "if spec.logit_softcap:",
        "if spec.logit_softcap > 1e9:",
        "model/test_families.py",
    ),
    "what branches add is not scaled": M(
        "kvrt.model.branches",
        "scale = self._spec.residual_scale",
        "scale = 1.0",
        "model/test_families.py",
    ),
    "norms of one less stay so": M(
        "kvrt.model.rows",
        "rows.add_(1.0)",
        "rows.add_(0.0)",
        "model/test_families.py",
    ),
    "an embedding is not scaled": M(
        "kvrt.model.decoder",
        "if self.spec.embedding_scale != 1.0:",
        "if self.spec.embedding_scale > 1e9:",
        "model/test_families.py",
    ),
    "the first of so many layers sees all, not the last": M(
        "kvrt.model.windows",
        "if (layer + 1) % interval",
        "if layer % interval",
        "model/test_gguf.py",
    ),
    "half of a decimal size is lost": M(
        "kvrt.units",
        "return int(float(match[1]) * _UNITS[match[2].lower()])",
        "return int(float(match[1])) * _UNITS[match[2].lower()]",
        "test_units.py cli/test_usage.py",
    ),
    "a mebibyte is written as 1024 KiB": M(
        "kvrt.units", "if abs(value) < 1023.5 or", "if abs(value) <= 1024 or", "test_units.py"
    ),
    "long waves are divided by nothing": M(
        "kvrt.model.rope",
        "return (1 - kept) * frequencies / rope.factor + kept * frequencies",
        "return (1 - kept) * frequencies + kept * frequencies / rope.factor",
        "model/test_families.py",
    ),
    "the last chunk of memory is never given": M(
        "kvrt_cpu.memory",
        "if not self._free and self._next == self._count:",
        "if not self._free and self._next + 1 == self._count:",
        "backends/cpu",
    ),
    "chunks are shared though nobody asked": M(
        "kvrt_cpu.memory",
        "    if not shareable:\n        try:\n            return _prove(PrivateMemory())",
        "    if shareable:\n        try:\n            return _prove(PrivateMemory())",
        "backends/cpu",
    ),
    "a buffer that is too small is used": M(
        "kvrt.kv.tiers.blockfile",
        "if buffer is None or len(buffer) < nbytes:",
        "if buffer is None:",
        "tiers/test_pagefile.py tiers/test_disk.py",
    ),
    "a short read passes for a whole one": M(
        "kvrt.kv.tiers.blockfile",
        "            done += got\n",
        "            done = len(into)\n",
        "tiers/test_pagefile.py",
    ),
    "a header may be longer than its file": M(
        "kvrt.model.header",
        "if length > size - 8:",
        "if length > size:",
        "model/test_checkpoint.py",
    ),
    "positions of a chunk begin at its end": M(
        "kvrt_kernels.reference",
        "(length - start[1:])[sequence]",
        "(length - start[:-1])[sequence]",
        "kernels/test_attention.py",
    ),
    "the norm adds epsilon to the root": M(
        "kvrt_kernels.reference",
        "torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)",
        "torch.rsqrt(x.square().mean(dim=-1, keepdim=True)) + eps",
        "kernels/test_norm.py",
    ),
    "a value in an error is longer than it says": M(
        "kvrt.model.jsonfile",
        "text if len(text) <= 60 else",
        "text if len(text) >= 60 else",
        "model/test_jsonfile.py",
    ),
    "a pool keeps what it should give back": M(
        "kvrt.executor.pool",
        "while len(self._chunks) > count:",
        "while len(self._chunks) > count + 1:",
        "pages/test_cache.py pages/test_apply.py",
    ),
    "a store that failed is asked again at once": M(
        "kvrt.kv.tiers.disk",
        "paused = time.monotonic() < self._paused_until",
        "paused = False",
        "tiers/test_faults.py tiers/test_disk.py",
    ),
    "a page that was removed comes after all": M(
        "kvrt.kv.tiers.disk",
        "            self._workers.withdraw(pending)\n        if there:",
        "            pass\n        if there:",
        "tiers/test_disk.py tiers/test_faults.py",
    ),
    "a plain text has no bound of its own": M(
        "kvrt_cli.sampling",
        '= {} if chat else {"max_tokens": PLAIN_MAX_TOKENS}',
        "= {}",
        "cli/test_sampling.py",
    ),
    "what the author recommends wins over what the user asked": M(
        "kvrt_cli.sampling",
        "resolved = SamplingParams(**{**params, **wishes})",
        "resolved = SamplingParams(**{**wishes, **params})",
        "cli/test_sampling.py",
    ),
    "a coroutine that leaves lets its request go on": M(
        "kvrt.aio.stream",
        "        except BaseException:\n            self.close()",
        "        except BaseException:",
        "aio/test_async_runtime.py",
    ),
    "a loop is woken for each token": M(
        "kvrt.aio.hop",
        "            self._parcels.append((arrivals, event))",
        "            self._parcels.append((arrivals, event))\n            self.leave()",
        "aio/test_async_runtime.py",
    ),
    "streams on a loop hear of a stopped engine only by chance": M(
        "kvrt.engine.mailbox",
        "            _refuse(question, error)\n        self._end_round()",
        "            _refuse(question, error)",
        "aio/test_async_runtime.py",
    ),
    "an observer that fails is told more": M(
        "kvrt.engine.events",
        "                self.remove(observer)",
        "                pass",
        "runtime/test_observers.py",
    ),
    "what begins like an open route is open": M(
        "kvrt.server.guard",
        "if self._keys is None or path in OPEN:",
        "if self._keys is None or path.startswith(tuple(OPEN)):",
        "server/test_guard.py",
    ),
    "one good key among several is enough": M(
        "kvrt.server.keys",
        "if len(set(given)) != 1:",
        "if not given:",
        "server/test_guard.py",
    ),
    "owners of keys share pages": M(
        "kvrt.server.endpoint",
        "ask(self._service.runtime, call.asks, owner)",
        'ask(self._service.runtime, call.asks, "")',
        "server/test_guard.py",
    ),
    "a place is never given back": M(
        "kvrt.server.gate",
        "            self.inside -= count",
        "            pass",
        "server/test_life.py::test_more_than_there_is_room_for_is_told_when_to_come_again",
    ),
    "a client that has left is answered": M(
        "kvrt.server.http",
        'while (await receive())["type"] != "http.disconnect":',
        "while await receive():",
        "server/test_life.py::test_a_client_that_leaves_costs_nothing_a_second_later",
    ),
    "at the deadline streams go on": M(
        "kvrt.server.serve",
        "loop.call_later(config.drain_seconds, service.cut_all)",
        "pass",
        "server/test_life.py::test_at_the_deadline_streams_end_with_an_error_event",
    ),
}
