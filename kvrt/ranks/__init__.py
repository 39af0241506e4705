"""Several processes that compute one model: each has a device, and a part of the model.

executor    what the engine of rank 0 asks; the others do the same
others      the other ranks, as rank 0 sees them: asked, waited for, and named if they fail
rank        what another rank does: ``python -m kvrt.ranks.rank``
starting    processes of this machine
messages    what is said
link        how: a socket
"""
