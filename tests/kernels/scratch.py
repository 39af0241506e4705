"""Attention over batches in which sequences of few and of many rows meet, each in a new thread.

Run by `test_memory.py` under a malloc that looks at what lies around each block when it is freed:
the kernels' working memory belongs to a thread, and is freed when that ends.
"""

import itertools
import threading

import torch

from kvrt.registry import load
from kvrt.spi import AttentionBatch, AttentionParams, KVLayout
from kvrt.testing.paged import PagedKV, fill_past

CONTEXT = 80

device = load("cpu").open()


def attend(batch: AttentionBatch, q: torch.Tensor) -> None:
    plan = device.attention.plan(batch)
    device.attention.run(plan, 0, q, torch.empty_like(q), AttentionParams(0.1))


for head_dim, group in itertools.product((64, 128, 256), (1, 4, 8)):
    layout = KVLayout.packed("float32", layers=1, kv_heads=1, head_dim=head_dim, page_size=16)
    with PagedKV(device, layout, 20) as paged:
        pages = [paged.take(CONTEXT) for _ in range(2)]
        for few, more in itertools.product((1, 2), (1, 2, 3, 5, 9, 40)):
            batch = paged.batch(pages, [CONTEXT, CONTEXT], [few, more])
            fill_past(batch)
            q = torch.randn(few + more, group, head_dim)

            thread = threading.Thread(target=attend, args=(batch, q))
            thread.start()
            thread.join()
device.close()
