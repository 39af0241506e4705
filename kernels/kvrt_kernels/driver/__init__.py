"""A GPU backend over a driver's calls. A vendor's folder says what its driver calls things.

    calls     what a driver must be able to do for a device, in about twenty calls
    device    `kvrt.spi.Device` over them, made of: memory, copier, tickets, pinned
    probe     what is here of a vendor: a GPU, its driver, the Python binding
    backend   `kvrt.spi.Backend`, from both

What such a backend needs of torch and Triton is in `kvrt_kernels.gpu`.
"""
