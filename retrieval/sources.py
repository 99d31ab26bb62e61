"""What every source gives: a listing of items, each read when it is needed. Files, folders and installed packages.

A source lists everything it holds before anything is read: what the listing lacks is gone from the source, and what a
listing could not cover (`complete` is false) is not.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from email.message import Message
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any, cast

from pydantic import Field

from infra.errors import NotFound
from infra.identity import Value, content_id, short
from retrieval.extraction import CODE, SUFFIXES, VERSION, Extracted, Unusable, extract, markdown, normalise
from retrieval.markup import rst_to_markdown

MAX_BYTES = 20_000_000
"""Longest file, page or blob that is read; a JSON Lines file may be longer, each of its lines may not."""


class SourceDocument(Value):
    """One document as its source gives it now."""

    source: str = Field(description="Absolute path, URL, `FILE#row` or `package:NAME`.")
    title: str = Field(description="Title, never empty.")
    text: str = Field(description="Normalised text with Markdown structure.")
    metadata: dict[str, Any] = Field(default_factory=dict, description="author, date, tags, url, sources, version.")
    seen: str = Field("", description="What the source itself tells this state by: an ETag, a hash. Not content.")

    @property
    def document_id(self) -> str:
        """Readable and stable: a slug of the source's last part and 12 hex digits of the whole source."""
        return document_id(self.source)

    @property
    def content_hash(self) -> str:
        """`sha256:…` over title, text and metadata."""
        return content_id("document", [self.title, self.text, self.metadata])


class Rejected(Value):
    """A source that cannot become a document."""

    source: str = Field(description="Absolute path, URL, `FILE#row` or `package:NAME`.")
    reason: str = Field(description="Why, as a clause that follows the source: 'it is empty'.")


class Unchanged(Value):
    """A document that its source says is as it was."""

    source: str = Field(description="As in `SourceDocument`.")


class Gone(Value):
    """An item that was listed but is not there any more."""

    source: str = Field(description="As in `SourceDocument`.")


Reading = SourceDocument | Rejected | Unchanged | Gone


@dataclass(frozen=True)
class Item:
    """Something a source lists."""

    source: str
    """As in `SourceDocument`; unique in the listing."""
    read: Callable[[str], Reading]
    """Reads it now. The argument is `SourceDocument.seen` of the last time: when it still holds, the answer may be
    `Unchanged`. '' asks for the whole document."""


@dataclass(frozen=True)
class Listing:
    """What a source holds now."""

    scope: str
    """The source itself: documents that were published under it and are not listed any more are gone."""
    items: Sequence[Item]
    """In the order in which they are read."""
    rejected: Sequence[Rejected] = ()
    """What stands in the listing but cannot be an item. Documents of the same place (`FILE` of `FILE#row`) stay."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Files of other kinds in a folder or repository, by suffix."""
    complete: bool = True
    """False: a part could not be listed, so nothing counts as gone."""
    window: str = ""
    """ISO date: documents older than it have left the listing because it shows the newest only. '' is no window."""


def document_id(source: str) -> str:
    """The id of the document at a source: `vector-databases-1f2e3d4c5b6a`."""
    last = Path(source.removeprefix("package:")).stem.lower()
    slug = re.sub(r"[^a-z0-9]+", "-", last).strip("-")[:48] or "document"
    return f"{slug}-{short(content_id('source', source))}"


def read_path(path: Path | str, skipped: Counter[str] | None = None) -> Iterator[SourceDocument | Rejected]:
    """The documents at a path, read in full: see `list_path`. `skipped` takes up the kinds a folder passed over."""
    listing = list_path(path)
    if skipped is not None:
        skipped.update(listing.skipped)
    yield from listing.rejected
    for item in listing.items:
        found = item.read("")
        if isinstance(found, SourceDocument | Rejected):
            yield found


def list_path(path: Path | str) -> Listing:
    """One file, or every file of a known kind in a folder, recursively and sorted.

    Hidden files and folders are passed over. Files of unknown kinds are rejected when named themselves; in a folder
    they are only counted, as is program code. Raises `NotFound` when the path does not exist: an absent folder is a
    mistake, not a folder whose documents were all deleted.
    """
    root = existing(path)
    if root.is_dir():
        files = list(visible_files(root))
        known = [file_item(file) for file in files if file.suffix.lower() in SUFFIXES]
        skipped = Counter(suffix_of(file) for file in files if file.suffix.lower() not in SUFFIXES)
        return Listing(scope=str(root), items=known, skipped=skipped)
    if root.is_file() and root.suffix.lower() in SUFFIXES | CODE:
        return Listing(scope=str(root), items=[file_item(root)])
    reason = (
        "it is not a regular file"
        if not root.is_file()
        else (f"its kind {suffix_of(root)} is not one of {' '.join(sorted(SUFFIXES))}, nor program code")
    )
    return Listing(scope=str(root), items=[], rejected=[Rejected(source=str(root), reason=reason)], complete=False)


def existing(path: Path | str) -> Path:
    """The path, absolute and without links. Raises `NotFound` when there is nothing."""
    root = Path(path).expanduser().absolute()
    if not root.exists():
        raise NotFound("there is nothing at this path", seen=root, fix="check the spelling")
    return root.resolve()


def visible_files(root: Path) -> Iterator[Path]:
    """The files below a folder, sorted; what is hidden (or lies in a hidden folder) is left out."""
    for file in sorted(root.rglob("*")):
        if not any(part.startswith(".") for part in file.relative_to(root).parts) and file.is_file():
            yield file


def suffix_of(file: Path) -> str:
    """The kind of a file as a person names it."""
    return file.suffix.lower() or "(no suffix)"


def file_item(file: Path) -> Item:
    """A file as an item; its `seen` is the hash of its bytes."""
    return Item(str(file), lambda seen: _read_file(file, seen))


def from_bytes(data: bytes, name: str, source: str, seen: str) -> Reading:
    """The document of some bytes by the suffix of a name; `Unchanged` when they are those of `seen`."""
    now = content_id("bytes", [VERSION, hashlib.sha256(data).hexdigest()])
    if now == seen:
        return Unchanged(source=source)
    try:
        if len(data) > MAX_BYTES:
            raise too_large(len(data))
        extracted = extract(data, name)
    except Unusable as error:
        return Rejected(source=source, reason=error.what)
    return SourceDocument(source=source, seen=now, **extracted.model_dump())


def too_large(size: int) -> Unusable:
    """The refusal of something longer than `MAX_BYTES`."""
    return Unusable(f"it has {size / 1e6:.1f} MB; the limit is {MAX_BYTES / 1e6:.0f} MB; split it")


def installed_packages(first: Sequence[str] = (), limit: int | None = None) -> Iterator[SourceDocument]:
    """The long descriptions of installed distributions, `first` ones first, the rest by name, at most `limit`.

    Distributions without a description are passed over.
    """
    found: dict[str, Distribution] = {}
    for distribution in distributions():
        found.setdefault(_canonical(_metadata(distribution).get("Name") or ""), distribution)
    found.pop("", None)
    wanted = [_canonical(name) for name in first]
    order = [name for name in wanted if name in found] + sorted(set(found) - set(wanted))
    given = 0
    for name in order:
        document = _package(found[name])
        if document is not None:
            yield document
            given += 1
        if given == limit:
            return


def _read_file(file: Path, seen: str) -> Reading:
    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            return Rejected(source=str(file), reason=too_large(size).what)
        return from_bytes(file.read_bytes(), file.name, str(file), seen)
    except FileNotFoundError:
        return Gone(source=str(file))
    except OSError as error:
        return Rejected(source=str(file), reason=f"it cannot be read ({error.strerror or error})")


def _package(distribution: Distribution) -> SourceDocument | None:
    metadata = _metadata(distribution)
    body = normalise(str(metadata.get_payload() or "") or _unindent(metadata.get("Description") or ""))
    if not body or body == "UNKNOWN":
        return None
    extracted = _described(body, (metadata.get("Description-Content-Type") or "").split(";")[0].strip())
    name = str(metadata["Name"])
    summary = normalise(metadata.get("Summary") or "")
    known = {
        "version": metadata.get("Version"),
        "summary": summary,
        "url": _homepage(metadata),
        "license": metadata.get("License-Expression"),
    }
    return SourceDocument(
        source=f"package:{name}",
        title=f"{name}: {summary}" if summary and len(summary) <= 100 else name,
        text=extracted.text,
        metadata={key: str(value) for key, value in known.items() if value},
    )


def _described(body: str, kind: str) -> Extracted:
    """The description as Markdown; the declared type decides, else whether it looks like reStructuredText."""
    looks_rst = ".. " in body or "::\n" in body or "`_" in body
    if kind == "text/x-rst" or (kind != "text/markdown" and looks_rst):
        body = rst_to_markdown(body)
    return markdown(body, "description")


def _homepage(metadata: Message) -> str:
    if metadata.get("Home-page"):
        return str(metadata["Home-page"])
    links = dict(link.split(", ", 1) for link in metadata.get_all("Project-URL") or [] if ", " in link)
    return next((links[name] for name in ("Homepage", "homepage", "Repository", "Source") if name in links), "")


def _metadata(distribution: Distribution) -> Message:
    return cast(Message, distribution.metadata)


def _unindent(text: str) -> str:
    # Old metadata carries the description as a header whose continuation lines are indented by 8 or by '|'.
    return re.sub(r"\n(?: {7}\|| {8})", "\n", text)


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
