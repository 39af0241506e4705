"""Experts of mixtures that are not all in memory: they are read from the model's files as needed.

forms      which experts are kept alike, and how many of them there is room for
residency  which of them are in which place, and which go first: values
reading    an expert from the checkpoint's files, checked each time
pool       the places in memory, and what is brought to them
"""
