"""Documents onto the stream: what is new, changed or gone. Nothing here touches store or index."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pydantic import Field

from infra.errors import InputError
from infra.identity import Value
from retrieval.sources import Rejected, SourceDocument
from store.documents import DocumentRow
from store.opening import Store
from streams.codec import encode
from streams.events import CONTENT_DOCUMENTS, DocumentDeleted, DocumentUpserted, Event
from streams.large_records import check_large
from streams.log import EventLog, Record

BATCH = 64
BATCH_BYTES = 8_000_000


class IngestReport(Value):
    """What publishing did. `targets` is what an index must reach to hold all of it."""

    published: int = Field(description="Documents that are new or changed.")
    unchanged: int = Field(description="Documents the store already holds as they are.")
    deleted: int = Field(description="Documents of the scope that are gone from their source.")
    rejected: list[Rejected] = Field(description="Sources that could not become documents, with the reason.")
    targets: dict[int, int] = Field(description="Partition of content.documents to its next offset afterwards.")


def publish(
    documents: Iterable[SourceDocument | Rejected],
    log: EventLog,
    store: Store,
    *,
    scope: str,
    on_progress: Callable[[int], None] | None = None,
) -> IngestReport:
    """Append an upsert for each new or changed document and a tombstone for each one that disappeared.

    `scope` says what was read in full: a path, or `packages`. Documents of the store that belong to it (published
    under the same scope, or lying under that path) and were not read now are deleted; one that was rejected now
    is kept as it was. What is published but not yet applied counts as unknown and is published again, which
    changes nothing. `on_progress` receives the number of sources read so far.
    """
    log.ensure_topics([CONTENT_DOCUMENTS])
    reading = _Reading(store, scope)
    _append(log, reading.changed(documents, on_progress))
    gone = reading.gone()
    tombstones = (DocumentDeleted(document_id=row.document_id, source=row.source) for row in gone)
    _append(log, (encode(Event(data=tombstone)) for tombstone in tombstones))
    return IngestReport(
        published=reading.published,
        unchanged=reading.unchanged,
        deleted=len(gone),
        rejected=reading.rejected,
        targets=log.end_offsets(CONTENT_DOCUMENTS),
    )


class _Reading:
    """One pass over a scope, compared with what the store holds."""

    def __init__(self, store: Store, scope: str) -> None:
        self._held = {row.document_id: row for row in store.documents.list()}
        self._scope = scope
        self._seen: set[str] = set()
        self.rejected: list[Rejected] = []
        self.published = self.unchanged = 0

    def changed(
        self, documents: Iterable[SourceDocument | Rejected], on_progress: Callable[[int], None] | None
    ) -> Iterator[Record]:
        """Records of the new and changed documents, made one by one as they are read."""
        for number, document in enumerate(documents, start=1):
            if on_progress is not None:
                on_progress(number)
            if isinstance(document, Rejected):
                self.rejected.append(document)
                continue
            record = self._record(document)
            if record is not None:
                yield record

    def gone(self) -> list[DocumentRow]:
        """What the store holds of the scope and this pass did not meet; a rejected source is not gone."""
        refused = {item.source for item in self.rejected}
        return [
            row
            for row in self._held.values()
            if row.document_id not in self._seen and row.source not in refused and in_scope(row, self._scope)
        ]

    def _record(self, document: SourceDocument) -> Record | None:
        self._seen.add(document.document_id)
        known = self._held.get(document.document_id)
        if known is not None and known.content_hash == document.content_hash:
            self.unchanged += 1
            return None
        try:
            record = encode(Event(data=upsert(document, self._scope)))
            check_large(CONTENT_DOCUMENTS, record)
        except InputError as error:
            reason = f"{error.what} ({error.seen}; {error.rule})"
            self.rejected.append(Rejected(source=document.source, reason=reason))
            return None
        self.published += 1
        return record


def upsert(document: SourceDocument, scope: str) -> DocumentUpserted:
    """The event of a source document. The scope stands in the metadata but not in the content hash."""
    return DocumentUpserted(
        document_id=document.document_id,
        source=document.source,
        title=document.title,
        text=document.text,
        content_hash=document.content_hash,
        metadata={**document.metadata, "scope": scope},
    )


def in_scope(row: DocumentRow, scope: str) -> bool:
    """Whether a stored document belongs to what a scope covers."""
    if row.metadata.get("scope") == scope:
        return True
    return Path(scope).is_absolute() and Path(scope) in Path(row.source).parents


def _append(log: EventLog, records: Iterable[Record]) -> None:
    batch: list[Record] = []
    size = 0
    for record in records:
        batch.append(record)
        size += len(record.value)
        if len(batch) >= BATCH or size >= BATCH_BYTES:
            log.append(CONTENT_DOCUMENTS, batch)
            batch, size = [], 0
    if batch:
        log.append(CONTENT_DOCUMENTS, batch)
