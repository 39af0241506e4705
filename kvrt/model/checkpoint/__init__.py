"""The safetensors files of a checkpoint, to weights in memory.

header      a file's header, checked in full before any tensor is touched
shards      which files there are, and which of them has each tensor
checkpoint  those files, checked against the model
apart       tensors of all experts, taken apart
slicing     the bytes that one rank reads
rows        how a tensor's rows lie in its file
targets     where its numbers go
blocks      reading it, block by block
filling     copying all of them
floats      tensors one by one, for small models whose layers are written out by hand
"""
