"""Forms with a file, in pieces of any size; the reference is the client that wrote them."""

import asyncio
import random
from collections.abc import AsyncIterator

import httpx
import pytest

from kvrt.server.errors import Refusal
from kvrt.server.wire.form import MAX_FIELD, MAX_FIELDS, MAX_HEADERS, MAX_OTHER, Form


async def taken(kind: str, body: bytes, cuts: list[int]) -> tuple[Form, bytes]:
    found = bytearray()

    async def write(data: bytes) -> None:
        found.extend(data)

    async def pieces() -> AsyncIterator[bytes]:
        for begin, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
            yield body[begin:end]

    form = Form(kind, write)
    await form.read(pieces())
    return form, bytes(found)


def read(kind: str, body: bytes, cuts: list[int] | None = None) -> tuple[Form, bytes]:
    """In pieces of 4 KiB, unless they are given."""
    return asyncio.run(taken(kind, body, cuts or list(range(4096, len(body), 4096))))


def written(data: bytes, name: str, fields: dict[str, str]) -> tuple[str, bytes]:
    request = httpx.Request("POST", "http://x", files={"file": (name, data)}, data=fields)
    return request.headers["content-type"], request.read()


@pytest.mark.parametrize("seed", range(24))
def test_a_form_reads_the_same_in_any_pieces(seed: int) -> None:
    rng = random.Random(seed)
    name = rng.choice(["a.jsonl", 'q"uo\\te', "näme", "a b;c=d"])
    fields = {
        f"field{n}": "".join(rng.choices("ab \u00e4-", k=rng.randint(0, 9))) for n in range(3)
    }
    kind, _ = written(b"", name, {})
    boundary = kind.partition("boundary=")[2].encode()
    likely = [b"\r\n", b"--", boundary[:5], b"\r\n--" + boundary[:9], b"x" * 70, b"\0", b"\r", b"-"]
    data = b"".join(rng.choices(likely, k=rng.randint(0, 40)))
    kind, body = written(data, name, fields)
    cuts = sorted(rng.choices(range(len(body)), k=rng.randint(0, 60)))
    if seed < 3:
        cuts = list(range(len(body)))
    form, found = read(kind, body, cuts)
    assert found == data
    assert form.fields == fields
    assert form.file is not None


KIND = "multipart/form-data; boundary=b"
HEAD = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n'
WRONG: dict[str, tuple[str, bytes]] = {
    "another kind": ("application/json", b"{}"),
    "no boundary": ("multipart/form-data", b""),
    "an odd boundary": ("multipart/form-data; boundary=\u00e9", b""),
    "nothing": (KIND, b""),
    "cut off": (KIND, HEAD % b"file" + b"data\r\n--b"),
    "no name": (KIND, b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--"),
    "no headers": (KIND, b"--b\r\n\r\nx\r\n--b--"),
    "endless headers": (KIND, b"--b\r\nX: " + b"x" * 2 * MAX_HEADERS),
    "a long field": (KIND, HEAD % b"purpose" + b"x" * 2 * MAX_FIELD + b"\r\n--b--"),
    "a long beginning": (KIND, b"x" * 2 * MAX_OTHER),
    "a long end": (KIND, HEAD % b"a" + b"x\r\n--b--" + b"x" * 2 * MAX_OTHER),
    "one field again and again": (KIND, (HEAD % b"a" + b"x\r\n") * 100 + b"--b--"),
    "two files": (KIND, HEAD % b"file" + b"x\r\n" + HEAD % b"file" + b"x\r\n--b--"),
    "many fields": (
        KIND, b"".join(HEAD % b"f%d" % n + b"x\r\n" for n in range(MAX_FIELDS + 2)) + b"--b--",
    ),
}  # fmt: skip


@pytest.mark.promise("P26")
@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_form_is_refused(name: str) -> None:
    with pytest.raises(Refusal) as caught:
        read(*WRONG[name])
    assert caught.value.status == 400


def test_what_stands_around_a_form_is_passed_over() -> None:
    body = b"before\r\n" + HEAD % b"purpose" + b"batch\r\n--b--\r\nafter \r\n--b\r\nmore"
    form, _ = read(KIND, body)
    assert form.fields == {"purpose": "batch"}
