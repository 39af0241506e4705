"""Text to token ids and back, by the files that come with a model.

tokenizer    tokenizer.json, through the library that defines it
added        tokens that side files add
patterns     patterns without end, which the library must not be given
detokenizer  token ids to text, one at a time
"""
