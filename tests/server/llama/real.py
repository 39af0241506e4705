"""llama.cpp's server as xllamacpp has it in a process: `python real.py PORT MODEL KIND`.

It runs in an environment of its own, which has nothing of kvrt.
"""

import sys
import threading

import xllamacpp

port, model, kind = sys.argv[1:]
params = xllamacpp.CommonParams()
params.model.path = model
params.hostnames = ["127.0.0.1"]
params.port = int(port)
params.n_parallel, params.n_ctx = 2, 2048
params.use_jinja = params.endpoint_metrics = params.endpoint_props = params.endpoint_slots = True
if kind != "answers":
    pooling = {"vectors": "MEAN", "ranks": "RANK"}[kind]
    params.embedding = True
    params.pooling_type = getattr(xllamacpp.llama_pooling_type, f"LLAMA_POOLING_TYPE_{pooling}")
server = xllamacpp.Server(params)
threading.Event().wait()
