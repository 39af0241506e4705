"""Tests that run on an emulated GPU.

    python -m tests.emulator cuda -m pytest tests/emulator/inside

Elsewhere none of them is collected; `tests/emulator/test_emulated.py` runs them for each vendor.
"""
