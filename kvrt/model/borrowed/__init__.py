"""Architectures that kvrt does not know, through transformers' own modules, over kvrt's pages."""
