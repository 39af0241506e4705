"""The page table as a value, the ops that lead from one to the next, and what carries them out.

    geometry    how large a page is, and which chunks lie under it
    group       layers that keep memory alike: how far back they see
    ops         Map, Unmap, Copy, Move, Scrub
    placement   which chunks are mapped, and which pages in them are free
    holders     who holds each page
    lanes       both of each group of layers; what the groups share is the limit
    table       which pages hold which sequence's tokens; every operation gives the next table
    integrity   the rules that hold in every table
    rows        a batch's page table as a tensor, kept from step to step
    pool        chunks that are created and not mapped
    backing     the span, and the chunks mapped in it
    apply       carries ops out on a device, all of them or none

The first eight know nothing of devices and tensors; `kvrt.sched` plans on them.
"""
