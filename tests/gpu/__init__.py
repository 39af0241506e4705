"""Everything that needs a GPU, in one run: see `tests.gpu.__main__`, which ``ci/gpu`` calls.

The tests here run on any backend: ``pytest tests/gpu -m extra --kvrt-backend NAME``.
"""
