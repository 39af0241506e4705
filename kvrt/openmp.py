"""How long OpenMP's threads wait awake between two kernels."""

import os
from collections.abc import MutableMapping

WAITING = {"OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": "2000"}


def wait_briefly(environ: MutableMapping[str, str] = os.environ) -> None:
    """Let GNU OpenMP's threads wait awake for about 0.1 ms, then sleep.

    Its default is about 20 ms on today's processors, and next to nothing once a process has more
    of its threads than there are processors. The first lets two busy programs on one machine stop
    each other (measured on two cores: 1 to 9 tokens/s where this gives 32); the second costs a
    small model 40 % of its decode speed, since 0.1 ms is longer than any pause between kernels.

    It must be called before torch is imported, which reads these variables once. Changes nothing
    if one of them is set. A program that embeds kvrt decides for itself: the command line and the
    test plug-in call it, the library does not.
    """
    if not any(name in environ for name in WAITING):
        environ.update(WAITING)
