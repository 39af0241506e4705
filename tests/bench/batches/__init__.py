"""What `ci/batches` measures: `kept` against the runtime in it, `beside` against vLLM's."""
