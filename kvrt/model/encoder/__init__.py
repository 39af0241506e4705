"""Encoders: models that read a text as a whole, in both directions. They keep no pages."""
