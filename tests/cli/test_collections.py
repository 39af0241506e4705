"""Streams of a server do not wait for collections of garbage."""

import json
import subprocess
import sys

PROBE = """
import gc, json, time
import kvrt.server.serve
from kvrt_cli.serve import spare_collections
spare_collections()
import kvrt
with kvrt.Runtime("tiny") as runtime:
    runtime.generate(["a"], kvrt.SamplingParams(max_tokens=1))
    print(json.dumps({"passed_over": gc.get_freeze_count(), "gone_through": len(gc.get_objects())}))
"""


def test_a_collection_passes_over_what_was_there_before_models_were_loaded() -> None:
    run = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    objects = json.loads(run.stdout)
    assert objects["passed_over"] > 100_000  # torch's
    assert objects["gone_through"] < 30_000
