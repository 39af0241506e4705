"""Adapters of low rank (Hu et al. 2021, arXiv 2106.09685): many for one model, several in a step.

y = W x + scale * B (A x)        A [rank, in], B [out, rank]
"""
