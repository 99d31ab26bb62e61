"""Applying document events: record, chunks, vectors, index, position, in the order that survives a kill."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from infra.embedder import Embedder
from infra.errors import InputError
from retrieval.chunking import ChunkSettings, chunk_document, embedding_text
from retrieval.index.protocol import IndexHome, IndexPoint, VectorIndex
from retrieval.sparse import encode_document
from store.documents import Chunk
from store.opening import Store
from streams.codec import decode
from streams.dead_letters import dead_letter_topic, letter_of
from streams.events import CONTENT_DOCUMENTS, DocumentDeleted, DocumentUpserted, Event
from streams.log import EventLog, StoredRecord

if TYPE_CHECKING:
    import numpy as np

BATCH = 16
"""Documents per position. A kill loses at most the work on these: about 100 chunks, 7 s of embedding on two cores."""

OnBatch = Callable[[int, int], None]
"""Receives the records handled and the chunks embedded so far."""


class Batch(NamedTuple):
    """Records of one partition, and the position after them."""

    records: list[StoredRecord]
    position: dict[int, int]


class Pending(NamedTuple):
    """A chunk that the index lacks, and what is embedded for it."""

    chunk: Chunk
    source: str
    text: str


def next_batch(log: EventLog, position: Mapping[int, int], limit: int = BATCH) -> Batch | None:
    """The next records that the position has not passed, all of one partition; None when there are none.

    A partition may end in offsets without records (Kafka's transaction marks): those make an empty batch.
    """
    for partition, end in sorted(log.end_offsets(CONTENT_DOCUMENTS).items()):
        start = position.get(partition, 0)
        if start < end:
            records = log.read(CONTENT_DOCUMENTS, partition, start, limit=limit)
            after = records[-1].offset + 1 if records else end
            return Batch(records, {**position, partition: after})
    return None


class Applier:
    """Applies batches to the store and to one open index."""

    def __init__(
        self,
        log: EventLog,
        store: Store,
        embedder: Embedder,
        chunking: ChunkSettings,
        *,
        index: VectorIndex,
        home: IndexHome,
    ) -> None:
        self._log = log
        self._store = store
        self._embedder = embedder
        self._chunking = chunking
        self._home = home
        self.index = index
        self.position = home.applied()
        self.handled = 0
        self.applied = 0
        self.embedded = 0
        self.dead = 0

    def apply(self, batch: Batch, on_batch: OnBatch | None = None) -> None:
        """Apply a batch. The position moves only after the store has committed and the index has flushed."""
        events = self._newest(batch.records)
        touched = [document_id for document_id, item in events.items() if self._store_event(*item)]
        pending: list[Pending] = []
        stale: list[str] = []
        for document_id in touched:
            missing, superfluous = self._difference(document_id)
            pending += missing
            stale += superfluous
        vectors = self._vectors(pending, on_batch)
        self.index.upsert([_point(item, vectors[item.chunk.text_hash]) for item in pending])
        self.index.delete(stale)
        self.index.flush()
        self._home.set_applied(batch.position)
        self.position = batch.position
        self.handled += len(batch.records)
        self.applied += len(touched)
        if on_batch is not None:
            on_batch(self.handled, self.embedded)

    def _newest(self, records: Sequence[StoredRecord]) -> dict[str, tuple[Event, StoredRecord]]:
        """The event of each document that wins in the store; the others of the batch would be overwritten anyway."""
        newest: dict[str, tuple[Event, StoredRecord]] = {}
        for record in records:
            try:
                event = decode(record)
            except InputError as error:
                self._bury(record, error)
                continue
            if isinstance(event.data, DocumentUpserted | DocumentDeleted):
                known = newest.setdefault(event.data.document_id, (event, record))
                if (known[0].time, known[0].id) < (event.time, event.id):
                    newest[event.data.document_id] = (event, record)
            else:
                self._bury(record, InputError("not a document event", seen=event.data.type))
        return newest

    def _store_event(self, event: Event, record: StoredRecord) -> bool:
        documents = self._store.documents
        try:
            if isinstance(event.data, DocumentDeleted):
                documents.delete(event.data.document_id, event_id=event.id, time=event.time)
            elif isinstance(event.data, DocumentUpserted):
                chunks = chunk_document(event.data, self._embedder, self._chunking)
                documents.put(event.data, chunks, event_id=event.id, time=event.time)
        except (InputError, ValueError, RecursionError) as error:
            self._bury(record, error)
            return False
        return True

    def _difference(self, document_id: str) -> tuple[list[Pending], list[str]]:
        """What the index lacks of a document and what it holds too much, by what the store holds now.

        Not by what the event changed: after a kill, or when a lost index is rebuilt from the log, the store is
        ahead of the index.
        """
        held = self.index.chunk_ids(document_id)
        row = self._store.documents.get(document_id)
        chunks = self._store.documents.chunks_of(document_id) if row else []
        missing = [
            Pending(chunk, row.source, embedding_text(row.title, chunk.heading, chunk.text))
            for chunk in chunks
            if row and chunk.chunk_id not in held
        ]
        return missing, sorted(held - {chunk.chunk_id for chunk in chunks})

    def _vectors(self, pending: Sequence[Pending], on_batch: OnBatch | None) -> dict[str, np.ndarray]:
        texts = {item.chunk.text_hash: item.text for item in pending}
        vectors = dict(self._store.documents.cached_embeddings(self._embedder.id, list(texts)))
        unknown = [text_hash for text_hash in texts if text_hash not in vectors]
        if not unknown:
            return vectors
        before = self.embedded

        def progress(done: int, _total: int) -> None:
            if on_batch is not None:
                on_batch(self.handled, before + done)

        rows = self._embedder.embed([texts[text_hash] for text_hash in unknown], progress)
        fresh = dict(zip(unknown, rows, strict=True))
        self._store.documents.cache_embeddings(self._embedder.id, fresh)
        self.embedded = before + len(unknown)
        return vectors | fresh

    def _bury(self, record: StoredRecord, error: Exception) -> None:
        self._log.append(dead_letter_topic(record.topic), [letter_of(record, error, 1)])
        self.dead += 1


def _point(item: Pending, vector: np.ndarray) -> IndexPoint:
    chunk = item.chunk
    return IndexPoint(chunk.chunk_id, chunk.document_id, item.source, vector, encode_document(item.text))
