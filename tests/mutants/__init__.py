"""Is a fault that anybody could make found by the tests? See `tests.mutants.lines`."""
