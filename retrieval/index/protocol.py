"""What an index must do, and the values that go in and come out."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np

POINT_NAMESPACE = uuid.UUID("8a6cf8a4-1a0e-5a53-9a0e-6f6f0b1d7c11")
DENSE = "dense"
SPARSE = "sparse"


class SparseVector(NamedTuple):
    """Non-zero dimensions and their values, same length; dimensions are unsigned 32-bit, rising."""

    indices: list[int]
    values: list[float]


class IndexPoint(NamedTuple):
    """A chunk as the index holds it."""

    chunk_id: str
    document_id: str
    source: str
    dense: np.ndarray  # float32, shape (dimensions,), length 1
    sparse: SparseVector


class Hit(NamedTuple):
    """A chunk that was found; higher scores are better (cosine when dense, BM25 when sparse)."""

    chunk_id: str
    document_id: str
    score: float


class VectorIndex(Protocol):
    """Chunks by dense and by sparse vector. Searching while another thread writes is allowed."""

    def upsert(self, points: Sequence[IndexPoint]) -> None:
        """Add points, or replace those with the same chunk id."""
        ...

    def delete(self, chunk_ids: Sequence[str]) -> None:
        """Remove points; unknown ids are ignored."""
        ...

    def chunk_ids(self, document_id: str) -> set[str]:
        """The chunk ids held for a document."""
        ...

    def search_dense(self, vector: np.ndarray, limit: int) -> list[Hit]:
        """The chunks nearest by cosine, best first."""
        ...

    def search_sparse(self, vector: SparseVector, limit: int) -> list[Hit]:
        """The chunks with the highest BM25 score, best first; chunks without a common term are not hits."""
        ...

    def vectors(self, chunk_ids: Sequence[str]) -> np.ndarray:
        """Dense vectors of the points that are held, float32, shape (n, dimensions), in no particular order."""
        ...

    def sample(self, limit: int) -> np.ndarray:
        """Dense vectors of up to `limit` points, the same ones until points change, float32, shape (n, dimensions).

        They are the first by id, and ids are hashes: a random sample of all points.
        """
        ...

    def count(self) -> int:
        """Points held."""
        ...

    def flush(self) -> None:
        """Return when everything written so far survives a crash."""
        ...

    def close(self) -> None:
        """Release files and connections. Idempotent."""
        ...


class IndexHome(Protocol):
    """One index build: where its writer works and what its readers see.

    Only the holder of the build's owner lock may call `open`, `applied`, `set_applied` and `publish`.
    """

    def open(self) -> VectorIndex:
        """The index to write to. Raises `CorruptArtifact` or `Unavailable`."""
        ...

    def applied(self) -> dict[int, int]:
        """Partition to the next offset not yet in the written index; empty for a new one."""
        ...

    def set_applied(self, position: Mapping[int, int]) -> None:
        """Record the position, after the index was flushed."""
        ...

    def publish(self, position: Mapping[int, int]) -> None:
        """Let readers see what was flushed."""
        ...

    def published(self) -> dict[int, int] | None:
        """Position that readers see; None when nothing was ever published."""
        ...

    def read(self) -> AbstractContextManager[tuple[VectorIndex, dict[int, int]]]:
        """The newest published index and its position, for searching only. Raises `NotFound` when there is none."""
        ...

    def close(self) -> None:
        """Release what `read` opened. Idempotent."""
        ...


def point_id(chunk_id: str) -> str:
    """The UUID of a chunk's point (version 5), since Qdrant takes only integers and UUIDs."""
    return str(uuid.uuid5(POINT_NAMESPACE, chunk_id))
