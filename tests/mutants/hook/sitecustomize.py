"""Changes one line of one module as it is imported: in this process, and in those it starts.

Python imports a `sitecustomize` on its path at every start. See `tests.mutants.run`.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import json
import linecache
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType


class _Changed(importlib.machinery.SourceFileLoader):
    """Loads a module in which one text is replaced, and notes that it was loaded."""

    old = new = seen = ""

    def get_code(self, fullname: str) -> CodeType:
        source = self.get_data(self.path).decode()
        assert source.count(self.old) == 1, f"{self.path}: not there once: {self.old}"
        Path(self.seen).touch()
        source = source.replace(self.old, self.new)
        # Triton compiles the text of its kernels, which it finds here; without a time, it stays.
        linecache.cache[self.path] = (len(source), None, source.splitlines(True), self.path)
        return compile(source, self.path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, module: str, old: str, new: str, seen: str) -> None:
        self._module = module
        self._change = {"old": old, "new": new, "seen": seen}
        self._looking = False

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self._module or self._looking:
            return None
        self._looking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._looking = False
        assert spec is not None
        assert spec.origin is not None
        loader = type("Changed", (_Changed,), self._change)(name, spec.origin)
        return importlib.util.spec_from_file_location(name, spec.origin, loader=loader)


if change := os.environ.get("LINE_MUTANT"):
    sys.meta_path.insert(0, _Finder(**json.loads(change)))
