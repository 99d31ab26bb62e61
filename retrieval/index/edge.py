"""Qdrant Edge: Qdrant's engine in this process. A shard on disk belongs to one process at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.errors import CorruptArtifact
from retrieval.index.protocol import DENSE, SPARSE, Hit, IndexPoint, SparseVector, point_id

if TYPE_CHECKING:
    import numpy as np

SCROLL_PAGE = 1000


class EdgeIndex:
    """A shard in a folder, opened at once by `EdgeIndex.open`."""

    def __init__(self, shard: Any) -> None:
        self._shard = shard
        self._closed = False

    @classmethod
    def open(cls, folder: Path, dimensions: Callable[[], int]) -> EdgeIndex:
        """Load the shard in a folder, or create one in an empty or absent folder.

        Raises `CorruptArtifact` when the shard does not load, or another process holds it.
        """
        import qdrant_edge as edge

        if (folder / "edge_config.json").exists():
            try:
                return cls(edge.EdgeShard.load(str(folder)))
            except Exception as error:  # the binding raises plain Exception for every failure
                raise CorruptArtifact(
                    "the vector index does not open",
                    seen=folder,
                    rule=str(error).splitlines()[0],
                    fix="when no other process uses it, delete the build's folder: it is rebuilt from the log",
                ) from error
        folder.mkdir(parents=True, exist_ok=True)
        config = edge.EdgeConfig(
            vectors={DENSE: edge.EdgeVectorParams(size=dimensions(), distance=edge.Distance.Cosine)},
            sparse_vectors={SPARSE: edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf)},
        )
        shard = edge.EdgeShard.create(str(folder), config)
        shard.update(edge.UpdateOperation.create_field_index("document_id", edge.PayloadSchemaType.Keyword))
        return cls(shard)

    def upsert(self, points: Sequence[IndexPoint]) -> None:
        """Add or replace points."""
        import qdrant_edge as edge

        if not points:
            return
        converted = [
            edge.Point(
                point_id(point.chunk_id),
                {
                    DENSE: point.dense.tolist(),
                    SPARSE: edge.SparseVector(point.sparse.indices, point.sparse.values),
                },
                {"chunk_id": point.chunk_id, "document_id": point.document_id, "source": point.source},
            )
            for point in points
        ]
        self._shard.update(edge.UpdateOperation.upsert_points(converted))

    def delete(self, chunk_ids: Sequence[str]) -> None:
        """Remove points."""
        import qdrant_edge as edge

        if chunk_ids:
            self._shard.update(edge.UpdateOperation.delete_points([point_id(chunk_id) for chunk_id in chunk_ids]))

    def chunk_ids(self, document_id: str) -> set[str]:
        """The chunk ids held for a document."""
        import qdrant_edge as edge

        match = edge.FieldCondition("document_id", match=edge.MatchValue(document_id))
        found: set[str] = set()
        offset = None
        while True:
            request = edge.ScrollRequest(
                offset=offset, limit=SCROLL_PAGE, filter=edge.Filter(must=[match]), with_payload=True
            )
            records, offset = self._shard.scroll(request)
            found |= {record.payload["chunk_id"] for record in records}
            if offset is None:
                return found

    def search_dense(self, vector: np.ndarray, limit: int) -> list[Hit]:
        """Nearest by cosine."""
        return self._search(vector.tolist(), DENSE, limit)

    def search_sparse(self, vector: SparseVector, limit: int) -> list[Hit]:
        """Highest by BM25."""
        import qdrant_edge as edge

        if not vector.indices:
            return []
        return self._search(edge.SparseVector(vector.indices, vector.values), SPARSE, limit)

    def vectors(self, chunk_ids: Sequence[str]) -> np.ndarray:
        """Dense vectors of points."""
        points = [point_id(chunk_id) for chunk_id in chunk_ids]
        return _dense(self._shard.retrieve(points, with_payload=False, with_vector=True))

    def sample(self, limit: int) -> np.ndarray:
        """Dense vectors of the first points by id."""
        import qdrant_edge as edge

        records, _ = self._shard.scroll(edge.ScrollRequest(limit=limit, with_payload=False, with_vector=True))
        return _dense(records)

    def count(self) -> int:
        """Points held."""
        import qdrant_edge as edge

        return int(self._shard.count(edge.CountRequest()))

    def flush(self) -> None:
        """Write everything through, then build what the engine's thresholds ask for (0 s below 20 MB of vectors)."""
        self._shard.flush()
        if self._shard.optimize():
            self._shard.flush()

    def close(self) -> None:
        """Flush and let go of the folder."""
        if not self._closed:
            self._closed = True
            self._shard.close()

    def _search(self, vector: Any, name: str, limit: int) -> list[Hit]:
        import qdrant_edge as edge

        request = edge.QueryRequest(limit=limit, query=edge.Query.Nearest(vector, using=name), with_payload=True)
        return [
            Hit(point.payload["chunk_id"], point.payload["document_id"], float(point.score))
            for point in self._shard.query(request)
        ]


def _dense(records: Sequence[Any]) -> np.ndarray:
    import numpy as np

    vectors = [record.vector[DENSE] for record in records]
    return np.asarray(vectors, dtype=np.float32) if vectors else np.zeros((0, 0), dtype=np.float32)
