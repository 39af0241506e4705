"""KV pages that several machines share, over TCP.

    key         that all who share pages have
    frames      what goes over a connection, and how each end knows the other
    owed        what a store was asked for, and how long that may take
    desk        what a store is known to have, and what it is still to be asked
    client      `RemoteStore`: a tier of pages that others have, beside host memory and disk
    shelves     what a store keeps: in memory, or in page files
    server      the store: one process, or one in each machine

    prefill  -- pages, once they have names --> store -- names at once, pages when asked --> decode

Whatever happens to a store, a connection or a page costs a miss: the page is computed.
"""
