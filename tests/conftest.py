"""What holds for all tests."""

from kvrt.openmp import wait_briefly

wait_briefly()  # before any test imports torch: tests share the machine with their own subprocesses
