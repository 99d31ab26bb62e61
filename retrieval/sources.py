"""Where documents come from: files, folders and the descriptions of installed distributions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from email.message import Message
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any, cast

from pydantic import Field

from infra.errors import NotFound
from infra.identity import Value, content_id, short
from retrieval.extraction import SUFFIXES, Extracted, Unusable, extract, markdown, normalise
from retrieval.markup import rst_to_markdown

MAX_BYTES = 20_000_000


class SourceDocument(Value):
    """One document as its source gives it now."""

    source: str = Field(description="Absolute path or `package:NAME`.")
    title: str = Field(description="Title, never empty.")
    text: str = Field(description="Normalised text with Markdown structure.")
    metadata: dict[str, Any] = Field(default_factory=dict, description="author, date, tags, url, sources, version.")

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

    source: str = Field(description="Absolute path or `package:NAME`.")
    reason: str = Field(description="Why, as a clause that follows the source: 'it is empty'.")


def document_id(source: str) -> str:
    """The id of the document at a source: `vector-databases-1f2e3d4c5b6a`."""
    last = Path(source.removeprefix("package:")).stem.lower()
    slug = re.sub(r"[^a-z0-9]+", "-", last).strip("-")[:48] or "document"
    return f"{slug}-{short(content_id('source', source))}"


def read_path(path: Path | str, skipped: Counter[str] | None = None) -> Iterator[SourceDocument | Rejected]:
    """The documents at a path: one file, or every known kind of file in a folder, recursively and sorted.

    Hidden files and folders are passed over. Files of unknown kinds are rejected when named themselves; in a
    folder they are only counted, by suffix, in `skipped`. Raises `NotFound` when the path does not exist: an
    absent folder is a mistake, not a folder whose documents were all deleted.
    """
    root = Path(path).expanduser().absolute()
    if not root.exists():
        raise NotFound("there is nothing at this path", seen=root, fix="check the spelling")
    if root.is_dir():
        yield from _read_folder(root.resolve(), Counter() if skipped is None else skipped)
    elif root.suffix.lower() in SUFFIXES:
        yield _read_file(root.resolve())
    else:
        kinds = " ".join(sorted(SUFFIXES))
        reason = f"its kind {root.suffix or '(no suffix)'} is not one of {kinds}"
        yield Rejected(source=str(root.resolve()), reason=reason)


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


def _read_folder(root: Path, skipped: Counter[str]) -> Iterator[SourceDocument | Rejected]:
    for file in sorted(root.rglob("*")):
        if any(part.startswith(".") for part in file.relative_to(root).parts) or not file.is_file():
            continue
        if file.suffix.lower() in SUFFIXES:
            yield _read_file(file)
        else:
            skipped[file.suffix.lower() or "(no suffix)"] += 1


def _read_file(file: Path) -> SourceDocument | Rejected:
    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise Unusable(f"it has {size / 1e6:.1f} MB; the limit is {MAX_BYTES / 1e6:.0f} MB; split it")
        extracted = extract(file.read_bytes(), file.name)
    except OSError as error:
        return Rejected(source=str(file), reason=f"it cannot be read ({error.strerror or error})")
    except Unusable as error:
        return Rejected(source=str(file), reason=error.what)
    return SourceDocument(source=str(file), **extracted.model_dump())


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
