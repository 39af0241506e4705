"""The tables of batches, for every database that keeps them."""

VERSION = 2

TABLES = """
CREATE TABLE files (
    num {number},
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    purpose TEXT NOT NULL,
    name TEXT NOT NULL,
    nbytes BIGINT NOT NULL,
    created BIGINT NOT NULL,
    expires BIGINT
);
CREATE INDEX files_of ON files (owner, num);
CREATE TABLE batches (
    num {number},
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    input TEXT NOT NULL,
    output TEXT NOT NULL,
    errors TEXT NOT NULL,
    period TEXT NOT NULL,
    created BIGINT NOT NULL,
    expires BIGINT,
    status TEXT NOT NULL,
    "end" TEXT,
    times TEXT NOT NULL,
    metadata TEXT,
    problems TEXT NOT NULL,
    total BIGINT NOT NULL,
    done BIGINT NOT NULL,
    failed BIGINT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    cached_tokens BIGINT NOT NULL,
    said_tokens BIGINT NOT NULL,
    fingerprint {bytes} NOT NULL,
    files_expire BIGINT,
    priority BIGINT NOT NULL,
    journal_end BIGINT NOT NULL
);
CREATE INDEX batches_of ON batches (owner, num);
CREATE TABLE kinds (
    batch BIGINT NOT NULL,
    number BIGINT NOT NULL,
    url TEXT NOT NULL,
    model TEXT NOT NULL,
    PRIMARY KEY (batch, number)
){packed};
CREATE TABLE lines (
    batch BIGINT NOT NULL,
    kind BIGINT NOT NULL,
    key {bytes} NOT NULL,
    number BIGINT NOT NULL,
    name {bytes} NOT NULL,
    at BIGINT NOT NULL,
    size BIGINT NOT NULL,
    state BIGINT NOT NULL,
    worker BIGINT NOT NULL,
    journal BIGINT NOT NULL,
    record_at BIGINT NOT NULL,
    record_size BIGINT NOT NULL,
    PRIMARY KEY (batch, kind, key, number)
){packed};
CREATE UNIQUE INDEX line_names ON lines (batch, name);
CREATE UNIQUE INDEX line_numbers ON lines (batch, number);
CREATE TABLE deliveries (
    num {number},
    id TEXT NOT NULL UNIQUE,
    body {bytes} NOT NULL,
    created BIGINT NOT NULL,
    tries BIGINT NOT NULL,
    due BIGINT
)
"""


def statements(*, number: str, bytes: str, packed: str) -> list[str]:
    """What makes the tables.

    Args:
        number: the type of a primary key that counts, in the database's words.
        bytes: that of bytes.
        packed: what follows a table that is looked up by its primary key alone.
    """
    return TABLES.format(number=number, bytes=bytes, packed=packed).split(";")
