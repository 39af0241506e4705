"""What `kvrt profile` and `kvrt tune` have in common, and how settings are searched."""
