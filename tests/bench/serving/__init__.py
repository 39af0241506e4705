"""What a server costs beside the runtime in it, and how it stands beside others: ``ci/serving``.

Everything is measured by clients over HTTP on this machine, in one run: servers of a comparison
are asked in turns.
"""
