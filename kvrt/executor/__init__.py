"""The executor: the one object that touches devices. What is above it are values.

interface   what the engine and the KV memory ask of it, and the values they hand it
local       the executor of one device in this process
apply       carries ops out on a device, all of them or none
mapped      a span, and the chunks mapped in it
backing     that of a group of layers, and what is where in it
pool        chunks that are created and not mapped
"""
