"""GGUF files as models: one file holds configuration, tokenizer, chat templates and weights."""
