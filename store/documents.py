"""Documents, their chunks and cached embeddings: the part of the feature store that grounding reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import Field
from sqlalchemy import Connection, Engine, Select, delete, func, select, tuple_

from infra.database import BATCH, batches, insert_into, lock, reading
from infra.errors import InputError
from infra.identity import Value, canonical_json
from store.tables import as_utc, chunks, documents, embeddings, plain_text
from streams.events import DocumentUpserted

if TYPE_CHECKING:
    import numpy as np


class Chunk(Value):
    """A passage of a document, the unit that is embedded, found and cited."""

    chunk_id: str = Field(description="`sha256:…` of document id, position and text.")
    document_id: str = Field(description="Its document.")
    position: int = Field(ge=0, description="Place in the document, from 0; unique within it.")
    heading: str = Field("", description="Heading path inside the document, ' > ' between levels.")
    text: str = Field(description="The passage, verbatim.")
    tokens: int = Field(ge=0, description="Length in tokens of the embedder.")
    text_hash: str = Field(description="`sha256:…` of what is embedded; the key of the embedding cache.")


class DocumentRow(Value):
    """A document as it is now, without its text (that is in the chunks)."""

    document_id: str = Field(description="Stable id.")
    source: str = Field(description="Where a person finds it.")
    title: str = Field(description="Title.")
    content_hash: str = Field(description="`sha256:…` of text and metadata.")
    metadata: dict[str, Any] = Field(description="As the source gave it.")
    updated_at: datetime = Field(description="Time of the event that set it, UTC.")
    chunks: int = Field(ge=0, description="Number of chunks.")


class PutResult(Value):
    """What a document event changed."""

    added: list[Chunk] = Field(default_factory=list, description="Chunks that are new or differ, by position.")
    removed: list[str] = Field(default_factory=list, description="Chunk ids that are gone.")
    applied: bool = Field(False, description="False: the event was stale or seen before, nothing changed.")


class DocumentStore:
    """Documents by id. Every write is one transaction and idempotent by event id."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def put(self, document: DocumentUpserted, new: Sequence[Chunk], *, event_id: str, time: datetime) -> PutResult:
        """Set a document and replace its chunks by `new`; revives a deleted one.

        Chunks equal to a stored one stay untouched and are neither added nor removed. An event older than the
        one applied last, or the same one again, changes nothing; of two of one moment the greater id wins.
        Raises `InputError` when a chunk belongs to another document or two share an id or a position.
        """
        _check(document.document_id, new)
        with self._engine.begin() as connection:
            if not _claim(connection, document.document_id, event_id, time):
                return PutResult()
            _set_row(connection, document, event_id, time)
            stored = {chunk.chunk_id: chunk for chunk in _chunks_of(connection, document.document_id)}
            added = [chunk for chunk in new if stored.get(chunk.chunk_id) != chunk]
            kept = {chunk.chunk_id for chunk in new}
            removed = [chunk_id for chunk_id in stored if chunk_id not in kept]
            _delete_chunks(connection, [*removed, *(chunk.chunk_id for chunk in added)])
            if added:
                connection.execute(chunks.insert(), [chunk.model_dump() for chunk in added])
        return PutResult(added=added, removed=removed, applied=True)

    def delete(self, document_id: str, *, event_id: str, time: datetime) -> list[str]:
        """Remove a document with its chunks and their cached embeddings; returns the chunk ids.

        A tombstone stays (id and time, no content), so that an older upsert that arrives later changes nothing.
        """
        with self._engine.begin() as connection:
            if not _claim(connection, document_id, event_id, time):
                return []
            gone = _chunks_of(connection, document_id)
            _delete_chunks(connection, [chunk.chunk_id for chunk in gone])
            _forget_embeddings(connection, sorted({chunk.text_hash for chunk in gone}))
            empty = dict.fromkeys(("source", "title", "content_hash"), "") | {"metadata_json": "{}"}
            _upsert(connection, document_id, empty | {"event_id": event_id, "updated_at": time, "deleted_at": time})
        return [chunk.chunk_id for chunk in gone]

    def get(self, document_id: str) -> DocumentRow | None:
        """A document, or None when it never was or is deleted."""
        return self.source_of([document_id]).get(document_id)

    def hashes(self) -> dict[str, str]:
        """Document id to content hash of all documents that are not deleted."""
        query = select(documents.c.document_id, documents.c.content_hash).where(documents.c.deleted_at.is_(None))
        with reading(self._engine) as connection:
            return {row.document_id: row.content_hash for row in connection.execute(query)}

    def tombstones(self) -> dict[str, datetime]:
        """Document id to deletion time (UTC) of all deleted documents."""
        query = select(documents.c.document_id, documents.c.deleted_at).where(documents.c.deleted_at.is_not(None))
        with reading(self._engine) as connection:
            return {row.document_id: row.deleted_at for row in connection.execute(query)}

    def chunks(self, chunk_ids: Sequence[str]) -> dict[str, Chunk]:
        """The chunks of these ids that exist."""
        found: dict[str, Chunk] = {}
        with reading(self._engine) as connection:
            for ids in batches(chunk_ids):
                for row in connection.execute(select(chunks).where(chunks.c.chunk_id.in_(ids))):
                    found[row.chunk_id] = _chunk(row)
        return found

    def chunks_of(self, document_id: str) -> list[Chunk]:
        """The chunks of a document in order; empty when it does not exist."""
        with reading(self._engine) as connection:
            return _chunks_of(connection, document_id)

    def all_chunks(self) -> Iterator[Chunk]:
        """Every chunk by document and position, read in pages: no connection is held between them."""
        place = tuple_(chunks.c.document_id, chunks.c.position)
        query = select(chunks).order_by(chunks.c.document_id, chunks.c.position).limit(BATCH)
        page = query
        while True:
            with reading(self._engine) as connection:
                found = [_chunk(row) for row in connection.execute(page)]
            yield from found
            if len(found) < BATCH:
                return
            page = query.where(place > tuple_(found[-1].document_id, found[-1].position))

    def source_of(self, document_ids: Sequence[str]) -> dict[str, DocumentRow]:
        """The documents of these ids that exist and are not deleted."""
        found: dict[str, DocumentRow] = {}
        with reading(self._engine) as connection:
            for ids in batches(document_ids):
                query = _document_rows().where(documents.c.document_id.in_(ids))
                found |= {row.document_id: _document_row(row) for row in connection.execute(query)}
        return found

    def counts(self) -> dict[str, int]:
        """How many `documents`, `tombstones`, `chunks` and cached `embeddings` there are."""
        alive = func.count().filter(documents.c.deleted_at.is_(None))
        with reading(self._engine) as connection:
            total, live = connection.execute(select(func.count(), alive).select_from(documents)).one()
            sizes = {
                table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
                for table in (chunks, embeddings)
            }
        return {"documents": live, "tombstones": total - live, **sizes}

    def cached_embeddings(self, embedder_id: str, text_hashes: Sequence[str]) -> dict[str, np.ndarray]:
        """Text hash to its cached vector, float32 of shape (dimensions,), read-only; misses are left out."""
        import numpy as np

        found: dict[str, np.ndarray] = {}
        query = select(embeddings.c.text_hash, embeddings.c.vector).where(embeddings.c.embedder_id == embedder_id)
        with reading(self._engine) as connection:
            for hashes in batches(text_hashes):
                for row in connection.execute(query.where(embeddings.c.text_hash.in_(hashes))):
                    found[row.text_hash] = np.frombuffer(row.vector, dtype="<f4")
        return found

    def cache_embeddings(self, embedder_id: str, vectors: Mapping[str, np.ndarray]) -> None:
        """Keep vectors of shape (dimensions,) as float32 by the hash of their text; known ones stay as they are."""
        rows = [
            {"embedder_id": embedder_id, "text_hash": text_hash, "vector": vector.astype("<f4").tobytes()}
            for text_hash, vector in vectors.items()
        ]
        with self._engine.begin() as connection:
            for some in batches(rows):
                connection.execute(insert_into(connection, embeddings).on_conflict_do_nothing(), list(some))

    def list(self) -> list[DocumentRow]:
        """All documents that are not deleted, by id."""
        with reading(self._engine) as connection:
            rows = connection.execute(_document_rows())
            return sorted((_document_row(row) for row in rows), key=lambda row: row.document_id)


def _check(document_id: str, new: Sequence[Chunk]) -> None:
    for name, values in (
        ("id", [chunk.chunk_id for chunk in new]),
        ("position", [chunk.position for chunk in new]),
    ):
        if len(set(values)) != len(values):
            raise InputError(f"two chunks of {document_id} share a {name}", rule="ids and positions are unique")
    stranger = next((chunk for chunk in new if chunk.document_id != document_id), None)
    if stranger is not None:
        raise InputError("a chunk belongs to another document", seen=stranger.document_id, rule=document_id)


def _claim(connection: Connection, document_id: str, event_id: str, time: datetime) -> bool:
    # False for an event that is older than what was applied last, or is that very event again. Ids decide between
    # events of one microsecond, so that any order of arrival, however often, ends with the same one.
    lock(connection, f"document {document_id}")
    query = select(documents.c.updated_at, documents.c.event_id).where(documents.c.document_id == document_id)
    row = connection.execute(query).first()
    return row is None or (as_utc(time), plain_text(event_id)) > (row.updated_at, row.event_id)


def _set_row(connection: Connection, document: DocumentUpserted, event_id: str, time: datetime) -> None:
    values = {
        "source": document.source,
        "title": document.title,
        "content_hash": document.content_hash,
        "metadata_json": canonical_json(document.metadata).decode(),
        "event_id": event_id,
        "updated_at": time,
        "deleted_at": None,
    }
    _upsert(connection, document.document_id, values)


def _upsert(connection: Connection, document_id: str, values: Mapping[str, Any]) -> None:
    insert = insert_into(connection, documents).values(document_id=document_id, **values)
    connection.execute(insert.on_conflict_do_update(index_elements=["document_id"], set_=dict(values)))


def _delete_chunks(connection: Connection, chunk_ids: Sequence[str]) -> None:
    for ids in batches(chunk_ids):
        connection.execute(delete(chunks).where(chunks.c.chunk_id.in_(ids)))


def _forget_embeddings(connection: Connection, text_hashes: Sequence[str]) -> None:
    still_used = select(chunks.c.text_hash).where(chunks.c.text_hash == embeddings.c.text_hash).exists()
    for hashes in batches(text_hashes):
        connection.execute(delete(embeddings).where(embeddings.c.text_hash.in_(hashes), ~still_used))


def _chunks_of(connection: Connection, document_id: str) -> list[Chunk]:
    query = select(chunks).where(chunks.c.document_id == document_id).order_by(chunks.c.position)
    return [_chunk(row) for row in connection.execute(query)]


def _chunk(row: Any) -> Chunk:
    return Chunk.model_validate(dict(row._mapping))


def _document_rows() -> Select[Any]:
    count = (
        select(func.count())
        .select_from(chunks)
        .where(chunks.c.document_id == documents.c.document_id)
        .scalar_subquery()
        .label("chunks")
    )
    return select(documents, count).where(documents.c.deleted_at.is_(None))


def _document_row(row: Any) -> DocumentRow:
    return DocumentRow(
        document_id=row.document_id,
        source=row.source,
        title=row.title,
        content_hash=row.content_hash,
        metadata=json.loads(row.metadata_json),
        updated_at=row.updated_at,
        chunks=row.chunks,
    )
