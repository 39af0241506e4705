"""``kvrt route``: several servers of one model behind one address. Needs the extra ``route``.

client --> route --> forward ------> one of the servers ----> and back, as it comes
                     choosing        by what it has cached, what it has to do, and how fast it is
                     replicas        which servers there are, and how each one is doing
                     prefixes        what each one has cached: as it tells (`listening`), or likely

Nothing here computes, and no process is started: servers are addresses.
"""
