"""Exports: JSON Lines, JSON lists and CSV tables whose rows are articles, posts or code."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from infra.identity import content_id, short
from retrieval.extraction import VERSION, Unusable, decode, markdown, normalise, plain_title
from retrieval.markup import html_to_markdown
from retrieval.source_metadata import known_metadata
from retrieval.sources import MAX_BYTES, Item, Listing, Reading, Rejected, SourceDocument, Unchanged, too_large

LINES = frozenset({".jsonl", ".ndjson"})
TABLES = frozenset({".json", ".csv"})
EXPORTS = LINES | TABLES
TEXT_NAMES = ("text", "content", "body", "markdown", "html", "sharecommentary", "code", "selftext", "message")
TITLE_NAMES = ("title", "name", "headline", "subject")
ID_NAMES = ("id", "_id", "uuid", "slug", "url", "link", "sharelink", "path")
CONTAINERS = ("artifact_data", "data", "items", "documents", "articles", "posts", "rows")
BAD_ROWS = 20
"""Bad rows of one export that are named one by one; the others are counted in a last line."""


class _Row(NamedTuple):
    name: str
    read: Callable[[], Mapping[str, Any]]


def list_export(file: Path, *, named: bool = True) -> Listing | None:
    """The rows of an export as items, `FILE#id` each. Raises `Unusable` when the file is not one.

    A row's id is its `id`, `_id`, `slug` or `url`, else its content: a row without one that changes is another row.
    None when `named` is false and the first good row holds no text: a folder holds many tables that are not documents.
    """
    rejected: list[Rejected] = []
    items: dict[str, Item] = {}
    bad = 0
    for number, found in enumerate(_rows(file), start=1):
        row = found if isinstance(found, str) else _item(file, found)
        if isinstance(row, Item):
            items.setdefault(row.source, row)
            continue
        if not named and not items and not isinstance(found, str):
            return None
        bad += 1
        if bad <= BAD_ROWS:
            rejected.append(Rejected(source=f"{file}#{number}", reason=row))
    if bad > BAD_ROWS:
        rejected.append(Rejected(source=str(file), reason=f"{bad - BAD_ROWS} more rows cannot be used"))
    return Listing(scope=str(file), items=list(items.values()), rejected=rejected)


def _rows(file: Path) -> Iterator[_Row | str]:
    """Each row, or why it is none."""
    if file.suffix.lower() in LINES:
        yield from _lines(file)
        return
    if file.stat().st_size > MAX_BYTES:
        raise too_large(file.stat().st_size)
    text = decode(file.read_bytes())
    rows = _table(text) if file.suffix.lower() == ".csv" else _list(text)
    for row in rows:
        yield _Row(_name(row), partial(dict, row)) if isinstance(row, dict) else "the row is not an object"


def _lines(file: Path) -> Iterator[_Row | str]:
    """Rows by their place: what is not read now is not held either, so that a file may be longer than memory."""
    with file.open("rb") as opened:
        while True:
            start = opened.tell()
            line = opened.readline(MAX_BYTES + 1)
            if not line:
                return
            if len(line) > MAX_BYTES:
                while line and not line.endswith(b"\n"):
                    line = opened.readline(MAX_BYTES)
                yield f"the line is longer than {MAX_BYTES / 1e6:.0f} MB"
                continue
            if not line.strip():
                continue
            row = _parsed(line)
            yield row if isinstance(row, str) else _Row(_name(row), _reader(file, start, len(line)))


def _reader(file: Path, start: int, length: int) -> Callable[[], Mapping[str, Any]]:
    def read() -> Mapping[str, Any]:
        with file.open("rb") as opened:
            opened.seek(start)
            row = _parsed(opened.read(length))
        if isinstance(row, str):
            raise Unusable(f"the file changed while it was read: {row}")
        return row

    return read


def _parsed(line: bytes) -> dict[str, Any] | str:
    try:
        row = json.loads(decode(line))
    except Unusable as error:
        return error.what
    except (ValueError, RecursionError) as error:
        return f"the line is not JSON ({str(error)[:80]})"
    return row if isinstance(row, dict) else "the row is not an object"


def _item(file: Path, row: _Row) -> Item | str:
    if not _text(row.read())[1]:
        return f"the row has no text (one of {', '.join(TEXT_NAMES)})"
    return Item(f"{file}#{row.name}", partial(_document, f"{file}#{row.name}", row))


def _document(source: str, row: _Row, seen: str) -> Reading:
    try:
        fields = row.read()
    except (Unusable, OSError) as error:
        return Rejected(source=source, reason=str(error))
    now = content_id("row", [VERSION, repr(sorted(_flat(fields).items()))])
    if now == seen:
        return Unchanged(source=source)
    flat = _flat(fields)
    name, text = _text(fields)
    body = markdown(html_to_markdown(text)[1] if name == "html" else text, "row")
    title = next((str(flat[key]) for key in TITLE_NAMES if flat.get(key)), "") or _first_words(body.text)
    metadata = known_metadata(flat) | body.metadata
    if not body.text:
        return Rejected(source=source, reason="it holds no text")
    return SourceDocument(source=source, title=plain_title(title), text=body.text, metadata=metadata, seen=now)


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with lower-case names; a nested `content`, `metadata` or `metadata.properties` is taken up into it."""
    flat = {str(key).lower(): value for key, value in row.items()}
    for key in ("metadata", "properties", "content"):
        inner = flat.get(key)
        if isinstance(inner, Mapping):
            del flat[key]
            flat = {str(name).lower(): value for name, value in inner.items() if value} | flat
    return flat


def _text(row: Mapping[str, Any]) -> tuple[str, str]:
    """(name, text) of the field that holds the row's text; ('', '') when none does."""
    flat = _flat(row)
    for name in TEXT_NAMES:
        if isinstance(flat.get(name), str) and flat[name].strip():
            return name, flat[name]
    return "", ""


def _name(row: Mapping[str, Any]) -> str:
    flat = {str(key).lower(): value for key, value in row.items()}
    given = next((str(flat[key]) for key in ID_NAMES if isinstance(flat.get(key), str | int) and flat[key] != ""), "")
    return given[:300] or short(content_id("row", repr(sorted(flat.items(), key=lambda item: item[0]))))


def _first_words(text: str) -> str:
    words = normalise(text).split()
    return " ".join(words[:10]) + (" …" if len(words) > 10 else "")


def _list(text: str) -> list[Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unusable(f"it is not JSON ({str(error)[:80]})") from error
    if isinstance(found, dict):
        found = next((found[key] for key in CONTAINERS if isinstance(found.get(key), list)), found)
    if not isinstance(found, list):
        raise Unusable("it is not a list of objects, which is what an export holds")
    return found


def _table(text: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(MAX_BYTES)
    try:
        for row in csv.DictReader(io.StringIO(text, newline="")):
            yield {key: value for key, value in row.items() if key and value}
    except csv.Error as error:
        raise Unusable(f"it is not a CSV table ({error})") from error
