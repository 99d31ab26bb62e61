"""Pages, feeds (RSS, Atom) and sitemaps. What an address is, its answer says."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from functools import partial
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urljoin, urlsplit
from xml.etree import ElementTree
from xml.sax import SAXException

from infra.errors import InputError, QuillError
from infra.identity import content_id
from retrieval.extraction import CODE, SUFFIXES, VERSION, Extracted, Unusable, decode_page, extract, web_page
from retrieval.fetching import Fetcher, Missing, Page, gunzipped, reason_of, shown
from retrieval.source_metadata import known_metadata, merged
from retrieval.sources import Gone, Item, Listing, Reading, Rejected, SourceDocument, Unchanged

FEED = re.compile(rb"<(?:rss|feed|rdf:RDF)[\s>]")
SITEMAP = re.compile(rb"<(?:\w+:)?(urlset|sitemapindex)[\s>]")
MARKUP = re.compile(rb"<!(?:DOCTYPE|ENTITY)", re.IGNORECASE)
KINDS = {
    "text/html": ".html", "application/xhtml+xml": ".html", "application/pdf": ".pdf", "text/markdown": ".md",
    "text/x-markdown": ".md", "text/plain": ".txt", "text/x-rst": ".rst",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": ".docx",
}  # fmt: skip
MAX_PAGES = 50_000
"""Addresses of one sitemap with those it names; the protocol's own limit for one file (sitemaps.org)."""
MAX_SITEMAPS = 500
MIN_ENTRY = 500
"""Characters of an entry's own text below which it is a teaser, and its page is asked instead."""


def list_address(url: str, fetcher: Fetcher, seen: str = "") -> Listing:
    """What an address holds: the pages of a sitemap, the entries of a feed, or the page itself.

    `seen` is that of the document which is this page, if there is one. Raises `Unavailable` or `InputError` when the
    address does not answer with one of these: nothing counts as gone then.
    """
    scope = shown(url)
    page = fetcher.get(url, seen)
    if page is None:
        return Listing(scope=scope, items=[Item(scope, lambda _: Unchanged(source=scope))])
    body = gunzipped(page.body) if page.body.startswith(b"\x1f\x8b") else page.body
    head = body[:4096]
    if SITEMAP.search(head):
        return _sitemap(scope, body, fetcher)
    if FEED.search(head):
        return _feed(scope, page.url, body, fetcher)
    return Listing(scope=scope, items=[Item(scope, partial(_document, page, scope))])


def read_address(url: str, fetcher: Fetcher, seen: str) -> Reading:
    """The document at an address that a feed or sitemap lists, when robots.txt lets crawlers read it."""
    source = shown(url)
    try:
        if not fetcher.allowed(url):
            return Rejected(source=source, reason="robots.txt does not let crawlers read it")
        page = fetcher.get(url, seen)
        return Unchanged(source=source) if page is None else _document(page, source, seen)
    except Missing:
        return Gone(source=source)
    except QuillError as error:
        return Rejected(source=source, reason=reason_of(error))


def _document(page: Page, source: str, seen: str) -> Reading:
    version = _version(page)
    if version == seen:
        return Unchanged(source=source)
    try:
        extracted = _extracted(page, source)
    except Unusable as error:
        return Rejected(source=source, reason=error.what)
    metadata = merged(extracted.metadata, {"url": page.url})
    return SourceDocument(source=source, title=extracted.title, text=extracted.text, metadata=metadata, seen=version)


def _extracted(page: Page, source: str) -> Extracted:
    name = PurePosixPath(urlsplit(source).path).name or urlsplit(source).netloc
    suffix = PurePosixPath(name).suffix.lower()
    kind = KINDS.get(page.media_type, "")
    if kind in ("", ".txt") and suffix in SUFFIXES | CODE:  # servers send most files they do not know as plain text
        kind = suffix
    if not kind:
        raise Unusable(f"its media type {page.media_type or '(none)'} is not one that holds a document")
    if kind == ".html":
        return web_page(decode_page(page.body, page.charset), PurePosixPath(name).stem, page.url)
    return extract(page.body, str(PurePosixPath(name).with_suffix(kind)))


def _version(page: Page) -> str:
    """What to compare the next answer with: the server's validators, else the bytes themselves."""
    return page.seen or content_id("page", [VERSION, hashlib.sha256(page.body).hexdigest()])


# --- sitemaps ---------------------------------------------------------------------------------------------


def _sitemap(scope: str, body: bytes, fetcher: Fetcher) -> Listing:
    found = _Sitemaps(scope, fetcher)
    found.read(scope, body)
    items = [Item(url, partial(read_address, url, fetcher)) for url in found.pages]
    return Listing(scope=scope, items=items, rejected=found.rejected, complete=found.complete)


class _Sitemaps:
    """A sitemap with the sitemaps it names, each read once however they refer to each other."""

    def __init__(self, scope: str, fetcher: Fetcher) -> None:
        self._host = urlsplit(scope).netloc
        self._fetcher = fetcher
        self._asked = {scope}
        self.pages: dict[str, None] = {}
        self.rejected: list[Rejected] = []
        self.complete = True

    def read(self, url: str, body: bytes) -> None:
        """Take up what the body of a sitemap lists. Raises `InputError` when it is none."""
        waiting = [(url, body)]
        while waiting:
            url, body = waiting.pop()
            kind, addresses = _locations(url, body)
            for address in addresses:
                if urlsplit(address).netloc != self._host:
                    reason = f"the sitemap of {self._host} may not list pages of another host"
                    self.rejected.append(Rejected(source=address, reason=reason))
                elif kind == "urlset":
                    self._add(address)
                elif address not in self._asked:
                    self._asked.add(address)
                    waiting += self._child(address)

    def _add(self, address: str) -> None:
        if len(self.pages) < MAX_PAGES:
            self.pages[shown(address)] = None
        elif self.complete:
            self.complete = False
            self.rejected.append(Rejected(source=address, reason=f"the sitemap lists more than {MAX_PAGES} pages"))

    def _child(self, address: str) -> Iterator[tuple[str, bytes]]:
        try:
            if len(self._asked) > MAX_SITEMAPS:
                raise InputError(f"more than {MAX_SITEMAPS} sitemaps")
            page = self._fetcher.get(address)
            body = page.body if page else b""
            yield address, gunzipped(body) if body.startswith(b"\x1f\x8b") else body
        except QuillError as error:
            self.complete = False
            self.rejected.append(Rejected(source=address, reason=reason_of(error)))


def _locations(url: str, body: bytes) -> tuple[str, list[str]]:
    """(urlset or sitemapindex, addresses) of one sitemap."""
    if MARKUP.search(body):
        raise InputError("it is no sitemap: it declares entities, which sitemaps have no use for", seen=url)
    try:
        root = ElementTree.fromstring(body)
    except ElementTree.ParseError as error:
        raise InputError(f"it is a broken sitemap ({error})", seen=url) from error
    kind = root.tag.rpartition("}")[2]
    found = [element.findtext("{*}loc") or "" for element in root]
    return kind, [urljoin(url, address.strip()) for address in found if address.strip()]


# --- feeds ------------------------------------------------------------------------------------------------


def _feed(scope: str, base: str, body: bytes, fetcher: Fetcher) -> Listing:
    import feedparser

    # A stream, because feedparser takes bytes for a file name first. It drops scripts from what it gives.
    parsed = feedparser.parse(io.BytesIO(body))
    entries: dict[str, Any] = {}
    for entry in parsed.entries:
        link = urljoin(base, entry.get("link") or "")
        is_link = entry.get("link") and urlsplit(link).scheme in ("http", "https")
        name = entry.get("id") or content_id("entry", [entry.get("title", ""), entry.get("summary", "")])
        entries.setdefault(shown(link) if is_link else f"{scope}#{name}", entry)
    broken = isinstance(parsed.get("bozo_exception"), SAXException)
    if broken and not entries:
        raise InputError(f"it is a broken feed ({str(parsed.bozo_exception)[:80]})", seen=scope)
    dates = [_metadata(entry).get("date", "") for entry in entries.values()]
    items = [Item(source, partial(_entry, source, entry, fetcher)) for source, entry in entries.items()]
    window = min(dates, default="") if all(dates) else ""
    return Listing(scope=scope, items=items, complete=not broken, window=window)


def _entry(source: str, entry: Any, fetcher: Fetcher, seen: str) -> Reading:
    """An entry by its own text when that is more than a teaser, else by its page."""
    html = max((part.get("value", "") for part in entry.get("content") or []), key=len, default="")
    html = html or entry.get("summary", "")
    about = _metadata(entry)
    title = re.sub(r"<[^>]+>", "", entry.get("title") or "").strip()
    if (
        len(re.sub(r"<[^>]+>", "", html)) < MIN_ENTRY
        and source.startswith(("http://", "https://"))
        and "#" not in source
    ):
        found = read_address(source, fetcher, seen)
        if isinstance(found, SourceDocument):
            return found.model_copy(update={"title": title or found.title, "metadata": merged(about, found.metadata)})
        return found
    now = content_id("entry", [VERSION, title, html, about])
    if now == seen:
        return Unchanged(source=source)
    try:
        extracted = extract(f"<article>{html}</article>".encode(), "entry.html", "utf-8")
    except Unusable as error:
        return Rejected(source=source, reason=error.what)
    return SourceDocument(source=source, title=title or source, text=extracted.text, metadata=about, seen=now)


def _metadata(entry: Any) -> dict[str, Any]:
    return known_metadata(
        {
            "author": entry.get("author"),
            "date": entry.get("published") or entry.get("updated") or "",
            "tags": [tag.get("term") or tag.get("label") or "" for tag in entry.get("tags") or []],
            "url": entry.get("link"),
        }
    )
