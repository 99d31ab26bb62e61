"""Documents onto the stream: what is new, changed or gone. Nothing here touches store or index.

What is remembered between two ingestions stands in the document's own record: `scope` in its metadata says which
source it came from, and `ingest` what the source knows its state by (`seen`), the fingerprint that near-duplicates are
found by (`fingerprint`), and the document of which it is a near-duplicate (`alias_of`; it then has no text of its own).
Neither is part of the content hash.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field, computed_field

from infra.errors import InputError, NotFound, QuillError, Unavailable
from infra.identity import Value
from retrieval.fetching import Fetcher, reason_of
from retrieval.near_duplicates import Fingerprint, Fingerprints
from retrieval.sources import Gone, Item, Listing, Reading, Rejected, SourceDocument, document_id
from retrieval.sources_listing import list_source, scope_of
from store.documents import DocumentRow
from store.opening import Store
from streams.codec import encode
from streams.events import CONTENT_DOCUMENTS, DocumentDeleted, DocumentUpserted, Event
from streams.large_records import check_large
from streams.log import EventLog, Record

BATCH = 64
BATCH_BYTES = 8_000_000

OnProgress = Callable[[int], None]
"""Receives the number of items read so far."""


class IngestReport(Value):
    """What publishing did. `targets` is what an index must reach to hold all of it."""

    added: int = Field(0, description="Documents that the store did not hold.")
    changed: int = Field(0, description="Documents that the store held otherwise.")
    unchanged: int = Field(0, description="Documents the store already holds as they are.")
    removed: int = Field(0, description="Documents of the source that are gone from it.")
    folded: int = Field(0, description="Near-duplicates: kept as another source of the document they repeat.")
    failed: list[Rejected] = Field(default_factory=list, description="What could not become documents, and why.")
    skipped: dict[str, int] = Field(default_factory=dict, description="Files of other kinds, by suffix.")
    targets: dict[int, int] = Field(description="Partition of content.documents to its next offset afterwards.")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def published(self) -> int:
        """Documents put on the stream: added, changed and folded."""
        return self.added + self.changed + self.folded

    @computed_field  # type: ignore[prop-decorator]
    @property
    def deleted(self) -> int:
        """As `removed`."""
        return self.removed

    @computed_field  # type: ignore[prop-decorator]
    @property
    def rejected(self) -> list[Rejected]:
        """As `failed`."""
        return self.failed


def ingest(
    target: str, log: EventLog, store: Store, *, fetcher: Fetcher, cache: Path, removed: set[str] | None = None
) -> IngestReport:
    """Publish what a source lists: a path, an address, a feed, a sitemap or a repository, as the user wrote it.

    `removed` takes up the ids of documents that are deleted: given to the next source, what that one still lists is
    published again, though the store may hold it until the deletion is applied.
    A source that cannot be listed is reported as failed and deletes nothing. Raises `Unavailable` when the log or the
    store does not answer.
    """
    log.ensure_topics([CONTENT_DOCUMENTS])
    scope = scope_of(target)
    name = document_id(scope)
    kept = _kept(store.documents.get(name)) if removed is None or name not in removed else {}
    try:
        # An alias is asked for whole: whether it still is one, only its text can say.
        listing = list_source(target, fetcher, cache, "" if "alias_of" in kept else kept.get("seen", ""))
    except (InputError, NotFound, Unavailable) as error:
        failed = [Rejected(source=scope, reason=reason_of(error))]
        return IngestReport(failed=failed, targets=log.end_offsets(CONTENT_DOCUMENTS))
    return publish_listing(listing, log, store, removed=removed)


def publish(
    documents: Iterable[SourceDocument | Rejected],
    log: EventLog,
    store: Store,
    *,
    scope: str,
    on_progress: OnProgress | None = None,
) -> IngestReport:
    """Publish documents that were read in full already; see `publish_listing`."""
    items: dict[str, Item] = {}
    for document in documents:
        items.setdefault(document.source, Item(document.source, lambda _, document=document: document))  # type: ignore[misc]
    return publish_listing(Listing(scope=scope, items=list(items.values())), log, store, on_progress=on_progress)


def publish_listing(
    listing: Listing,
    log: EventLog,
    store: Store,
    *,
    removed: set[str] | None = None,
    on_progress: OnProgress | None = None,
) -> IngestReport:
    """Append an upsert for each new or changed document and a tombstone for each one that disappeared.

    The listing says what was there: documents of the store that belong to its scope (published under it, or lying
    under that path) and are not listed are deleted; one that could not be read now is kept as it was. What is
    published but not yet applied counts as unknown and is published again, which changes nothing. A near-duplicate of
    another document is published without text, as an alias of it. `removed` is as in `ingest`; `on_progress` receives
    the items read so far.
    """
    log.ensure_topics([CONTENT_DOCUMENTS])
    removed = set() if removed is None else removed
    reading = _Reading([row for row in store.documents.list() if row.document_id not in removed], listing)
    _append(log, reading.records(on_progress))
    tombstones = (DocumentDeleted(document_id=row.document_id, source=row.source) for row in reading.gone.values())
    _append(log, (encode(Event(data=tombstone)) for tombstone in tombstones))
    removed.update(reading.gone)
    return IngestReport(
        **{name: reading.counts[name] for name in ("added", "changed", "unchanged", "folded")},
        removed=len(reading.gone),
        failed=reading.failed,
        skipped=dict(listing.skipped),
        targets=log.end_offsets(CONTENT_DOCUMENTS),
    )


class _Reading:
    """One pass over a listing, compared with what the store holds."""

    def __init__(self, held: Sequence[DocumentRow], listing: Listing) -> None:
        self._listing = listing
        self._held = {row.document_id: row for row in held}
        self.gone = {row.document_id: row for row in _missing(held, listing)}
        self.failed = list(listing.rejected)
        self.counts: Counter[str] = Counter()
        # What each document is compared by, as this pass leaves it; aliases have no place here.
        self._originals = {
            name: found
            for name, row in self._held.items()
            if name not in self.gone and "alias_of" not in _kept(row) and (found := _fingerprint(row))
        }
        self._tables: Fingerprints | None = None

    def records(self, on_progress: OnProgress | None) -> Iterator[Record]:
        """Records of the new and changed documents, made one by one as they are read."""
        # Aliases come last: whether they still are, what they repeat decides.
        order = sorted(self._listing.items, key=lambda item: self._alias_of(document_id(item.source)) != "")
        for number, item in enumerate(order, start=1):
            if on_progress is not None:
                on_progress(number)
            record = self._taken(item, self._read(item))
            if record is not None:
                yield record

    def _read(self, item: Item) -> Reading:
        name = document_id(item.source)
        row = self._held.get(name)
        known = row is not None and (self._alias_of(name) == "" or self._still_alias(name))
        try:
            return item.read(_kept(row).get("seen", "") if row is not None and known else "")
        except QuillError as error:
            return Rejected(source=item.source, reason=reason_of(error))

    def _taken(self, item: Item, found: Reading) -> Record | None:
        """Count what an item gave; the record of a document that must be published."""
        row = self._held.get(document_id(item.source))
        if isinstance(found, Rejected):
            self.failed.append(found)
        elif isinstance(found, SourceDocument):
            return self._compared(found, row)
        elif isinstance(found, Gone) and row is None:
            self.failed.append(Rejected(source=item.source, reason="it is listed but not there"))
        elif isinstance(found, Gone) and row is not None:
            self.gone[row.document_id] = row
            self._forget(row.document_id)
        else:
            self.counts["unchanged"] += 1
        return None

    def _compared(self, document: SourceDocument, row: DocumentRow | None) -> Record | None:
        name = document.document_id
        same = row is not None and row.content_hash == document.content_hash
        if same and self._alias_of(name) == "":
            self.counts["unchanged"] += 1
            return None
        fingerprint = Fingerprint.of(document.text)
        original = self._like(name, fingerprint) if fingerprint else ""
        if same and original and original == self._alias_of(name):
            self.counts["unchanged"] += 1
            return None
        record = self._record(document, fingerprint, original)
        if record is None:
            return None
        self._forget(name)
        if fingerprint and not original:
            self._remember(name, fingerprint)
        self.counts["folded" if original else "added" if row is None else "changed"] += 1
        return record

    def _record(self, document: SourceDocument, fingerprint: Fingerprint | None, original: str) -> Record | None:
        kept = {"seen": document.seen, "fingerprint": str(fingerprint or ""), "alias_of": original}
        event = Event(data=upsert(document, self._listing.scope, {key: value for key, value in kept.items() if value}))
        try:
            record = encode(event)
            check_large(CONTENT_DOCUMENTS, record)
        except InputError as error:
            reason = f"{error.what} ({error.seen}; {error.rule})"
            self.failed.append(Rejected(source=document.source, reason=reason))
            return None
        return record

    def _alias_of(self, name: str) -> str:
        row = self._held.get(name)
        return str(_kept(row).get("alias_of", "")) if row is not None else ""

    def _still_alias(self, name: str) -> bool:
        """Whether the document that an alias repeats is there and still says the same."""
        mine, theirs = _fingerprint(self._held[name]), self._originals.get(self._alias_of(name))
        return mine is not None and theirs is not None and mine.same(theirs)

    def _like(self, name: str, fingerprint: Fingerprint) -> str:
        if self._tables is None:
            self._tables = Fingerprints()
            for other, held in self._originals.items():
                self._tables.put(other, held)
        return self._tables.like(fingerprint, but=name)

    def _remember(self, name: str, fingerprint: Fingerprint) -> None:
        self._originals[name] = fingerprint
        if self._tables is not None:
            self._tables.put(name, fingerprint)

    def _forget(self, name: str) -> None:
        self._originals.pop(name, None)
        if self._tables is not None:
            self._tables.drop(name)


def upsert(document: SourceDocument, scope: str, kept: dict[str, Any] | None = None) -> DocumentUpserted:
    """The event of a source document. `scope` and `kept` stand in the metadata but not in the content hash.

    A near-duplicate (`kept` names what it is an `alias_of`) has no text: there is nothing to find twice.
    """
    return DocumentUpserted(
        document_id=document.document_id,
        source=document.source,
        title=document.title,
        text="" if kept and kept.get("alias_of") else document.text,
        content_hash=document.content_hash,
        metadata={**document.metadata, "scope": scope} | ({"ingest": kept} if kept else {}),
    )


def in_scope(row: DocumentRow, scope: str) -> bool:
    """Whether a stored document belongs to what a scope covers."""
    if row.metadata.get("scope") == scope:
        return True
    return Path(scope).is_absolute() and Path(scope) in Path(row.source).parents


def _missing(held: Iterable[DocumentRow], listing: Listing) -> list[DocumentRow]:
    """Documents of the scope that are not listed, unless the listing could not show them."""
    if not listing.complete:
        return []
    listed = {item.source for item in listing.items} | {one.source for one in listing.rejected}
    broken = {one.source.partition("#")[0] for one in listing.rejected}
    return [
        row
        for row in held
        if in_scope(row, listing.scope)
        and row.source not in listed
        and row.source.partition("#")[0] not in broken
        and not _older(row, listing.window)
    ]


def _older(row: DocumentRow, window: str) -> bool:
    """Whether a document has only left the window of a feed, which shows its newest entries."""
    try:
        mine, oldest = (datetime.fromisoformat(str(text)) for text in (row.metadata.get("date", ""), window))
    except ValueError:
        return False
    return _in_utc(mine) < _in_utc(oldest)


def _in_utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _kept(row: DocumentRow | None) -> dict[str, Any]:
    found = row.metadata.get("ingest") if row is not None else None
    return found if isinstance(found, dict) else {}


def _fingerprint(row: DocumentRow) -> Fingerprint | None:
    return Fingerprint.parse(str(_kept(row).get("fingerprint", "")))


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
