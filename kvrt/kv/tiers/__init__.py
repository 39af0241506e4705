"""Where KV pages live outside the device: in host memory, on disk, and elsewhere.

    names       what a page is called: a SHA-256 chain over the tokens before it
    media       what stands in a sequence besides tokens, which names say, too
    host        slots in host memory that a device copies from and to
    disk        threads over a page file; nothing in it blocks the caller
    ahead       what requests that wait will need, read before their turn
    stores      all of them as one: pages go from host memory on to disk, or elsewhere
    remote      pages that several machines share
    pagefile    pages in two files: a tier and a snapshot are the same thing
    folder      where they live; one process has it
    files       the two, open, and the right to write to them
    format      the bytes of its index; `codec`: bodies of pages, as they are or compressed
    space       the room in both; `extents`: which blocks are free
    blockfile   read and written past the page cache, where that can be
    workers     threads that do what is queued, urgent things first
    buffers     the memory of pages
    config      ``--offload host:8GiB,disk:PATH:64GiB``

They know no policy but the order of last use: what leaves the device and comes back to it is the
scheduler's decision.
"""
