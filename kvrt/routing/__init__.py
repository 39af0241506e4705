"""``kvrt route``: several servers of one model behind one address. Needs the extra ``route``.

client --> route --> forward ------> one of the servers ----> and back, as it comes
                     replicas        which servers there are, and how each one is doing
                     listening       what each one tells of what it has cached

Which one is asked is chosen by `kvrt.integrations.choosing`, and what it likely has cached is in
`kvrt.integrations.prefixes`.

Nothing here computes, and no process is started: servers are addresses.
"""
