"""Near-duplicates: MinHash candidates (Broder 1997) confirmed by the exact Jaccard similarity of word shingles."""

from __future__ import annotations

import re
from typing import Any

from infra.identity import short, text_hash

JACCARD = 0.8
PERMUTATIONS = 128
CANDIDATES = 0.6
"""The hash tables are asked below the threshold, because at the threshold itself they miss a part."""


class SeenTexts:
    """Texts by word shingles; says whether a new one nearly equals one seen before."""

    def __init__(self, shingle: int = 3) -> None:
        from datasketch import MinHashLSH

        self._shingle = shingle
        self._tables: Any = MinHashLSH(threshold=CANDIDATES, num_perm=PERMUTATIONS)
        self._seen: dict[str, frozenset[str]] = {}

    def like(self, text: str) -> str:
        """The key of a text seen before with a Jaccard similarity of at least 0.8; '' when there is none."""
        shingles = self._shingles(text)
        for key in self._tables.query(_signature(shingles)):
            other = self._seen[key]
            if len(shingles & other) >= JACCARD * len(shingles | other):
                return str(key)
        return ""

    def add(self, text: str) -> str:
        """Remember a text; its key."""
        key = short(text_hash(text), 16)
        if key not in self._seen:
            self._seen[key] = self._shingles(text)
            self._tables.insert(key, _signature(self._seen[key]))
        return key

    def _shingles(self, text: str) -> frozenset[str]:
        words = re.findall(r"\w+", text.lower())
        count = max(1, len(words) - self._shingle + 1)
        return frozenset(" ".join(words[place : place + self._shingle]) for place in range(count))


def _signature(shingles: frozenset[str]) -> Any:
    from datasketch import MinHash

    signature = MinHash(num_perm=PERMUTATIONS)
    signature.update_batch([shingle.encode() for shingle in sorted(shingles)])
    return signature
