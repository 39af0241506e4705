"""The memory of keys and values: on the device, and outside it.

pages       the page table as a value
index       which pages are found again by their tokens, and which are given up first
tiers       pages outside the device: in host memory, on disk
seq         one sequence: its tokens, and how far they are computed
cache       the page table, kept in step with the pages of an executor
rows        a batch of sequences in it: rows that grow together, fork and end
limit       how much memory they may take
spare       how much of it is kept that no page needs
stats       where the cache stands; `picture`: where in it pages are
offload     moves pages between the device and the tiers
memory      keeps all of them in step: what the engine sees
"""
