"""Models that write what is said (Radford et al. 2022, Whisper, arXiv 2212.04356): an encoder of
sound, and a decoder whose tokens also attend to what the encoder made of it.

spec      their shape, as config.json has it
control   the tokens that say what is to be written, and those that never are
weights   their tensors
encoder   from features of sound to what the decoder attends to
decoder   tokens, step by step
loader    all of it, from a folder
"""

WHISPER = "WhisperForConditionalGeneration"
"""As config.json names them."""
