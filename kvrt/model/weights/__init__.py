"""Which weights a decoder has, what they are made of, and where they lie.

weights   all of them, laid out
attention, experts, recurrences
          those of one kind of layer
slices    the rows that one rank has
names     what checkpoints call their tensors; with `hybrids`, of `naming`'s parts
layers    views of them, for the decoder
arena     the block of memory they lie in
dummy     random ones, for a model of which there is only the shape
resident  weights that may leave the memory, and come back
"""
