"""Guesses at a sequence's next tokens, and what they are worth. Values: no device, no tensors."""
