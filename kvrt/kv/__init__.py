"""The memory of keys and values: on the device, and outside it.

pages       the page table as a value, and what carries its changes out
index       which pages are found again by their tokens, and which are given up first
tiers       pages outside the device: in host memory, on disk
seq         one sequence: its tokens, and how far they are computed
cache       the pages on the device, and their limit
offload     moves pages between the device and the tiers
memory      keeps all of them in step: what the engine sees
"""
