"""What a KV page is called, so that it is found again by anyone who has the same tokens.

    root = SHA-256(fingerprint of model, KV format and page layout, salt of the tenant)

    tokens  | t0 ... t15 | t16 ... t31 | t32 ...            pages of 16 tokens
    key       k0 = H(root, t0..t15)
                           k1 = H(k0, t16..t31)             H = SHA-256(parent, tokens as int32 LE)

Where a page has tokens that stand for an image, its key also says which image: H has a mark behind
the tokens (`kvrt.kv.tiers.media.mark_of`), made of SHA-256 over the image.

A key stands for all tokens up to its page, since keys and values depend on all of them. It is the
same in every process and on every machine. That two pages share a key is not expected to ever
happen, and of texts nothing relies on it: a `PageName` equals another only if parent and tokens do,
too.
"""

import hashlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from kvrt.kv.tiers.media import Medium, mark_of

KEY_BYTES = 32


@dataclass(frozen=True, slots=True, eq=True)
class PageName:
    """A full page of tokens and all that came before it.

    Args:
        key: 32 bytes, `page_key` of the other two, and of the images in it.
        parent: 32 bytes, the key of the page before it, or the root.
        tokens: ids of the page's own tokens, as many as a page has slots.
        tenant: whose it is, by `tenant_of` its root; says which pages to forget, and no more.
    """

    key: bytes
    parent: bytes
    tokens: tuple[int, ...]
    tenant: int = field(compare=False)

    def __hash__(self) -> int:
        return hash(self.key)  # which a bytes object computes once


class StoredName(NamedTuple):
    """What a page is called outside the device, where each group of layers has one of a name.

    Args:
        page: of its tokens.
        group: whose keys and values of them it holds.
    """

    page: PageName
    group: int = 0


def fingerprint(model: bytes, kv_format: str, layout: str) -> bytes:
    """32 bytes that differ wherever a page's bytes would mean something else.

    Args:
        model: a digest of the configuration and the weights.
        kv_format: the dtype of keys and values, and what quantised pages need to be read.
        layout: the order and sizes of the dimensions within a page.
    """
    return _digest(b"kvrt pages 1", model, kv_format.encode(), layout.encode())


def root_key(fingerprint: bytes, salt: str = "") -> bytes:
    """The parent of a sequence's first page. Tenants with different salts share no page."""
    return _digest(fingerprint, salt.encode())


def tenant_of(root: bytes) -> int:
    """32 bits that pages of one root share: so that they can be told when others before them are
    gone. One in 4 billion pairs of tenants has the same."""
    return int.from_bytes(root[:4], "little")


def page_key(parent: bytes, tokens: Sequence[int], mark: bytes = b"") -> bytes:
    """The key of the page that holds `tokens` and comes after the page `parent`.

    Args:
        mark: says which images it has.
    """
    return hashlib.sha256(parent + struct.pack(f"<{len(tokens)}i", *tokens) + mark).digest()


def chain(
    root: bytes, tokens: Sequence[int], page_size: int, media: Sequence[Medium] = ()
) -> Iterator[PageName]:
    """The names of all full pages of a sequence, the first one first."""
    parent, tenant = root, tenant_of(root)
    for start in range(0, len(tokens) - page_size + 1, page_size):
        page = tuple(tokens[start : start + page_size])
        key = page_key(parent, page, mark_of(media, start, start + page_size))
        yield PageName(key, parent, page, tenant)
        parent = key


def _digest(*parts: bytes) -> bytes:
    """SHA-256 of the parts, each after its length, so that none can be mistaken for two."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(struct.pack("<Q", len(part)))
        digest.update(part)
    return digest.digest()
