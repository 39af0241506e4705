"""One module an engine, each with a `Driver`; it is imported by the Python that has the engine."""
