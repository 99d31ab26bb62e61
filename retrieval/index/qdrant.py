"""Qdrant through qdrant-client: a server or cluster by URL, or the client's own local mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.errors import NotFound, Unavailable
from retrieval.index.protocol import DENSE, SPARSE, Hit, IndexPoint, SparseVector, VectorIndex, point_id
from retrieval.index.snapshot import read_position, write_position

if TYPE_CHECKING:
    import numpy as np
    from qdrant_client import QdrantClient

SCROLL_PAGE = 1000
UPSERT_BATCH = 256


class QdrantIndex:
    """One collection. `close` leaves the client to whoever made it."""

    def __init__(self, client: QdrantClient, collection: str) -> None:
        self._client = client
        self._collection = collection

    @classmethod
    def open(cls, client: QdrantClient, collection: str, dimensions: Callable[[], int]) -> QdrantIndex:
        """The collection, created when it does not exist. Raises `Unavailable`."""
        from qdrant_client import models

        with _reachable():
            if not client.collection_exists(collection):
                client.create_collection(
                    collection,
                    vectors_config={DENSE: models.VectorParams(size=dimensions(), distance=models.Distance.COSINE)},
                    sparse_vectors_config={SPARSE: models.SparseVectorParams(modifier=models.Modifier.IDF)},
                )
                client.create_payload_index(collection, "document_id", models.PayloadSchemaType.KEYWORD)
        return cls(client, collection)

    def upsert(self, points: Sequence[IndexPoint]) -> None:
        """Add or replace points; returns when the server applied them."""
        from qdrant_client import models

        for start in range(0, len(points), UPSERT_BATCH):
            batch = [
                models.PointStruct(
                    id=point_id(point.chunk_id),
                    vector={
                        DENSE: point.dense.tolist(),
                        SPARSE: models.SparseVector(indices=point.sparse.indices, values=point.sparse.values),
                    },
                    payload={"chunk_id": point.chunk_id, "document_id": point.document_id, "source": point.source},
                )
                for point in points[start : start + UPSERT_BATCH]
            ]
            with _reachable():
                self._client.upsert(self._collection, batch, wait=True)

    def delete(self, chunk_ids: Sequence[str]) -> None:
        """Remove points."""
        from qdrant_client import models

        if chunk_ids:
            points: list[int | str] = [point_id(chunk_id) for chunk_id in chunk_ids]
            with _reachable():
                self._client.delete(self._collection, models.PointIdsList(points=points), wait=True)

    def chunk_ids(self, document_id: str) -> set[str]:
        """The chunk ids held for a document."""
        from qdrant_client import models

        match = models.FieldCondition(key="document_id", match=models.MatchValue(value=document_id))
        found: set[str] = set()
        offset: Any = None
        while True:
            with _reachable():
                records, offset = self._client.scroll(
                    self._collection, models.Filter(must=[match]), limit=SCROLL_PAGE, offset=offset
                )
            found |= {record.payload["chunk_id"] for record in records if record.payload}
            if offset is None:
                return found

    def search_dense(self, vector: np.ndarray, limit: int) -> list[Hit]:
        """Nearest by cosine."""
        return self._search(vector.tolist(), DENSE, limit)

    def search_sparse(self, vector: SparseVector, limit: int) -> list[Hit]:
        """Highest by BM25."""
        from qdrant_client import models

        if not vector.indices:
            return []
        return self._search(models.SparseVector(indices=vector.indices, values=vector.values), SPARSE, limit)

    def vectors(self, chunk_ids: Sequence[str]) -> np.ndarray:
        """Dense vectors of points."""
        points: list[int | str] = [point_id(chunk_id) for chunk_id in chunk_ids]
        with _reachable():
            return _dense(self._client.retrieve(self._collection, points, with_payload=False, with_vectors=[DENSE]))

    def sample(self, limit: int) -> np.ndarray:
        """Dense vectors of the first points by id."""
        with _reachable():
            records, _ = self._client.scroll(self._collection, limit=limit, with_payload=False, with_vectors=[DENSE])
        return _dense(records)

    def count(self) -> int:
        """Points held."""
        with _reachable():
            return self._client.count(self._collection, exact=True).count

    def flush(self) -> None:
        """Nothing to do: every write waited for the server."""

    def close(self) -> None:
        """Nothing to release."""

    def _search(self, vector: Any, name: str, limit: int) -> list[Hit]:
        with _reachable():
            answer = self._client.query_points(self._collection, query=vector, using=name, limit=limit)
        return [
            Hit(point.payload["chunk_id"], point.payload["document_id"], float(point.score))
            for point in answer.points
            if point.payload
        ]


def _dense(records: Sequence[Any]) -> np.ndarray:
    import numpy as np

    vectors = [record.vector[DENSE] for record in records]
    return np.asarray(vectors, dtype=np.float32) if vectors else np.zeros((0, 0), dtype=np.float32)


class ServerHome:
    """An index build as a collection of a Qdrant server: what is written is at once what readers see.

    Only the position lies in a folder here. When it is lost the log is applied again, which changes nothing.
    """

    def __init__(
        self, folder: Path, collection: str, dimensions: Callable[[], int], *, url: str, api_key: str = ""
    ) -> None:
        self._folder = folder
        self._collection = collection
        self._dimensions = dimensions
        self._url = url
        self._api_key = api_key
        self._client: QdrantClient | None = None

    def open(self) -> VectorIndex:
        """The collection."""
        return QdrantIndex.open(self._connected(), self._collection, self._dimensions)

    def applied(self) -> dict[int, int]:
        """Position of the collection."""
        return read_position(self._folder / "applied.json") or {}

    def set_applied(self, position: Mapping[int, int]) -> None:
        """Record the position of the collection."""
        write_position(self._folder / "applied.json", position)

    def publish(self, position: Mapping[int, int]) -> None:
        """Record that readers see this position."""
        write_position(self._folder / "applied.json", position)

    def published(self) -> dict[int, int] | None:
        """Position of the collection, None when this installation never applied anything to it."""
        return read_position(self._folder / "applied.json")

    @contextmanager
    def read(self) -> Iterator[tuple[VectorIndex, dict[int, int]]]:
        """The collection and its position."""
        position = self.published()
        if position is None:
            raise NotFound("there is no index to search yet", seen=self._url, fix="quill ingest PATH")
        yield QdrantIndex(self._connected(), self._collection), position

    def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _connected(self) -> QdrantClient:
        if self._client is None:
            from qdrant_client import QdrantClient

            with _reachable():
                # The compatibility check only warns, and does so when the server is down too.
                key = self._api_key or None
                self._client = QdrantClient(url=self._url, api_key=key, timeout=30, check_compatibility=False)
        return self._client


@contextmanager
def _reachable() -> Iterator[None]:
    from qdrant_client.http.exceptions import ApiException

    try:
        yield
    except (ApiException, OSError) as error:
        raise Unavailable(
            "the Qdrant server does not do what was asked",
            seen=str(error).splitlines()[0] if str(error) else type(error).__name__,
            fix="check index.url and index.api_key, and that the server runs",
        ) from error
