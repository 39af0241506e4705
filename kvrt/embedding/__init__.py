"""Texts as vectors, which are near to each other where the texts mean the same."""
