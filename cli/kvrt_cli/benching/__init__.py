"""The commands of ``kvrt bench``: a model's tokens per second, and a server under load."""
