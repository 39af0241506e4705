"""Faults of one line that the tests once let pass, and the tests that notice them now.

Some a review made, others were drawn as those of `tests.mutants.lines` are.
"""

from tests.mutants.run import LineMutant as M

SURVIVED = {
    "completions of one prompt share a seed": M(
        "kvrt.engine.answers",
        "seed = (request.seed + output.index) % 2**64",
        "seed = request.seed % 2**64",
        "runtime/test_runtime.py",
    ),
    "log-probabilities of a prompt are those of the token before": M(
        "kvrt.engine.answers",
        "token, top = request.prompt[position + 1],",
        "token, top = request.prompt[position],",
        "runtime/test_runtime.py",
    ),
    "pages do not depend on the architecture": M(
        "kvrt.engine.fingerprint",
        "(info.backend, info.arch, kernels,",
        "(info.backend, kernels,",
        "runtime/test_page_names.py",
    ),
    "several completions count as one place": M(
        "kvrt.sched.batching",
        "0 if seq.apart else places - seq.width",
        "0 if seq.apart else places - 1",
        "sched/test_batching.py",
    ),
    "presence is punished once for each occurrence": M(
        "kvrt.engine.sampler",
        "weight = params.presence_penalty + params.frequency_penalty * counts",
        "weight = (params.presence_penalty + params.frequency_penalty) * counts",
        "test_sampler.py",
    ),
    "the first stop string of the list counts, not of the text": M(
        "kvrt.engine.stops",
        "if length and (first is None or end - length < first):",
        "if length and first is None:",
        "sched/test_output.py",
    ),
    "a candidate too many may end": M(
        "kvrt.sched.beams",
        "elif place < self.width:",
        "elif place <= self.width:",
        "sched/test_beams.py",
    ),
    "a memory limit does not count the weights": M(
        "kvrt.engine.sizing",
        "limit = limit_bytes(config.memory_limit, info) - model.weight_bytes",
        "limit = limit_bytes(config.memory_limit, info)",
        "runtime/test_sizing.py",
    ),
    "what is free does not bound the cache": M(
        "kvrt.engine.sizing",
        "return min(span, int(free * FREE_SHARE), free - self.step)",
        "return span",
        "runtime/test_sizing.py",
    ),
    "out of memory is like any other fault": M(
        "kvrt_cli.main",
        "5 if isinstance(error, MemoryError) else 1",
        "1",
        "cli/test_usage.py",
    ),
    "who is interrupted leaves requests behind": M(
        "kvrt.runtime",
        "                if isinstance(stream, Stream):\n                    stream.close()\n",
        "                pass\n",
        "runtime/test_life.py",
    ),
    "a recorded step pads with one sequence too many": M(
        "kvrt.model.graphs",
        "torch.arange(tokens + 1, size + 1, dtype=torch.int32)",
        "torch.arange(tokens + 1, size + 1, dtype=torch.int32).clamp(max=size - 1)",
        "runtime/test_graphs.py",
    ),
    "an answer is one token longer than the context": M(
        "kvrt.engine.intake",
        "max_len=min(room, len(tokens) + max_new),",
        "max_len=min(room + 1, len(tokens) + max_new),",
        "runtime/test_runtime.py",
    ),
    "a prompt may fill the context": M(
        "kvrt.engine.prompts",
        "if len(tokens) + new > model.max_model_len:",
        "if len(tokens) > model.max_model_len:",
        "runtime/test_runtime.py",
    ),
    "what is used most goes first": M(
        "kvrt.kv.index.eviction",
        "return (page.hits, page.used)",
        "return (-page.hits, page.used)",
        "sched/test_eviction.py",
    ),
    "a match ignores a group": M(
        "kvrt.kv.pages.group",
        "for group, row in zip(groups, rows, strict=True):",
        "for group, row in zip(groups[:1], rows[:1], strict=True):",
        "sched/test_ends.py",
    ),
    "a match ignores first positions": M(
        "kvrt.kv.pages.group",
        "for needed in group.kept(length):",
        "for needed in group.kept(length)[1:]:",
        "sched/test_ends.py",
    ),
    "a page of a window counts as there although it was given up": M(
        "kvrt.kv.index.prefix",
        "entry.pages = (*entry.pages[:group], 0, *entry.pages[group + 1 :])",
        "pass",
        "sched/test_ends.py",
    ),
    "a page of a window is never found again": M(
        "kvrt.kv.index.prefix",
        "taken[group] = pages[group]",
        "pass",
        "sched/test_ends.py",
    ),
    "pages follow what somebody else holds": M(
        "kvrt.kv.index.prefix",
        "return entry is None or all(entry.pages[group] == pages[group] for group in self._full)",
        "return True",
        "sched/test_ends.py",
    ),
    "pages for drafts are taken as if the token before them was computed": M(
        "kvrt.sched.speculation",
        "{row.seq.id: len(drafts)}, {row.seq.id: row.start}",
        "{row.seq.id: len(drafts)}",
        "sched/test_speculation.py",
    ),
    "a page goes before the window that ends with it": M(
        "kvrt.kv.index.prefix",
        "rows[group][first.stop : window.start] = 0",
        "pass",
        "sched/test_ends.py",
    ),
    "what only one sequence computed is not doubted with it": M(
        "kvrt.kv.index.reuse",
        "return names, tuple(map(tuple, pages))",
        "return names, ((),) * len(pages)",
        "pages/test_memory.py",
    ),
    "a window that one sequence alone has is not doubted with it": M(
        "kvrt.kv.index.reuse",
        "parts.append((entry, group))",
        "pass",
        "tiers/test_life.py::"
        "test_a_window_that_came_back_for_a_sequence_that_is_doubted_is_found_no_more",
    ),
    "pages of all groups get the names of the first": M(
        "kvrt.kv.memory",
        "self.commit(table.name(tuple(tuple(itertools.chain(*pages)) for pages in own)))",
        "self.commit(table.name((tuple(itertools.chain(*next(own))),) * len(table.lanes)))",
        "pages/test_memory.py",
    ),
    "links stay when nothing is linked": M(
        "kvrt.kv.index.prefix",
        "self.drop_links(entry)",
        "pass",
        "sched/test_ends.py",
    ),
    "an end goes and its pages of windows stay": M(
        "kvrt.kv.index.ends",
        "for each, page in enumerate(entry.pages):",
        "for each, page in [(group, entry.pages[group])]:",
        "sched/test_ends.py",
    ),
    "what a window left is worth what it was when it was computed": M(
        "kvrt.kv.index.prefix",
        "self._use(entry, now)\n            self._ends.add(entry, group)",
        "self._ends.add(entry, group)",
        "sched/test_windows.py",
    ),
    "pages that a window has left are not given up": M(
        "kvrt.kv.memory", "self.reuse.idled(change.idled)", "pass", "pages/test_memory.py"
    ),
    "named pages before a window cannot be had": M(
        "kvrt.sched.batching",
        "elif not self._leave(leaving):",
        "else:",
        "sched/test_windows.py",
    ),
    "a plan begins with what it evicts": M(
        "kvrt.sched.batching",
        "reuse.match(seq, draft.dropped)",
        "reuse.match(seq)",
        "sched/test_waiting.py",
    ),
    "a window needs all pages": M(
        "kvrt.sched.batching",
        "lane.group.most(ahead, step)",
        "lane.geometry.pages_for(ahead)",
        "sched/test_batching.py",
    ),
    "a window needs no room for the tokens that are computed at once": M(
        "kvrt.kv.pages.group",
        "geometry.pages_for(self.window - 1 + step) + 1",
        "geometry.pages_for(self.window) + 1",
        "pages/test_group.py",
    ),
    "a page of a window is given up one token too early": M(
        "kvrt.kv.pages.group",
        "length - self.window + 1",
        "length - self.window + 2",
        "pages/test_group.py",
    ),
    "a page before a window is given up as if drafts were true": M(
        "kvrt.kv.pages.table",
        "lane, left, idle = lane.leave(growing, rows, computed, group)",
        "lane, left, idle = lane.leave(growing, rows, lengths, group)",
        "pages/test_group.py",
    ),
    "bytes are written before all workers have said yes": M(
        "kvrt.executor.apply",
        "return attempt._guarded(lambda: attempt._begin(ops)) or attempt",
        "return attempt._guarded(lambda: (attempt._begin(ops), attempt._write(keep_old=False))[1])"
        " or attempt",
        "pages/test_apply.py",
    ),
    "a step gives back all that was spare": M(
        "kvrt.kv.spare",
        "keep - min(surplus, _RETURNED_AT_ONCE)",
        "keep - surplus",
        "pages/test_spare.py",
    ),
    "a late revision of a limit is taken": M(
        "kvrt.kv.limit",
        "revision <= self._revision:",
        "revision < self._revision:",
        "pages/test_cache.py",
    ),
    "a group attends over the pages of another": M(
        "kvrt.executor.local",
        "for backing, pages in zip(self._backings, step.pages, strict=True)",
        "for backing, pages in zip(self._backings, step.pages[::-1], strict=True)",
        "pages/test_executor.py",
    ),
    "a page of one group is saved from another": M(
        "kvrt.executor.local",
        "self.page(move.page, move.group), after)",
        "self.page(move.page), after)",
        "pages/test_executor.py",
    ),
    "ops of one group are carried out in another": M(
        "kvrt.executor.apply",
        "backing = self._backings[op.group]",
        "backing = self._backings[0]",
        "pages/test_apply.py",
    ),
    "what one group unmaps is undone in another": M(
        "kvrt.executor.apply",
        "partial(backing.map, index)",
        "partial(self._backings[0].map, index)",
        "pages/test_apply.py",
    ),
    "each group has the limit for itself": M(
        "kvrt.kv.pages.lanes",
        "return self._limit - others",
        "return self._limit",
        "pages/test_lanes.py",
    ),
    "what a group does not use it keeps from others": M(
        "kvrt.kv.pages.lanes",
        "if other is not placer and (warm := other.warm_chunks):",
        "if False and (warm := other.warm_chunks):",
        "pages/test_lanes.py",
    ),
    "what is named may be written to": M(
        "kvrt.kv.pages.holders",
        "- left * _ROW == _ROW",
        "- left * _ROW <= _ROW + _INDEX",
        "pages/test_table.py",
    ),
    "what was in use when a plan began is not evicted": M(
        "kvrt.sched.batching",
        "self._cached.look_again(self._reuse.entries_of(change.idled))",
        "pass",
        "sched/test_ends.py",
    ),
    "what was worth much once stays for ever": M(
        "kvrt.kv.index.eviction",
        "self._clock = max(self._clock, page.worth[0])",
        "pass",
        "sched/test_eviction.py",
    ),
    "a forked child waits for ever": M(
        "kvrt.engine.process",
        "return os.getpid() == self._pid",
        "return True",
        "runtime/test_life.py",
    ),
    "more log-probabilities than tokens are asked of a small vocabulary": M(
        "kvrt.engine.sampler",
        "logprobs.topk(min(top, logprobs.numel()))",
        "logprobs.topk(top)",
        "test_sampler.py",
    ),
    "what was never begun is never answered": M(
        "kvrt.engine.mailbox",
        "question.deliver(result)",
        "pass",
        "runtime/test_life.py",
    ),
    "a quota that is used up is not like a disk that is full": M(
        "kvrt.kv.tiers.space",
        "{errno.ENOSPC, errno.EDQUOT, errno.EFBIG}",
        "{errno.ENOSPC, errno.EFBIG}",
        "tiers/test_faults.py",
    ),
    "queries are read beyond their end": M(
        "kvrt_kernels.triton.work",
        "d = tl.arange(0, BLOCK_D)\n    mask = valid[:, None]",
        "d = tl.arange(0, BLOCK_D)\n    mask = (row + token >= 0)[:, None]",
        "triton/test_interpreted.py::test_the_kernels_touch_nothing_but_their_own_tokens",
    ),
    "a file of seven bytes has a length of its header": M(
        "kvrt.model.header",
        "if len(prefix) < 8:\n            raise ModelError(",
        "if len(prefix) < 8:\n            ModelError(",
        "model/test_checkpoint.py",
    ),
    "no time is spent on what makes no text": M(
        "kvrt.model.bounds",
        "        else:\n            self.spend(0)",
        "        else:\n            pass",
        "model/test_template_bounds.py",
    ),
    "numbers grow from the right": M(
        "kvrt.model.bounds",
        "if left.bit_length() + right.bit_length() > BITS:",
        "if left.bit_length() > BITS:",
        "model/test_template_bounds.py",
    ),
    "the doctor believes what it reads": M(
        "kvrt_cli.checks.device",
        "torch.equal(place(2 * n), pattern + n)",
        "torch.equal(place(2 * n), place(2 * n))",
        "cli/test_doctor.py",
    ),
    "a forked child unmaps what is its own": M(
        "kvrt_cpu.memory",
        "if os.getpid() == self._pid:\n            for span",
        "if True:\n            for span",
        "backends/cpu/test_memory_linux.py",
    ),
    "memory that is closed unmaps": M(
        "kvrt_cpu.memory",
        "self.require_owner()\n        self._mappings.spend()\n        place",
        "self._mappings.spend()\n        place",
        "backends/cpu/test_memory.py",
    ),
    "what is empty or zero is not checked": M(
        "kvrt.config",
        "for name in OPTIONS}",
        "for name in OPTIONS if getattr(self, name)}",
        "test_arguments.py",
    ),
    "heads of any smaller size will do": M(
        "kvrt.wrappers.attention",
        "getattr(layout, name) not in sizes",
        "getattr(layout, name) > max(sizes)",
        "registry/test_checked_attention.py",
    ),
    "the kit gives pages in the order of their numbers": M(
        "kvrt.testing.paged",
        "for i in order.tolist()]",
        "for i in sorted(order.tolist())]",
        "conformance/test_mutants.py::test_the_kit_finds_the_fault[reads_pages_by_number]",
    ),
    "any format is kept": M(
        "kvrt.executor.backing",
        "if layout.format not in info.kv_formats:",
        "if False:",
        "pages/test_cache.py",
    ),
    "one request counts as many": M(
        "kvrt_cli.stats",
        "many = stats.requests > 1",
        "many = stats.requests >= 1",
        "cli/test_stats.py",
    ),
    "chaos takes a copy for done that has only begun": M(
        "kvrt.testing.chaos",
        "copy(dst, src).wait()",
        "copy(dst, src)",
        "conformance/test_chaos.py",
    ),
    "a step is measured by two clocks": M(
        "kvrt.engine.engine",
        "started = time.perf_counter()",
        "started = time.time()",
        "runtime/test_measured.py",
    ),
    "what a tier has of other prompts is saved too": M(
        "kvrt.engine.snapshots",
        "{name: None for name in names if name.page in wanted}",
        "{name: None for name in names}",
        "runtime/test_cache_control.py",
    ),
    "a token's scales are taken from its codes": M(
        "kvrt.executor.backing",
        "first + block.scale_offset + slot * size",
        "first + slot * size",
        "pages/test_cache.py",
    ),
    "a control group has no colon in its name": M(
        "kvrt_cli.checks.system", 'line.split(":", 2)', 'line.split(":")', "cli/test_doctor.py"
    ),
    "lines of a file have no log-probabilities": M(
        "kvrt_cli.run",
        "not (as_json or prompts is not None)",
        "not as_json",
        "cli/test_prompts.py",
    ),
    "memory that begins where other ends overlaps it": M(
        "kvrt.wrappers.memory",
        "or other.span.base + other.span.nbytes <= span.base",
        "or other.span.base + other.span.nbytes < span.base",
        "registry/test_checked_memory.py",
    ),
    "offline, the network is asked whether it is there": M(
        "kvrt.model.hub",
        "not offline and _is_cached(",
        "_is_cached(",
        "model/test_resolve.py",
    ),
    "a step is recorded each time": M(
        "kvrt.model.graphs", "if found is None:", "if True:", "runtime/test_graphs.py"
    ),
    "scales are not aligned": M(
        "kvrt.spi.layout",
        "scales = -(-page_size * stride // kept.scale_bytes) * kept.scale_bytes",
        "scales = page_size * stride",
        "pages/test_geometry.py",
    ),
    "the home of somebody unknown is a path": M(
        "kvrt.model.resolve",
        "nobody's home\n        return None",
        "nobody's home\n        pass",
        "model/test_resolve.py",
    ),
    "loading began when the machine did": M(
        "kvrt.engine.worker",
        "started = time.perf_counter()\n        made =",
        "started = 0.0\n        made =",
        "runtime/test_measured.py",
    ),
    "nothing is hoped for": M(
        "kvrt.sched.speculation",
        "worth = self._worth(rows)\n        return any(",
        "worth = 1.0\n        return any(",
        "runtime/test_ahead.py",
    ),
    "a copy within the device is said to come from the host": M(
        "kvrt_kernels.driver.copier",
        'self._copy("within", dst, src, after)',
        'self._copy("to device", dst, src, after)',
        "emulator/test_emulated.py::test_inside",
    ),
    "a tensor's description is never freed": M(
        "kvrt_kernels.dlpack",
        "managed.deleter = ctypes.cast(_libc.free, ctypes.c_void_p)",
        "managed.deleter = None",
        "backends/gpu/test_gpu.py",
    ),
    "each sequence brings something": M(
        "kvrt.wrappers.attention",
        "if query.min() < 0:",
        "if query.min() <= 0:",
        "registry/test_checked_attention.py",
    ),
    "what is cached expires though it is pinned": M(
        "kvrt.kv.index.reuse",
        "return any(entry.pages) and all(",
        "return any(entry.pages) or all(",
        "runtime/test_cache_control.py",
    ),
    "nothing is written to disk before host memory is full": M(
        "kvrt.kv.tiers.stores",
        "if room >= wanted or (not self._written(page) and not self._write(page)):",
        "if True:",
        "tiers/test_offload.py",
    ),
    "a folder that could not be loaded counts as loaded": M(
        "kvrt.engine.snapshots",
        "store.close(0.0)\n                raise",
        "store.close(0.0)",
        "runtime/test_cache_control.py",
    ),
    "half a character at the end of an answer is lost": M(
        "kvrt.engine.output",
        "            self._held += self._detokenizer.flush()",
        "            pass",
        "sched/test_output.py",
    ),
    "special tokens are found in a text that was changed": M(
        "kvrt.model.added",
        "normalized=text not in known",
        "normalized=text in known",
        "model/test_added.py",
    ),
    "a token that just pays is not guessed": M(
        "kvrt.drafting.drafter",
        "if chance < worth:",
        "if chance <= worth:",
        "sched/test_speculation.py",
    ),
    "colours are for those who did not ask for them": M(
        "kvrt_cli.terminal",
        'if self.color == "auto":',
        'if self.color != "auto":',
        "cli/test_terminal.py",
    ),
    "results may be anywhere": M(
        "kvrt.wrappers.dense",
        'facts.check_on_device("out", out)',
        "pass",
        "registry/test_checked_attention.py",
    ),
    "a residual has any width": M(
        "kvrt_kernels.linear",
        'check_rows("residual", residual, out_features)',
        "pass",
        "kernels/test_linear.py",
    ),
    "more tokens are asked for than there are numbers": M(
        "kvrt.sampling",
        '"min_tokens": Whole(0, 2**31 - 1)',
        '"min_tokens": Whole(0, 2**31 + 1)',
        "test_arguments.py",
    ),
    "after ctrl-c the shell goes on in the middle of a line": M(
        "kvrt_cli.main", "click.echo(err=True)", "pass", "cli/test_usage.py"
    ),
    "a copy that is measured copies nothing": M(
        "kvrt_kernels.gpu",
        "target.copy_(source)",
        "target.copy_(target)",
        "backends/gpu/test_gpu.py",
    ),
    "the end of a file is waited for": M(
        "kvrt.kv.tiers.blockfile", "if got == 0:", "if got < 0:", "tiers/test_blockfile.py"
    ),
    "numbers may be made into any number of bytes": M(
        "kvrt.model.bounds",
        'if isinstance(owner, int) and name == "to_bytes":',
        "if False:",
        "model/test_template_bounds.py",
    ),
    "attention has one thread": M(
        "kvrt_cpu.device",
        "NativeAttention(self.memory, threads)",
        "NativeAttention(self.memory, 1)",
        "backends/cpu/test_device.py",
    ),
    "there are more scores than tokens": M(
        "kvrt.model.gguf.tokens",
        "if len(scores) != len(words.tokens):",
        "if len(scores) < len(words.tokens):",
        "model/test_gguf_tokens.py",
    ),
    "revision zero is none": M(
        "kvrt.kv.limit", "if revision is not None:", "if revision:", "pages/test_limit.py"
    ),
    "a branch was right if any of its tokens was": M(
        "kvrt.drafting.drafter",
        "if at == 0 and len(guesses) > 1:",
        "if len(guesses) > 1:",
        "sched/test_speculation.py",
    ),
    "the doctor blames other programs for a CPU's memory": M(
        "kvrt_cli.checks.device",
        "        if not _in_host_memory(device):\n            fix =",
        "        if _in_host_memory(device):\n            fix =",
        "cli/test_doctor.py",
    ),
    "an empty list is a list of nothing": M(
        "kvrt_cli.prompts",
        "if isinstance(value, list) and value:",
        "if isinstance(value, list):",
        "cli/test_prompts.py",
    ),
    "a launch has as many programs along an axis as there are segments": M(
        "kvrt_kernels.triton.attention",
        "MOST = 65535",
        "MOST = 1 << 31",
        "triton/test_interpreted.py",
    ),
    "a bar of bytes is always full": M(
        "kvrt_cli.progress",
        "completed=done, total=total",
        "completed=total, total=total",
        "cli/test_terminal.py",
    ),
    "a second taker of a stream takes the first one's place": M(
        "kvrt.aio.stream", "if self._arrivals.awaited:", "if False:", "aio"
    ),
    "a slab may count more frames than it has": M(
        "kvrt.kv.tiers.host",
        "if used != sum(1 for number",
        "if used < sum(1 for number",
        "tiers/test_host.py",
    ),
    "random weights need more than a configuration": M(
        "kvrt.model.loader",
        'want="config" if dummy else "foreign"',
        'want="all" if dummy else "foreign"',
        "model/test_loader.py",
    ),
}
