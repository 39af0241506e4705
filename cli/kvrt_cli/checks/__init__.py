"""The checks of `kvrt doctor`, by group.

    system      the operating system, its memory and its limits
    software    Python, the libraries, the settings in the environment
    backends    who is installed, and whether it could run here
    device      an opened device, proved by doing

A check is a value; printing is `kvrt_cli.doctor`'s.
"""
