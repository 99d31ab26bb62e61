"""What documents say about themselves, under one set of names: author, date, tags, url, sources."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date, datetime
from email.utils import parsedate_to_datetime
from typing import Any

NAMES = {
    "author": "author", "authors": "author", "author_full_name": "author", "creator": "author", "byline": "author",
    "date": "date", "published": "date", "published_at": "date", "pubdate": "date", "created": "date",
    "created_at": "date", "date_published": "date", "lastmod": "date", "tags": "tags", "tag": "tags",
    "keywords": "tags", "categories": "tags", "topics": "tags", "url": "url", "link": "url", "canonical_url": "url",
    "permalink": "url", "sharelink": "url", "origin": "url", "sources": "sources", "platform": "platform",
    "language": "language",
}  # fmt: skip
LONGEST = 500
"""Characters kept of one value: more is no author, tag or address."""
PDF_DATE = re.compile(r"D:(\d{4})(\d\d)?(\d\d)?")
REDUCED = re.compile(r"\d{4}(?:-(?:0[1-9]|1[0-2]))?")
EITHER_WAY = re.compile(r"\s*(\d{1,2})[/.](\d{1,2})[/.]\d{2,4}")


def known_metadata(found: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata that is kept, as JSON values: the first of each name that says something.

    Nested values are left out: YAML can make a few bytes mean gigabytes. Dates are ISO 8601; what is no date is
    left out too.
    """
    kept: dict[str, Any] = {}
    for key, value in found.items():
        name = NAMES.get(str(key).lower())
        if name and name not in kept and (plain := _plain(value, name)):
            kept[name] = plain
    return kept


def iso_date(value: object) -> str:
    """A date or time as ISO 8601, as precise as it was given ('2026', '2026-01', '2026-01-08', with time and zone).

    Reads ISO 8601, RFC 2822 (e-mail, RSS), the day of PDF dates, and dates in English words. '' for what is
    none of these, and for 01/02/2026, which means two different days.
    """
    if isinstance(value, datetime | date):
        return value.isoformat()
    text = str(value).strip()[:100]
    if REDUCED.fullmatch(text):
        return text
    if match := PDF_DATE.match(text):
        return _pdf_date(match)
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            found = read(text)
        except (ValueError, TypeError, IndexError):
            continue
        return found.date().isoformat() if len(text) <= 10 else found.isoformat()
    return _date_in_words(text)


def _plain(value: Any, name: str) -> Any:
    if name == "date":
        return iso_date(value) if _is_scalar(value) else ""
    if isinstance(value, list | tuple):
        parts = [_named(item) for item in value[:100]]
        parts = [part for part in parts if part]
        return list(dict.fromkeys(parts)) if name in {"tags", "sources"} else ", ".join(parts)[:LONGEST]
    text = _named(value)
    if name == "tags":
        return list(dict.fromkeys(part.strip() for part in re.split(r"[,;]", text) if part.strip()))
    return [text] if name == "sources" and text else text


def _named(value: Any) -> str:
    """A scalar as text, or the name of `{name: …}`."""
    if isinstance(value, Mapping):
        value = next((value[key] for key in ("name", "title", "term", "value") if key in value), "")
    return re.sub(r"\s+", " ", str(value)).strip()[:LONGEST] if _is_scalar(value) else ""


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int | float | date) and not isinstance(value, bool)


def _pdf_date(match: re.Match[str]) -> str:
    text = "-".join(part for part in match.groups() if part)
    try:
        return text if REDUCED.fullmatch(text) else date.fromisoformat(text).isoformat()
    except ValueError:
        return ""


def _date_in_words(text: str) -> str:
    from dateutil.parser import ParserError, parse

    either = EITHER_WAY.match(text)
    if either and max(int(either[1]), int(either[2])) <= 12 and either[1] != either[2]:
        return ""
    if not re.search(r"\d{4}", text):
        return ""
    readings: list[datetime] = []
    for default in (datetime(1, 1, 1), datetime(2, 2, 2)):  # noqa: DTZ001 - what differs is what the text left open
        try:
            readings.append(parse(text, default=default))
        except (ParserError, OverflowError, ValueError):
            return ""
    first, second = readings
    if first.year != second.year:
        return ""
    if first.month != second.month:
        return f"{first.year:04}"
    if first.day != second.day:
        return f"{first.year:04}-{first.month:02}"
    return first.isoformat() if any((first.hour, first.minute, first.tzinfo)) else first.date().isoformat()


def merged(*sources: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of several origins; the first that says something wins, name by name."""
    kept: dict[str, Any] = {}
    for source in sources:
        kept.update({name: value for name, value in source.items() if value and name not in kept})
    return kept
