"""Asking from an event loop."""
