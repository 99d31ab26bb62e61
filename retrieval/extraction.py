"""Bytes of one file to title, text and metadata. Text keeps (or receives) Markdown structure.

Raises `Unusable` with a reason a person can act on; the caller turns it into a `Rejected`.
"""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from infra.errors import InputError
from infra.identity import Value
from retrieval.markup import html_to_markdown, rst_to_markdown

MARKDOWN = frozenset({".md", ".markdown", ".mdx"})
HTML = frozenset({".html", ".htm", ".xhtml"})
RST = frozenset({".rst"})
TEXT = frozenset({".txt", ".text"})
PDF = frozenset({".pdf"})
SUFFIXES = MARKDOWN | HTML | RST | TEXT | PDF

FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?)\n---[ \t]*(?:\n|\Z)", re.DOTALL)
FIRST_HEADING = re.compile(r"^#\s+(.+?)\s*#*\s*$", re.MULTILINE)
HTML_CHARSET = re.compile(rb"<meta[^>]+charset=[\"']?\s*([\w.:-]+)", re.IGNORECASE)
METADATA_NAMES = {
    "author": "author", "authors": "author", "date": "date", "created": "date", "tags": "tags",
    "keywords": "tags", "url": "url", "canonical_url": "url", "origin": "url", "sources": "sources",
}  # fmt: skip


class Unusable(InputError):
    """A source that cannot become a document; `what` is the reason."""


class Extracted(Value):
    """What one file says."""

    title: str = Field(description="Title; never empty.")
    text: str = Field(description="Normalised text, Markdown structure.")
    metadata: dict[str, Any] = Field(description="author, date, tags, url, sources: those the file gives.")


def extract(data: bytes, name: str) -> Extracted:
    """Title, text and metadata of a file's bytes by the suffix of its name. Raises `Unusable`."""
    if not data.strip():
        raise Unusable("it is empty")
    suffix = Path(name).suffix.lower()
    if suffix in PDF:
        extracted = _pdf(data, name)
    elif suffix in HTML:
        extracted = _html(data, name)
    elif suffix in MARKDOWN:
        extracted = markdown(decode(data), name)
    elif suffix in RST:
        extracted = markdown(rst_to_markdown(decode(data)), name)
    else:
        extracted = Extracted(title=title_from_name(name), text=normalise(decode(data)), metadata={})
    if not extracted.text:
        raise Unusable("it holds no text")
    return extracted


def decode(data: bytes, encoding: str = "utf-8-sig") -> str:
    """Text of bytes. Raises `Unusable` naming the byte and its offset when they are not in the encoding."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Unusable("it is UTF-16, not UTF-8; save it as UTF-8")
    if b"\0" in data[:8192]:
        raise Unusable("it is binary (a NUL byte in its first 8 KiB)")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        byte = data[error.start]
        label = encoding.removesuffix("-sig").upper()
        reason = f"it is not {label}: byte 0x{byte:02x} at offset {error.start}; save it as UTF-8"
        raise Unusable(reason) from error


def normalise(text: str) -> str:
    """Unicode NFC, Unix line ends, no control or zero-width characters, at most two empty lines in a row."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = "".join(char for char in text if char in "\n\t" or unicodedata.category(char) not in _DROPPED)
    text = re.sub(r"[ \t\u00a0]+\n", "\n", text.replace("\u00a0", " "))
    return re.sub(r"\n{4,}", "\n\n\n", text).strip()


# Cc: control, Cf: zero-width and direction marks, Co: private use, Cs: lone surrogates, Cn: unassigned.
_DROPPED = frozenset({"Cc", "Cf", "Co", "Cs", "Cn"})


def markdown(text: str, name: str) -> Extracted:
    """Markdown with optional YAML front matter; broken front matter is dropped, the text stays."""
    text = normalise(text)
    match = FRONT_MATTER.match(text)
    front = _front_matter(match[1]) if match else {}
    body = text[match.end() :].strip() if match else text
    heading = FIRST_HEADING.search(_without_code(body))
    title = str(front.get("title") or "").strip() or (heading[1] if heading else "") or title_from_name(name)
    return Extracted(title=_plain_title(title), text=body, metadata=known_metadata(front))


def known_metadata(found: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata Quillstream keeps, under its own names, as JSON values."""
    kept: dict[str, Any] = {}
    for key, value in found.items():
        target = METADATA_NAMES.get(str(key).lower())
        if target and target not in kept and value not in (None, "", []):
            kept[target] = _json_value(value, target)
    return kept


def title_from_name(name: str) -> str:
    """A readable title from a file name: `vector-databases.md` to `Vector databases`."""
    stem = re.sub(r"[-_]+", " ", Path(name).stem).strip() or name
    return stem[:1].upper() + stem[1:]


def _html(data: bytes, name: str) -> Extracted:
    declared = HTML_CHARSET.search(data[:4096])
    encoding = declared[1].decode("ascii") if declared else "utf-8-sig"
    try:
        "".encode(encoding)
    except LookupError:
        encoding = "utf-8-sig"
    title, text, metadata = html_to_markdown(decode(data, encoding))
    return Extracted(
        title=_plain_title(title) or title_from_name(name), text=normalise(text), metadata=known_metadata(metadata)
    )


def _pdf(data: bytes, name: str) -> Extracted:
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unusable("it is a PDF protected by a password; remove the password")
        pages = [page.extract_text() for page in reader.pages]
        info = {key.lstrip("/").lower(): str(value) for key, value in (reader.metadata or {}).items() if value}
    # A damaged file makes the parser fail in whatever it was reading: numbers, dictionaries, nested lists.
    except (PyPdfError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, OSError) as error:
        raise Unusable(f"it is a broken PDF ({type(error).__name__}: {str(error)[:80]})") from error
    text = normalise("\n\n".join(_join_lines(page) for page in pages))
    if not text:
        raise Unusable("it is a PDF without text (scanned pages?)")
    metadata = known_metadata({"author": info.get("author"), "tags": info.get("keywords")})
    return Extracted(title=_plain_title(info.get("title", "")) or title_from_name(name), text=text, metadata=metadata)


def _join_lines(page: str) -> str:
    """Lines of a PDF page joined to paragraphs: a line that ends a sentence well short of the others ends one."""
    lines = [line.strip() for line in page.splitlines()]
    width = max((len(line) for line in lines), default=0)
    out = ""
    for line in lines:
        if not line:
            out = out.rstrip() + "\n\n"
        elif out.endswith("-") and line[:1].islower():
            out = out[:-1] + line
        else:
            ends = line.endswith((".", "!", "?", ":")) and len(line) < 0.8 * width
            out += ("" if not out or out.endswith("\n") else " ") + line + ("\n\n" if ends else "")
    return out


def _front_matter(source: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(source)
    except (yaml.YAMLError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _json_value(value: Any, name: str) -> Any:
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, list | tuple):
        return [str(item) for item in value]
    if name == "tags":
        return [part.strip() for part in str(value).split(",") if part.strip()]
    return str(value).strip()


def _plain_title(title: str) -> str:
    title = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", normalise(title))
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>|[`*]", "", title)).strip()


def _without_code(text: str) -> str:
    return re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE)
