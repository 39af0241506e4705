"""Where an engine's time goes, what bounds it, and which settings are faster: by measurement.

bottleneck  of what was measured, what is to be changed first: a pure function
"""
