"""Identities: a tagged hash of canonical JSON for what has content, a time-ordered id for what happened."""

from __future__ import annotations

import hashlib
import json
import os
import random
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
    """A time-ordered unique id: UUID version 7 (RFC 9562, section 5.7) as 32 hex digits."""
    bits = _RANDOM.getrandbits
    return f"{time.time_ns() // 1_000_000:012x}7{bits(12):03x}{1 << 63 | bits(62):016x}"


# Seeded by the system, and apart from the generator that programs seed to repeat a run. Asking the system each time
# would give other threads the interpreter in the middle of `emit`, which costs up to 5 ms to get back.
_RANDOM = random.Random()
os.register_at_fork(after_in_child=_RANDOM.seed)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no canonical JSON form")
