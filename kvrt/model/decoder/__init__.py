"""One transformer for every supported architecture, driven by its spec.

decoder      a step, layer by layer
activations  the tensors it computes in
branches     what is around a layer's products
latent, experts, mixers
             latent attention, mixtures of experts, and layers with a recurrence
offloaded    the same with experts that are read as needed
predictor    a layer behind the last that guesses at further tokens
split        what ranks give each other within a step
seen         what stands in place of embeddings, and sees itself as a whole
rope         tables of the rotary embedding
graphs       steps recorded and replayed
ops, recurrence, pieces
             operators in torch, for devices that bring none of their own
"""
