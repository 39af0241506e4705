"""Weights that stay codes: what files hold, made into the plain form of `kvrt.spi.WeightFormat`.

ggml       blocks of GGUF files
"""
