"""Benchmarks of a device beside its peers and its own limits; `tests.gpu` runs them all."""
