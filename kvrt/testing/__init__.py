"""Tools to test a backend, and to test what is built on one.

suite        the conformance kit: ``pytest --pyargs kvrt.testing.suite --kvrt-backend NAME``
plugin       the pytest plug-in that adds ``--kvrt-backend``; `subject`: what it was given
reference    paged attention and the dense operators as plain arithmetic
recurrence, experts
             the same of recurrent layers and of mixtures of experts
matrices     what weights that are codes mean; `packing` multiplies them in plain torch
operators    what kvrt asks of torch on a device, an example of each
paged        KV pages with known content on any device
host         what the operating system says about this process
chaos        a device that fails and delays within the rules
hazards      who may still use which memory
mutants      devices with one deliberate fault each, which the kit must find
"""
