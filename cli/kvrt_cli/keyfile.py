"""The file of --key-file: the key that a server wants."""

from pathlib import Path

from kvrt.errors import ConfigError

LONGEST = 4096


def read_key(path: Path | None) -> str | None:
    """Its one line; None: no file was named.

    Raises:
        ConfigError: there is none in it.
    """
    if path is None:
        return None
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        text = ""
    if not text or len(text) > LONGEST or not text.isprintable():
        raise ConfigError(f"--key-file: {str(path)!r:.200} holds no key, which is one line")
    return text
