"""The order of chunks for a question: dense and BM25 side by side, fused, and once more with feedback.

The figures behind the constants are nDCG@10 on the development half of the questions (every second one) of CACM
(3,204 abstracts) and of chunking_evaluation (1,726 chunks of 180 tokens); means of the two sets: BM25 0.630, dense
0.515, reciprocal rank fusion with k = 60 0.627, this without feedback 0.664, with feedback 0.678.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from retrieval.index.protocol import Hit, SparseVector, VectorIndex

if TYPE_CHECKING:
    import numpy as np

Mode = Literal["bm25", "dense", "hybrid", "hybrid+rerank"]
MODES: tuple[Mode, ...] = ("bm25", "dense", "hybrid", "hybrid+rerank")
DEFAULT_MODE: Mode = "hybrid+rerank"

DEPTH = 200
"""Hits of each leg that are fused; 100 give 0.6 points less."""
LEXICAL_WEIGHT = 0.55
"""Share of BM25 in a fused score; 0.5 and 0.6 give 0.5 points less and as much."""
FEEDBACK_CHUNKS = 3
FEEDBACK_WEIGHT = 0.5
"""How much of the first chunks' mean vector is added to the question's: 0.3 gives 0.3 points less."""
SAMPLE = 512
"""Vectors whose mean cosine with the question is what an unrelated chunk has."""
SMALLEST_SAMPLE = 30
"""In a smaller index the related chunks are too large a part of it."""


def background(index: VectorIndex) -> np.ndarray | None:
    """The mean of a random sample of an index's dense vectors, shape (d,); None when the index is too small."""
    sample = index.sample(SAMPLE)
    return sample.mean(axis=0) if len(sample) >= SMALLEST_SAMPLE else None


class Ranking:
    """Ranks the chunks of one opened index, whose `background` is given so that many questions can share it."""

    def __init__(self, index: VectorIndex, background: np.ndarray | None) -> None:
        self._index = index
        self._background = background

    def rank(self, vector: np.ndarray, terms: SparseVector, mode: Mode = DEFAULT_MODE) -> Ranked:
        """Chunks for a question's dense vector (norm 1) and terms, best first."""
        lexical = self._index.search_sparse(terms, DEPTH) if mode != "dense" else []
        dense = self._index.search_dense(vector, DEPTH) if mode != "bm25" else []
        if mode in ("bm25", "dense"):
            return Ranked(lexical or dense, dense)
        fused = fuse(dense, lexical, self._unrelated(vector))
        if mode == "hybrid" or not fused:
            return Ranked(fused, dense)
        closer = self._with_feedback(vector, [hit.chunk_id for hit in fused[:FEEDBACK_CHUNKS]])
        second = self._index.search_dense(closer, DEPTH)
        return Ranked(fuse(second, lexical, self._unrelated(closer)), dense)

    def _with_feedback(self, vector: np.ndarray, chunk_ids: Sequence[str]) -> np.ndarray:
        """The question moved towards the chunks found first (Rocchio, "Relevance feedback in information retrieval",
        1971, with the first chunks taken as relevant)."""
        import numpy as np

        vectors = self._index.vectors(chunk_ids)
        if not len(vectors):
            return vector
        moved = vector + FEEDBACK_WEIGHT * vectors.mean(axis=0)
        return np.asarray(moved / max(float(np.linalg.norm(moved)), 1e-9), dtype=np.float32)

    def _unrelated(self, vector: np.ndarray) -> float:
        return max(0.0, float(self._background @ vector)) if self._background is not None else 0.0


class Ranked:
    """Hits best first, and the cosines of the question's own vector."""

    def __init__(self, hits: Sequence[Hit], dense: Sequence[Hit]) -> None:
        self.hits = hits
        self.cosines = {hit.chunk_id: hit.score for hit in dense}
        """Chunk id to cosine for the nearest chunks; empty when the mode has no dense leg."""


def fuse(dense: Sequence[Hit], lexical: Sequence[Hit], unrelated: float = 0.0) -> list[Hit]:
    """Hits with fused scores, 0 to 1, best first.

    Each leg's scores are scaled so that its best is 1 and what an unrelated chunk has is 0 (cosine `unrelated`; no
    common term for BM25): a leg in which everything is about equally far says little. A chunk absent from a leg has 0
    there. No statistic of the lists enters, so neither their depth nor the size of the index changes the meaning.
    """
    near, worded = _scaled(dense, unrelated), _scaled(lexical, 0.0)
    fused = [
        hit._replace(
            score=LEXICAL_WEIGHT * worded.get(hit.chunk_id, 0.0) + (1 - LEXICAL_WEIGHT) * near.get(hit.chunk_id, 0.0)
        )
        for hit in {hit.chunk_id: hit for hit in [*dense, *lexical]}.values()
        if hit.chunk_id in near or hit.chunk_id in worded
    ]
    return sorted(fused, key=lambda hit: (-hit.score, hit.chunk_id))


def _scaled(hits: Sequence[Hit], zero: float) -> dict[str, float]:
    best = max((hit.score for hit in hits), default=0.0)
    if best <= zero:
        return {}
    return {hit.chunk_id: max(0.0, (hit.score - zero) / (best - zero)) for hit in hits}
