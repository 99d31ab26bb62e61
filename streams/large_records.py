"""Values too long for a record travel as the hash of a stored artifact: a claim check.

On topics that carry whole documents or what somebody else sent, a record above `MAX_RECORD_BYTES` is appended as a
claim: the same key and headers behind a first header `content-type: application/vnd.quillstream.claim+json`, and as
its value {"artifact": "sha256:…", "bytes": …}. The value itself lies in the folder, stored before the record is
appended, and comes back when it is read. Where the artifact is missing or damaged the claim itself is handed on,
which no consumer can decode: it goes to the dead letters with that reason, and a replay after the artifact is back
finds it. Several machines need one shared folder (`log.claims`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from infra.artifacts import Artifacts, write_atomic
from infra.errors import InputError, QuillError, Unavailable
from streams.events import CONTENT_DOCUMENTS, LLM_INTAKE
from streams.log import MAX_RECORD_BYTES, EventLog, GroupReader, LostPartition, Record, StoredRecord, check_appendable

CONTENT_TYPE = b"application/vnd.quillstream.claim+json"
MAX_VALUE_BYTES = 256 << 20
"""The longest value that is stored: a reader holds it in memory."""
HELD_BYTES = 64 << 20
"""Stored values that one read or poll brings back, unless the first alone is longer."""
_MARK = ("content-type", CONTENT_TYPE)
_IDENTITY = re.compile("sha256:[0-9a-f]{64}")
_log = logging.getLogger(__name__)
R = TypeVar("R", bound=Record)


def takes_claims(topic: str) -> bool:
    """Whether long records of a topic are stored: not where text is unmasked, which must not stay."""
    return topic == CONTENT_DOCUMENTS or (topic.endswith((".dlq", ".retry")) and not topic.startswith(f"{LLM_INTAKE}."))


def check_large(topic: str, record: Record) -> None:
    """Raise `InputError` for what a log with claims does not take. See `check_appendable`."""
    if not takes_claims(topic) or len(record.value) <= MAX_RECORD_BYTES // 2:
        check_appendable(topic, [record])
        return
    check_appendable(topic, [replace(record, value=b"")])
    if len(record.value) > MAX_VALUE_BYTES:
        seen, rule = f"{len(record.value)} bytes", f"at most {MAX_VALUE_BYTES} bytes"
        raise InputError(f"a record for {topic} is too long", seen=seen, rule=rule)


def is_claim(record: Record) -> bool:
    """Whether the value of a record is stored elsewhere."""
    return record.headers[:1] == (_MARK,)


class Claims:
    """The stored values, in a folder of artifacts that may be shared."""

    def __init__(self, folder: Path) -> None:
        self._artifacts = Artifacts(folder)

    def put(self, topic: str, record: Record) -> Record:
        """The record to append for this one: itself, or its claim once its value is on disk."""
        check_large(topic, record)
        try:
            check_appendable(topic, [record])
            return record
        except InputError:
            pass
        identity = "sha256:" + hashlib.sha256(record.value).hexdigest()

        def fill(folder: Path) -> dict[str, int]:
            write_atomic(folder / "value", record.value)
            return {"bytes": len(record.value)}

        try:
            self._artifacts.build("record", identity, {"topic": topic}, fill)
        except OSError as error:
            where = self._artifacts.root
            raise Unavailable("a long record cannot be stored", seen=where, rule=str(error)) from error
        claim = json.dumps({"artifact": identity, "bytes": len(record.value)}).encode()
        return replace(record, value=claim, headers=(_MARK, *record.headers))

    def size(self, record: Record) -> int:
        """Bytes that `get` would bring; 0 when it would bring nothing."""
        try:
            return int(json.loads(record.value)["bytes"]) if is_claim(record) else 0
        except (ValueError, TypeError, LookupError):
            return 0

    def get(self, record: R) -> R:
        """The record as it was put; a claim whose artifact is missing or damaged stays as it is."""
        if not is_claim(record):
            return record
        try:
            identity = str(json.loads(record.value)["artifact"])
            if not _IDENTITY.fullmatch(identity):
                raise ValueError(f"not the hash of an artifact: {identity}")
            self._artifacts.get("record", identity)
            value = (self._artifacts.path("record", identity) / "value").read_bytes()
        except (OSError, ValueError, TypeError, LookupError, QuillError) as error:
            _log.error("the value of a record is not here: %s", error)
            return record
        if "sha256:" + hashlib.sha256(value).hexdigest() != identity:
            _log.error("the stored value %s is damaged", identity)
            return record
        return replace(record, value=value, headers=record.headers[1:])


class LargeRecords:
    """`EventLog` that keeps long values in a folder beside another one."""

    def __init__(self, log: EventLog, folder: Path) -> None:
        self._inner = log
        self._claims = Claims(folder)

    def ensure_topics(self, topics: Sequence[str]) -> None:
        """See `EventLog`."""
        self._inner.ensure_topics(topics)

    def append(self, topic: str, records: Sequence[Record]) -> list[tuple[int, int]]:
        """See `EventLog`. Records of some topics may be up to `MAX_VALUE_BYTES` long."""
        if takes_claims(topic):
            for record in records:
                check_large(topic, record)
            records = [self._claims.put(topic, record) for record in records]
        return self._inner.append(topic, records)

    def read(self, topic: str, partition: int, offset: int, *, limit: int = 1000) -> list[StoredRecord]:
        """See `EventLog`."""
        found = self._inner.read(topic, partition, offset, limit=limit)
        return _fetched(self._claims, deque(found), limit) if takes_claims(topic) else found

    def partitions(self, topic: str) -> int:
        """See `EventLog`."""
        return self._inner.partitions(topic)

    def end_offsets(self, topic: str) -> dict[int, int]:
        """See `EventLog`."""
        return self._inner.end_offsets(topic)

    def offsets_at(self, topic: str, time: datetime) -> dict[int, int]:
        """See `EventLog`."""
        return self._inner.offsets_at(topic, time)

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """See `EventLog`."""
        return self._inner.committed(group, topic)

    def count(self, topic: str, partition: int, start: int, end: int) -> int:
        """See `EventLog`."""
        return self._inner.count(topic, partition, start, end)

    def join(self, group: str, topics: Sequence[str]) -> GroupReader:
        """See `EventLog`."""
        return _LargeReader(self._inner.join(group, topics), self._claims)

    def close(self) -> None:
        """See `EventLog`."""
        self._inner.close()


class _LargeReader:
    """`GroupReader` that brings stored values back, no more at once than memory takes."""

    def __init__(self, reader: GroupReader, claims: Claims) -> None:
        self._inner = reader
        self._claims = claims
        self._held: deque[StoredRecord] = deque()

    def poll(self, *, max_records: int = 100, timeout: float = 1.0) -> list[StoredRecord]:
        """See `GroupReader`."""
        if self._held:
            # Partitions change hands inside this poll; one more record is the least it can bring.
            self._held += self._inner.poll(max_records=1, timeout=0)
            owned = self._inner.assignment()
            self._held = deque(each for each in self._held if (each.topic, each.partition) in owned)
        else:
            self._held += self._inner.poll(max_records=max_records, timeout=timeout)
        return _fetched(self._claims, self._held, max_records)

    def commit(self, next_offsets: Mapping[tuple[str, int], int]) -> None:
        """See `GroupReader`."""
        self._inner.commit(next_offsets)

    def publish(self, outputs: Sequence[tuple[str, Record]], next_offsets: Mapping[tuple[str, int], int]) -> None:
        """See `GroupReader`."""
        put: Callable[[str, Record], Record] = self._claims.put
        claimed = [(topic, put(topic, record) if takes_claims(topic) else record) for topic, record in outputs]
        try:
            self._inner.publish(claimed, next_offsets)
        except LostPartition:
            self._held = deque(each for each in self._held if (each.topic, each.partition) not in next_offsets)
            raise

    def assignment(self) -> set[tuple[str, int]]:
        """See `GroupReader`."""
        return self._inner.assignment()

    def close(self) -> None:
        """See `GroupReader`."""
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _fetched(claims: Claims, records: deque[StoredRecord], limit: int) -> list[StoredRecord]:
    """Take up to `limit` records off the front with their values, until these are `HELD_BYTES` long together."""
    found: list[StoredRecord] = []
    size = 0
    while records and len(found) < limit:
        size += claims.size(records[0])
        if found and size > HELD_BYTES:
            break
        found.append(claims.get(records.popleft()))
    return found
