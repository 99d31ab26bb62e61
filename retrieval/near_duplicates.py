"""Documents that say the same in nearly the same words: MinHash (Broder 1997), one byte a hash (Li & König 2010)."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from functools import cache
from typing import Any, NamedTuple, Self

from infra.identity import content_id, short

SAME = 0.95
"""Estimated Jaccard similarity of word triples that makes a near-duplicate (standard error 0.02). In a document of 200
words that is one other word; two versions of a page, or two pages made from one template, lie well below."""
CANDIDATES = 0.85
LONGEST = 2_000_000
"""Characters above which a document is not compared: hashing its words would take seconds."""
LEAST_WORDS = 8
"""Words below which a document is not compared: nothing is gained by it."""
PERMUTATIONS = 128
SHINGLE = 3


class Fingerprint(NamedTuple):
    """What two documents are compared by."""

    minhash: bytes
    numbers: str

    @classmethod
    def of(cls, text: str) -> Self | None:
        """The fingerprint of a text, marks, case and white space aside; None when it is not to be compared."""
        words = re.findall(r"\w+", text.lower()) if len(text) <= LONGEST else []
        if len(words) < LEAST_WORDS:
            return None
        numbers = sorted(word for word in words if any(char.isdigit() for char in word))
        return cls(_minhash(words), short(content_id("numbers", numbers), 8))

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The fingerprint that `str` gave; None for anything else."""
        minhash, _, numbers = text.partition(":")
        try:
            found = cls(b64decode(minhash, validate=True), numbers)
        except ValueError:
            return None
        return found if len(found.minhash) == PERMUTATIONS else None

    def __str__(self) -> str:
        return f"{b64encode(self.minhash).decode()}:{self.numbers}"

    def same(self, other: Fingerprint) -> bool:
        """Whether two documents are near-duplicates: their words nearly the same, their numbers exactly.

        A price, a date or a version that differs is what a reader may look for, whatever surrounds it.
        """
        equal = sum(mine == theirs for mine, theirs in zip(self.minhash, other.minhash, strict=True))
        return self.numbers == other.numbers and equal >= SAME * PERMUTATIONS


class Fingerprints:
    """Fingerprints by document id, asked for the near-duplicate of another."""

    def __init__(self) -> None:
        from datasketch import MinHashLSH

        self._tables: Any = MinHashLSH(threshold=CANDIDATES, num_perm=PERMUTATIONS)
        self._held: dict[str, Fingerprint] = {}

    def put(self, document_id: str, fingerprint: Fingerprint) -> None:
        """Set the fingerprint of a document."""
        self.drop(document_id)
        self._held[document_id] = fingerprint
        self._tables.insert(document_id, _tabled(fingerprint))

    def drop(self, document_id: str) -> None:
        """Forget a document."""
        if self._held.pop(document_id, None) is not None:
            self._tables.remove(document_id)

    def like(self, fingerprint: Fingerprint, but: str) -> str:
        """The first document, by id, that is a near-duplicate of a fingerprint and is not `but`; '' when none is."""
        found = sorted(self._tables.query(_tabled(fingerprint)))
        return next((str(key) for key in found if key != but and fingerprint.same(self._held[key])), "")


def _minhash(words: list[str]) -> bytes:
    count = len(words) - SHINGLE + 1
    shingles = {" ".join(words[place : place + SHINGLE]) for place in range(count)}
    minhash = _blank().copy()
    minhash.update_batch([shingle.encode("utf-8", "replace") for shingle in sorted(shingles)])
    return bytes(int(value) & 0xFF for value in minhash.hashvalues)


def _tabled(fingerprint: Fingerprint) -> Any:
    import numpy as np

    minhash = _blank().copy()
    minhash.hashvalues = np.frombuffer(fingerprint.minhash, dtype=np.uint8).astype(np.uint64)
    return minhash


@cache
def _blank() -> Any:
    from datasketch import MinHash

    return MinHash(num_perm=PERMUTATIONS)
