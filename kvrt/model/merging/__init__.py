"""Checkpoints that were fine-tuned from one model, merged into one: a tensor at a time."""

from typing import Literal

Method = Literal["linear", "slerp", "ties", "dare"]
