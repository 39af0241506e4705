"""The page table as a value, and the ops that lead from one to the next.

    geometry    how large a page is, and which chunks lie under it
    group       layers that keep memory alike: how far back they see
    ops         Map, Unmap, Copy, Move, Scrub
    placement   which chunks are mapped, and which pages in them are free
    holders     who holds each page
    lanes       both of each group of layers; what the groups share is the limit
    contents    which pages hold which sequence's tokens, to look at
    table       the same to work with; every operation gives the next table
    integrity   the rules that hold in every table
    rows        a batch's page table as an array, kept from step to step

None of them knows of devices and tensors: `kvrt.sched` plans on them, `kvrt.executor` carries out.
"""
