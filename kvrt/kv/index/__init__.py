"""Which pages are found again, and which are given up first. Values: no device, no tensors.

prefix      finds pages by their names
ends        what can be given up, that of least worth first
tenants     whose pages go first: of who has most
shares      for what: how much each tenant is due
eviction    policies: what a cached page is worth
outside     where a sequence can resume with what is outside the device
reuse       names the tokens of sequences, and begins others with what was computed for them
events      pages that were named and given up, for whoever follows
cost        whether it is cheaper to move pages or to compute them anew
"""
