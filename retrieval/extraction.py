"""Bytes of one file to title, text and metadata. Text keeps (or receives) Markdown structure.

Raises `Unusable` with a reason a person can act on; the caller turns it into a `Rejected`.
"""

from __future__ import annotations

import codecs
import io
import re
import tomllib
import unicodedata
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from infra.errors import InputError
from infra.identity import Value
from retrieval.docx import docx_to_html
from retrieval.markup import html_to_markdown, rst_to_markdown
from retrieval.program_code import LANGUAGES, code_to_markdown
from retrieval.source_metadata import known_metadata
from retrieval.webpage import read_page

VERSION = 1
"""Raised when the same bytes give another text or other metadata: what was read before is read again."""

MARKDOWN = frozenset({".md", ".markdown", ".mdx"})
HTML = frozenset({".html", ".htm", ".xhtml"})
RST = frozenset({".rst"})
TEXT = frozenset({".txt", ".text"})
PDF = frozenset({".pdf"})
DOCX = frozenset({".docx"})
SUFFIXES = MARKDOWN | HTML | RST | TEXT | PDF | DOCX
CODE = frozenset(LANGUAGES)

FRONT_MATTER = re.compile(r"\A(---|\+\+\+)[ \t]*\n(.*?)\n\1[ \t]*(?:\n|\Z)", re.DOTALL)
LONGEST_FRONT_MATTER = 100_000
LONGEST_TITLE = 500
MOST_DAMAGE = 0.01
"""Share of characters of a web page that may be broken: browsers show them as �, and so are they read."""
FIRST_HEADING = re.compile(r"^#[ \t]+(\S.{0,500}?)[ \t]{0,10}#{0,10}$", re.MULTILINE)
HTML_CHARSET = re.compile(rb"<meta[^>]+charset=[\"']?\s*([\w.:-]+)", re.IGNORECASE)


class _FrontMatter(yaml.SafeLoader):
    """YAML whose dates stay text: one 31st of November would cost all other fields."""


_FrontMatter.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class Unusable(InputError):
    """A source that cannot become a document; `what` is the reason."""


class Extracted(Value):
    """What one file says."""

    title: str = Field(description="Title; never empty.")
    text: str = Field(description="Normalised text, Markdown structure.")
    metadata: dict[str, Any] = Field(description="author, date, tags, url, sources: those the file gives.")


def extract(data: bytes, name: str, charset: str = "") -> Extracted:
    """Title, text and metadata of a file's bytes by the suffix of its name. Raises `Unusable`.

    `charset` is what the sender of a web page says about it; other texts are UTF-8.
    """
    if not data.strip():
        raise Unusable("it is empty")
    try:
        extracted = _by_kind(data, name, charset)
    except RecursionError as error:
        raise Unusable("it is nested too deeply") from error
    if not extracted.text:
        raise Unusable("it holds no text")
    return extracted


def _by_kind(data: bytes, name: str, charset: str) -> Extracted:
    suffix = Path(name).suffix.lower()
    if suffix in PDF:
        return _pdf(data, name)
    if suffix in DOCX:
        return _docx(data, name)
    if suffix in HTML:
        return web_page(decode_page(data, charset), name)
    if suffix in MARKDOWN:
        return markdown(decode(data), name)
    if suffix in RST:
        return markdown(rst_to_markdown(decode(data)), name)
    if suffix in CODE:
        title, text = code_to_markdown(normalise(decode(data)), name)
        return Extracted(title=title, text=text, metadata={})
    return Extracted(title=title_from_name(name), text=normalise(decode(data)), metadata={})


def decode(data: bytes, encoding: str = "utf-8-sig", errors: str = "strict") -> str:
    """Text of bytes. Raises `Unusable` naming the byte and its offset when they are not in the encoding."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Unusable("it is UTF-16, not UTF-8; save it as UTF-8")
    if b"\0" in data[:8192]:
        raise Unusable("it is binary (a NUL byte in its first 8 KiB)")
    try:
        return data.decode(encoding, errors)
    except UnicodeDecodeError as error:
        byte = data[error.start]
        label = encoding.removesuffix("-sig").upper()
        reason = f"it is not {label}: byte 0x{byte:02x} at offset {error.start}; save it as UTF-8"
        raise Unusable(reason) from error


def decode_page(data: bytes, charset: str = "") -> str:
    """Text of a web page, by its byte order mark, its sender, its own declaration, or else UTF-8 or windows-1252.

    Single broken characters become �; raises `Unusable` when it is binary or broken throughout.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace")
    declared = HTML_CHARSET.search(data[:4096])
    for name in (charset, declared[1].decode("ascii") if declared else ""):
        if name and _is_charset(name):
            text = decode(data, name, "replace")
            break
    else:
        try:
            return decode(data)
        except Unusable:
            text = decode(data, "windows-1252", "replace")  # what browsers take it for (WHATWG HTML, 13.2.3.2)
    if text.count("\ufffd") > MOST_DAMAGE * len(text):
        raise Unusable("its encoding is broken throughout; save it as UTF-8")
    return text


def _is_charset(name: str) -> bool:
    try:
        "".encode(codecs.lookup(name).name)
    except (LookupError, UnicodeError):
        return False
    return True


def normalise(text: str) -> str:
    """Unicode NFC, Unix line ends, no control or zero-width characters, at most two empty lines in a row."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = "".join(char for char in text if char in "\n\t" or unicodedata.category(char) not in _DROPPED)
    text = "\n".join(line.rstrip() for line in text.replace("\u00a0", " ").split("\n"))
    return re.sub(r"\n{4,}", "\n\n\n", text).strip()


# Cc: control, Cf: zero-width and direction marks, Co: private use, Cs: lone surrogates, Cn: unassigned.
_DROPPED = frozenset({"Cc", "Cf", "Co", "Cs", "Cn"})


def markdown(text: str, name: str) -> Extracted:
    """Markdown with optional YAML front matter; broken front matter is dropped, the text stays."""
    text = normalise(text)
    match = FRONT_MATTER.match(text[:LONGEST_FRONT_MATTER])
    front = _front_matter(match[1], match[2]) if match else {}
    body = text[match.end() :].strip() if match else text
    heading = FIRST_HEADING.search(_without_code(body))
    title = str(front.get("title") or "").strip() or (heading[1] if heading else "") or title_from_name(name)
    return Extracted(title=plain_title(title), text=body, metadata=known_metadata(front))


def title_from_name(name: str) -> str:
    """A readable title from a file name: `vector-databases.md` to `Vector databases`."""
    stem = re.sub(r"[-_]+", " ", Path(name).stem).strip() or name
    return stem[:1].upper() + stem[1:]


def web_page(html: str, name: str, url: str = "") -> Extracted:
    """What an HTML page says, without the furniture around it. Raises `Unusable`."""
    try:
        title, text, metadata = read_page(html, url)
    except ValueError as error:
        raise Unusable(str(error)) from error
    return Extracted(
        title=plain_title(title) or title_from_name(name), text=normalise(text), metadata=known_metadata(metadata)
    )


def _docx(data: bytes, name: str) -> Extracted:
    try:
        html, properties = docx_to_html(data)
    except ValueError as error:
        raise Unusable(str(error)) from error
    heading, text, _ = html_to_markdown(html)
    title = plain_title(str(properties.get("title") or heading))
    return Extracted(title=title or title_from_name(name), text=normalise(text), metadata=known_metadata(properties))


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
    metadata = known_metadata(
        {"author": info.get("author"), "tags": info.get("keywords"), "date": info.get("creationdate")}
    )
    return Extracted(title=plain_title(info.get("title", "")) or title_from_name(name), text=text, metadata=metadata)


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


def _front_matter(fence: str, source: str) -> dict[str, Any]:
    try:
        found = tomllib.loads(source) if fence == "+++" else yaml.load(source, Loader=_FrontMatter)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def plain_title(title: str) -> str:
    """A title without markup, on one line."""
    title = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", normalise(title[:LONGEST_TITLE]))
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>|[`*]", "", title)).strip()


def _without_code(text: str) -> str:
    return re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE)
