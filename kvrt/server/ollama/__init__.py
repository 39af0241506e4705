"""Ollama's API: chat, generate, and what it says of models."""
