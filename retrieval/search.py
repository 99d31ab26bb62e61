"""Search: chunks ranked, repetitions folded, and nothing when nothing is relevant."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from infra.embedder import Embedder
from retrieval.index.protocol import Hit, VectorIndex
from retrieval.ranking import Ranking, background
from retrieval.sparse import encode_query, terms
from store.documents import Chunk, DocumentRow
from store.opening import Store
from streams.protocols import RetrievedChunk, SearchResult

if TYPE_CHECKING:
    import numpy as np

CANDIDATES = 40
"""Ranked chunks whose texts are looked at, or four times the limit."""
PER_DOCUMENT = 3
CROWDED = 0.8
SAME_WORDS = 0.85
RELEVANT = 1.3
"""Least relevance to be shown. Of questions to CACM, chunking_evaluation and XQuAD (decided on half of them, measured
on the other) 98.9 % reach it in their own collection, 36 % in one of the other two."""
SUFFICIENT = 1.75
"""Least relevance to write from: 93.8 % and 2.8 % reach it."""
COSINE_WEIGHT = 3.0
UNRELATED = 0.2
"""Chunks below this part of the best one's score are no results."""
FIRST = 5

_WRITING = re.compile(
    r"^\W*(?:(?:hi|hello|hey)\b[^.!?]{0,20}[,.!]\s*)?(?:(?:could|can|would|will) you\s+)?(?:please\s+|kindly\s+)?"
    r"(?:help me (?:to )?)?(?:draft|write|create|compose|generate|prepare|produce|give me|make)\s+(?:me\s+|us\s+)?"
    r"(?:an?\s+|the\s+|some\s+|one\s+|up\s+)*(?:[\w-]+\s+){0,4}?"
    r"(?:posts?|articles?|tweets?|threads?|paragraphs?|summary|summaries|notes?|explanations?|texts?|pieces?|"
    r"introductions?|captions?|updates?|overviews?)\b[\s,:]*"
    r"(?:(?:that|which)\s+)?(?:\w+s\s+)?(?:(?:about|on|discuss(?:es|ing)?|explain(?:s|ing)?|describ(?:es|ing)|"
    r"cover(?:s|ing)|regarding|concerning|introduc(?:es|ing)|compar(?:es|ing)|for|of|to)\s+)*",
    re.IGNORECASE,
)
_INTEREST = re.compile(
    r"\b(?:i(?:'m| am)|we(?:'re| are))\s+(?:\w+ly\s+)?interested in\b|\bplease\b|\bthank(?:s| you)\b", re.IGNORECASE
)
_AUDIENCE = re.compile(
    r"\b(?:to|for|aimed at)\s+(?:\w[\w-]*\s+){0,3}(?:engineers|developers|programmers|beginners|managers|students|"
    r"people|teams?|audience|readers|newcomers|professionals|executives|scientists|founders|everyone|network)\b",
    re.IGNORECASE,
)


class IndexReader(Protocol):
    """What a retriever needs of the feature pipeline."""

    @property
    def build(self) -> str:
        """Index build id."""
        ...

    def read(self) -> AbstractContextManager[tuple[VectorIndex, dict[int, int]]]:
        """The index to search and its position. Raises `NotFound` when there is none."""
        ...


class HybridRetriever:
    """`Retriever` over one index build and the store's chunks."""

    def __init__(self, reader: IndexReader, store: Store, embedder: Embedder) -> None:
        self._reader = reader
        self._store = store
        self.embedder = embedder
        self._background: tuple[dict[int, int], np.ndarray | None] | None = None

    def search(self, question: str, *, limit: int = 8) -> SearchResult:
        """The most relevant chunks, best first, see `select`; scores are fused, 0 to 1.

        Empty when nothing is relevant. Raises `NotFound` when nothing was ever ingested.
        """
        subject = subject_of(question)
        vector = self.embedder.embed([subject])[0]
        with self._reader.read() as (index, position):
            ranked = Ranking(index, self._background_of(index, position)).rank(vector, encode_query(subject))
        candidates = self._chunks(ranked.hits[: max(CANDIDATES, 4 * limit)])
        best = max(ranked.cosines.values(), default=0.0)
        reached = relevance(candidates, subject, best)
        return SearchResult(
            chunks=tuple(select(related(candidates), limit)) if reached >= RELEVANT else (),
            index_build=self._reader.build,
            index_position={str(partition): offset for partition, offset in position.items()},
            best_similarity=best,
            sufficient=reached >= SUFFICIENT,
        )

    def _background_of(self, index: VectorIndex, position: dict[int, int]) -> np.ndarray | None:
        known = self._background
        if known is None or known[0] != position:
            known = self._background = (position, background(index))
        return known[1]

    def _chunks(self, hits: Sequence[Hit]) -> list[RetrievedChunk]:
        """The chunks of hits in their order; those the store dropped since the snapshot are left out."""
        chunks = self._store.documents.chunks([hit.chunk_id for hit in hits])
        rows = self._store.documents.source_of(sorted({chunk.document_id for chunk in chunks.values()}))
        return [
            _retrieved(chunks[hit.chunk_id], rows[hit.document_id], hit.score)
            for hit in hits
            if hit.chunk_id in chunks and hit.document_id in rows
        ]


def subject_of(question: str) -> str:
    """What a writing request is about: 'Could you draft a post on X?' to 'X?'; other questions as they are."""
    subject, requests = _WRITING.subn("", question, count=1)
    if requests:
        subject = _AUDIENCE.sub(" ", subject)
    subject = _INTEREST.sub(" ", subject)
    subject = re.sub(r"\s+", " ", subject).strip()
    return subject if terms(subject) else question


def relevance(chunks: Sequence[RetrievedChunk], subject: str, best: float) -> float:
    """Whether the sources have to do with the subject, 0 to 4: `COSINE_WEIGHT` times the best cosine, and the share of
    the subject's terms that one of the first chunks holds. Together they tell a collection's own questions from
    foreign ones better (area under the curve 0.986) than the cosine does alone (0.979)."""
    wanted = set(terms(subject))
    lexical = max((coverage(wanted, chunk) for chunk in chunks[:FIRST]), default=0.0)
    return COSINE_WEIGHT * max(0.0, best) + lexical


def related(chunks: Sequence[RetrievedChunk]) -> list[RetrievedChunk]:
    """The chunks, best first, without those that are far below the best one."""
    return [chunk for chunk in chunks if chunk.score >= UNRELATED * chunks[0].score]


def coverage(wanted: set[str], chunk: RetrievedChunk) -> float:
    """The share of distinct terms that a chunk with its title and heading holds, 0 to 1."""
    if not wanted:
        return 0.0
    return len(wanted & set(terms(f"{chunk.title} {chunk.heading} {chunk.text}"))) / len(wanted)


def select(chunks: Sequence[RetrievedChunk], limit: int) -> list[RetrievedChunk]:
    """The best chunks that repeat no better one.

    After `PER_DOCUMENT` of one document its further ones lose a fifth of their score, so they come only when other
    documents have nothing close.
    """
    kept: list[RetrievedChunk] = []
    words: list[set[str]] = []
    per_document: Counter[str] = Counter()
    for chunk in chunks:
        own = set(terms(chunk.text))
        if any(_same(own, other) for other in words):
            continue
        words.append(own)
        if per_document[chunk.document_id] >= PER_DOCUMENT:
            chunk = chunk.model_copy(update={"score": chunk.score * CROWDED})
        per_document[chunk.document_id] += 1
        kept.append(chunk)
    return sorted(kept, key=lambda chunk: -chunk.score)[:limit]


def _same(words: set[str], other: set[str]) -> bool:
    together = len(words | other)
    return together > 0 and len(words & other) / together >= SAME_WORDS


def _retrieved(chunk: Chunk, row: DocumentRow, score: float) -> RetrievedChunk:
    return RetrievedChunk(
        chunk_id=chunk.chunk_id,
        document_id=chunk.document_id,
        source=row.source,
        title=row.title,
        heading=chunk.heading,
        text=chunk.text,
        score=score,
    )
