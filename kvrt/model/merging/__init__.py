"""Checkpoints that were fine-tuned from one model, merged into one: a tensor at a time."""
