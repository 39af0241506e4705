"""OpenAI's files and batches, over `kvrt.batches`."""
