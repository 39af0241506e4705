"""kvrt runs language models, and manages their KV caches, on whatever hardware is there."""
