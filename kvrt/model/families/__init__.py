"""What an architecture's name says that its config.json does not, as rows of facts.

family    what is so in all models of a family: the fields of the rows
decoders  the rows, those of the other modules too
mixtures, latents, hybrids, spaces, gemma4
          rows of families with experts, with latents, with recurrences, of these with state spaces,
          and of Gemma 4
scales, windows, rotary
          what config.json says of the arithmetic, the windows and the rotation, for all of them
"""
