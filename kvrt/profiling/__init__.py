"""Where an engine's time goes, what bounds it, and which settings are faster: by measurement.

recorder    watches a runtime, and keeps what it sees
tracks      of that, the life of each request
chrome      the same as a file for Perfetto and chrome://tracing
totals      the same as sums, and what was read and computed for it
bottleneck  of what was measured, what is to be changed first: a pure function
search      the best of many settings, by few measurements that are not exact
slo         what answers must keep to
"""
