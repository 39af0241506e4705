"""kvrt beside other engines on the CPU: the same models and prompts, turn by turn, in one run."""
