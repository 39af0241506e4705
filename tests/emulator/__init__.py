"""GPU drivers over host memory, so that the vendors' own bindings run where there is no GPU.

native      the drivers, in C
library     builds and loads one, and steers it
place       what torch sees there: memory of the host
__main__    runs any Python module on an emulated GPU
contract    the same calls on a real driver and an emulated one
inside      tests that run on an emulated GPU
"""
