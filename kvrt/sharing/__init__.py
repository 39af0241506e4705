"""One device's memory, shared by many processes: who may hold how much of it.

    share     what a user says to share one, and where its ledger lies
    fair      who is due what, of numbers alone
    ledger    the file in which tenants of a device say what they hold, and its locks
    bell      how one that waits is woken by another
    figures   what a tenant tells of its work, for people who look
    looking   all shares, for people who look
    orders    what somebody outside asks of a tenant, and what came of it
    tenant    one tenant: takes memory before it is mapped, gives it back, sees what others are due

There is no daemon. What a process holds goes back when it ends, however it ends.
"""
