"""The CPU backend: Linux virtual memory, native kernels, nothing to install."""
