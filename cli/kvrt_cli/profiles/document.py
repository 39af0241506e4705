"""A file of YAML as entries that know their lines.

It says texts, lists of texts, and tables of both. A text is what it looks like: ``no``, ``0x10``
and ``1e3`` are as on a command line, and what they mean is for an option to say.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvrt.errors import ConfigError
from kvrt_cli.errors import of_the_system

if TYPE_CHECKING:
    import yaml

MOST = 1 << 20
"""Bytes of a file."""
DEEPEST = 5
"""Tables in tables; aliases may make them endless."""
CORE = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class Entry:
    """A value, and the line of its key, from 1 on; None: the key has none."""

    value: "str | tuple[str, ...] | dict[str, Entry] | None"
    line: int


def refused(where: str, line: int, reason: str, fix: str = "") -> ConfigError:
    return ConfigError(f"{where}, line {line}: {reason}", fix=fix)


def read(path: Path, where: str) -> dict[str, Entry]:
    """The table that a file is.

    Args:
        where: what errors call the file.

    Raises:
        ConfigError: it cannot be read, or is not YAML of this form.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST + 1)
    except (OSError, ValueError) as error:  # a name with a zero is a ValueError
        reason = of_the_system(error) if isinstance(error, OSError) else str(error)
        raise ConfigError(f"the profile cannot be read: {reason}") from None
    if len(data) > MOST:
        raise ConfigError(f"{where} is no profile: it has more than {MOST:,} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise refused(where, line, "it is not UTF-8", "save it as UTF-8") from None
    return parse(text, where)


def parse(text: str, where: str) -> dict[str, Entry]:
    """The table that a text is; see `read`."""
    import yaml

    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = " ".join(filter(None, [error.context, error.problem]))
        raise refused(
            where, mark.line + 1 if mark else 1, f"this is not YAML: {reason}",
            "what has a colon, a hash or a quote in it stands in quotes",
        ) from None  # fmt: skip
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else "it is nested too deep"
        raise ConfigError(f"{where} is not YAML: {reason:.200}") from None
    if node is None:
        raise ConfigError(f"{where} says nothing", fix="kvrt profile-config new NAME begins one")
    if not isinstance(node, yaml.MappingNode):
        raise refused(where, 1, "a profile is keys with values", "begin it with a command: serve:")
    return _table(node, where, 1)


def _table(node: "yaml.MappingNode", where: str, depth: int) -> dict[str, Entry]:
    import yaml

    found: dict[str, Entry] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise refused(where, line, "a key is a word")
        name = key.value
        if key.tag == f"{CORE}merge":
            fix = "say what several commands have in common under runtime"
            raise refused(where, line, "<< (a merge) is not known", fix)
        if name in found:
            reason = f"{name:.60} stands here a second time; first in line {found[name].line}"
            raise refused(where, line, reason, "delete one of them")
        found[name] = Entry(_value(value, where, line, depth), line)
    return found


def _value(node: Any, where: str, line: int, depth: int) -> Any:
    import yaml

    if depth > DEEPEST:
        raise refused(where, line, "it is nested too deep")
    if not node.tag.startswith(CORE) or ":python" in node.tag:
        raise refused(where, line, f"the tag {node.tag:.60} is not known", "delete it")
    if isinstance(node, yaml.MappingNode):
        return _table(node, where, depth + 1)
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            if not isinstance(item, yaml.ScalarNode):
                raise refused(where, item.start_mark.line + 1, "a list has texts and numbers only")
        return tuple(item.value for item in node.value)
    return None if node.tag == f"{CORE}null" else node.value
