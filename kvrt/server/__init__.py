"""``kvrt serve``: a runtime over HTTP, by the APIs that clients speak. Needs the extra ``serve``.

client --> gate ------> protocol ----------> asking ----------> kvrt.AsyncRuntime
           keys, hosts  fields to prompts    one call for       streams
           and limits   and back             all protocols
"""
