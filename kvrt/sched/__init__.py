"""Deciding what runs in a step. Pure planning on values: no device, no tensors."""
