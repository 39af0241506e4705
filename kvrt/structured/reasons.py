"""What llguidance says of a constraint, without what it quotes of it."""

import re

_SAYS = re.compile(r"^error: (.*)$", re.MULTILINE)
_PLACE = re.compile(r"^\d+\(\d+\): ")
_WORDS = re.compile(r"[A-Za-z ,-]*")


def reason(error: str) -> str:
    """What llguidance says, up to where it may quote."""
    if error.startswith("panic"):
        return "it is too large"
    said = _SAYS.findall(error)
    line = said[-1] if said else _PLACE.sub("", error)
    words = _WORDS.match(line)
    return (words[0].strip() if words else "") or "it is not valid"
