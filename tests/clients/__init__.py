"""Clients, benchmarks and test suites of others, unmodified, against a real server: ci/clients."""
