"""Identities: a tagged hash of canonical JSON for what has content, a time-ordered id for what happened."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """A frozen value: equal by content, no I/O, unknown fields refused."""

    # A number that JSON does not know is written as what it is: silently turned to null it could not be refused.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, ser_json_inf_nan="constants")


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no white space: equal values give equal bytes.

    Pydantic values are dumped in JSON mode first. NaN and infinities raise `ValueError` (RFC 8259 has none).
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_plain
    ).encode()


def content_id(kind: str, value: Any) -> str:
    """`sha256:` + 64 hex digits over the kind and the canonical JSON of the value."""
    return "sha256:" + hashlib.sha256(kind.encode() + b"\0" + canonical_json(value)).hexdigest()


def text_hash(text: str) -> str:
    """`sha256:` + 64 hex digits over the UTF-8 bytes of a text (lone surrogates are replaced)."""
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def file_hash(path: Path) -> str:
    """`sha256:` + 64 hex digits over a file's bytes, read in blocks of 4 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return "sha256:" + digest.hexdigest()


def short(identity: str, digits: int = 12) -> str:
    """The first hex digits of a `sha256:` identity, for file names and tables."""
    return identity.removeprefix("sha256:")[:digits]


def new_id() -> str:
    """A time-ordered unique id: UUID version 7 (RFC 9562, sections 5.7 and 6.2) as 32 hex digits."""
    return f"{time.time_ns() // 1_000_000:012x}{_TAIL.head}{next(_TAIL.count):016x}"


class _Tail:
    """The part of an id after its time: random for each process, and one more each time."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        # From the system, so that programs that seed a generator to repeat a run do not repeat their ids. Asked once:
        # each time it would let other threads have the interpreter in the middle of `emit`, up to 5 ms long.
        bits = int.from_bytes(os.urandom(10), "big")
        self.head = f"7{bits >> 68:03x}"
        self.count = itertools.count(1 << 63 | bits & ((1 << 61) - 1))


_TAIL = _Tail()
os.register_at_fork(after_in_child=_TAIL.renew)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no canonical JSON form")
