"""Made-up personal data and secrets, each one unique, and the search for them in everything an installation left."""

from __future__ import annotations

import gzip
import json
import random
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet
import re2
import zstandard

from streams.log import EventLog, StoredRecord

PATTERNS = {"BADGE": r"\bBADGE-[A-Z]{2}\d{6}\b"}
"""The operator's own pattern, as `masking.patterns` names it."""
_LETTERS = "abcdefghjkmnpqrstuvwxyz"


class Canary(NamedTuple):
    """Something that must not be kept."""

    kind: str
    value: str
    written: str
    """How it stands in a text; the value is a part of it."""

    @property
    def masked(self) -> str:
        """What must stand there instead."""
        return self.written.replace(self.value, f"[{self.kind}]")


def canaries(number: int, seed: str = "canaries") -> list[Canary]:
    """As many different ones, of every kind in turn."""
    chance = random.Random(seed)
    return [_FORMS[each % len(_FORMS)](each, chance) for each in range(number)]


def sentence(some: Sequence[Canary], *, masked: bool = False) -> str:
    """One text with all of them, as a person writes it or as it must be kept."""
    return "; ".join(one.masked if masked else one.written for one in some) + "."


def found_in_files(folder: Path, wanted: Iterable[Canary], *, apart_from: Sequence[str] = ()) -> dict[str, set[str]]:
    """Value of each canary that is found to the places: raw bytes of every file below a folder, rows of SQLite files,
    cells of Parquet files, what is packed with gzip or zstd. Paths that contain a text of `apart_from` are passed over.
    """
    hits: dict[str, set[str]] = {}
    search = _search(wanted)
    looked = 0
    for file in sorted(folder.rglob("*")):
        if file.is_file() and not any(part in str(file.relative_to(folder)) for part in apart_from):
            looked += 1
            for content in _contents(file):
                for value in search(content):
                    hits.setdefault(value, set()).add(str(file.relative_to(folder)))
    assert looked, f"there is no file in {folder}"
    return hits


def found_in_log(log: EventLog, topics: Iterable[str], wanted: Iterable[Canary]) -> dict[str, set[str]]:
    """The same for every record of the topics: key, headers and value as a reader gets them, unpacked."""
    hits: dict[str, set[str]] = {}
    search = _search(wanted)
    for topic in topics:
        for record in records(log, topic):
            headers = b"\n".join(part for name, value in record.headers for part in (name.encode(), value))
            for value in search(b"\n".join([record.key.encode(), headers, record.value])):
                hits.setdefault(value, set()).add(topic)
    return hits


def records(log: EventLog, topic: str) -> Iterator[StoredRecord]:
    """Every record of a topic."""
    for partition in log.end_offsets(topic):
        offset = 0
        while page := log.read(topic, partition, offset):
            yield from page
            offset = page[-1].offset + 1


class EchoUpstream:
    """An OpenAI-compatible endpoint that says what the last message said; the model `refuse` does so in an error."""

    def __init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Echo)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Echo(BaseHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(200, {"object": "list", "data": [{"id": "echo", "object": "model"}]})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = str(request["messages"][-1]["content"])
        if request["model"] == "refuse":
            self._answer(429, {"error": {"message": f"too often: {said}", "type": "rate_limit", "code": "rate"}})
        elif request.get("stream"):
            self._stream(said)
        else:
            choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            head = {"object": "chat.completion", "created": 1, "model": "echo", "usage": usage}
            self._answer(200, {"id": _new_id(), **head, "choices": [choice]})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _stream(self, said: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        head = {"id": _new_id(), "object": "chat.completion.chunk", "created": 1, "model": "echo"}
        # In pieces that cut through what is to be masked.
        deltas = [{"content": said[start : start + 7]} for start in range(0, len(said), 7)]
        choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
        for choice in [*choices, {"index": 0, "delta": {}, "finish_reason": "stop"}]:
            self.wfile.write(b"data: " + json.dumps({**head, "choices": [choice]}).encode() + b"\n\n")
        self.wfile.write(b"data: [DONE]\n\n")


def _new_id() -> str:
    return "chatcmpl-" + "".join(random.choices(_LETTERS, k=20))


# --- the kinds --------------------------------------------------------------------------------------------


def _email(number: int, chance: random.Random) -> Canary:
    value = f"{_word(chance, 6)}.{number}@{_word(chance, 5)}.example.org"
    return Canary("EMAIL", value, f"write to {value}")


def _phone(number: int, chance: random.Random) -> Canary:
    value = chance.choice(["+49 30 {}", "+1 212-555-{}", "+44 20 7946 {}", "(030) 55 {}"]).format(f"{number:04d}")
    return Canary("PHONE", value, f"my phone: {value}")


def _card(number: int, chance: random.Random) -> Canary:
    digits = f"4{number:06d}{chance.randrange(10**8):08d}"
    total = sum(sum(divmod(2 * int(digit), 10)) for digit in digits[::-2]) + sum(map(int, digits[-2::-2]))
    digits += str(-total % 10)
    groups = " ".join(digits[start : start + 4] for start in range(0, 16, 4))
    value = chance.choice([digits, groups, groups.replace(" ", "-")])
    return Canary("CARD", value, f"my card is {value}")


def _iban(number: int, chance: random.Random) -> Canary:
    account = f"{chance.randrange(10**8):08d}{number:010d}"
    check = 98 - int(f"{account}131400") % 97  # D = 13, E = 14, and 00 for the check digits
    compact = f"DE{check:02d}{account}"
    value = chance.choice([compact, " ".join(compact[start : start + 4] for start in range(0, 22, 4))])
    return Canary("IBAN", value, f"the account {value}")


def _ip(number: int, chance: random.Random) -> Canary:
    four = f"203.{100 + number // 100}.{100 + number % 100}.{chance.randrange(100, 250)}"
    value = chance.choice([four, f"2001:db8:{number:x}::c0de:{chance.randrange(4096, 65536):x}"])
    return Canary("IP", value, f"from {value}")


def _key(number: int, chance: random.Random) -> Canary:
    body = f"{_word(chance, 12)}{number:04d}{_word(chance, 20)}"
    value = chance.choice(["sk-{}", "ghp_{}", "hf_{}", "xoxb-{}"]).format(body)
    return Canary("SECRET", value, f"the key {value}")


def _token(number: int, chance: random.Random) -> Canary:
    body = f"{_word(chance, 10)}{number:04d}{_word(chance, 10)}"
    form = chance.choice(["Authorization: Bearer {}", "password={}", "https://me:{}@example.org/", "token: {}"])
    return Canary("SECRET", body, form.format(body))


def _badge(number: int, chance: random.Random) -> Canary:
    value = f"BADGE-{_word(chance, 2).upper()}{number:06d}"
    return Canary("BADGE", value, f"I wear {value}")


def _word(chance: random.Random, length: int) -> str:
    return "".join(chance.choices(_LETTERS, k=length))


_FORMS = (_email, _phone, _card, _iban, _ip, _key, _token, _badge)


# --- the search -------------------------------------------------------------------------------------------


def _search(wanted: Iterable[Canary]) -> Any:
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.max_mem = 256 << 20
    compiled = re2.compile(b"|".join(re2.escape(one.value.encode()) for one in wanted), options)
    return lambda content: {value.decode() for value in compiled.findall(content)}


def _contents(file: Path) -> Iterator[bytes]:
    raw = file.read_bytes()
    yield raw
    if raw.startswith(b"SQLite format 3\0"):
        yield from _rows(file)
    elif raw.startswith(b"PAR1"):
        yield json.dumps(pyarrow.parquet.read_table(file).to_pylist(), default=str, ensure_ascii=False).encode()
    elif raw.startswith(b"\x1f\x8b"):
        yield gzip.decompress(raw)
    elif raw.startswith(b"\x28\xb5\x2f\xfd"):
        yield zstandard.ZstdDecompressor().decompressobj().decompress(raw)


def _rows(file: Path) -> Iterator[bytes]:
    """Long values are cut by pages in the file, so they are read as SQLite gives them."""
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as connection:
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for row in connection.execute(f'SELECT * FROM "{table}"'):
                yield b"\n".join(value if isinstance(value, bytes) else str(value).encode() for value in row)
    connection.close()
