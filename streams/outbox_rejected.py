"""Records that the log refused for good, one a line with the reason."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from pathlib import Path

from infra.errors import Unavailable
from streams.segments import Outgoing


class Rejected:
    """The file of refused records. Headers and values are base64, because they may be any bytes."""

    def __init__(self, file: Path) -> None:
        self._path = file

    def add(self, refused: Sequence[tuple[Outgoing, str]]) -> None:
        """Keep records with their reasons; on disk when this returns. After a crash one may be kept twice."""
        if not refused:
            return
        try:
            with self._path.open("ab") as file:
                file.write(b"".join(_line(each, reason) for each, reason in refused))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise Unavailable("the outbox cannot be written", seen=self._path, rule=str(error)) from error

    def size(self) -> int:
        """Bytes on the disk."""
        return self._path.stat().st_size if self._path.exists() else 0

    def count(self) -> int:
        """How many different events were refused."""
        try:
            with self._path.open("rb") as file:
                return len({line[: line.find(b",")] for line in file})
        except FileNotFoundError:
            return 0


def _line(outgoing: Outgoing, reason: str) -> bytes:
    event_id, topic, record = outgoing
    fields = {
        "event_id": event_id,
        "topic": topic,
        "key": record.key,
        "reason": reason,
        "headers": [[name, base64.b64encode(value).decode()] for name, value in record.headers],
        "value": base64.b64encode(record.value).decode(),
    }
    return json.dumps(fields).encode() + b"\n"
