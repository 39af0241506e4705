"""What it is worth, and what it costs, that several models keep within one budget of memory.

    rates     times to the first token where three models have bursts in turn
    table     what is promised to tenants, as numbers: fairness, guarantees, recovery
    swap      three models in memory for one, asked in turn
    engine    a process with one model, which does what it is told
    watch     what the ledger says that tenants hold, and what the system says

Models are the bundled one, whose weights take little: it is KV memory that is scarce.
"""
