"""Web pages as Markdown: trafilatura finds the article among menus and advertisements, code and tables stay whole."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

from retrieval.markup import html_to_markdown
from retrieval.program_code import fenced
from retrieval.source_metadata import merged

if TYPE_CHECKING:
    from lxml.etree import _Element as Element

MIN_ARTICLE = 200
"""Characters below which an article is not one: on short pages everything outside the menus is taken."""
MOST_TAGS = 200_000
"""Pages with more are generated lists; building their tree twice would take minutes and gigabytes."""


def read_page(html: str, url: str = "") -> tuple[str, str, dict[str, Any]]:
    """(title, Markdown, metadata) of a page. Raises `ValueError` with the reason it cannot be read.

    On 120 pages of trafilatura's own test set 88 % of what is given belongs to the article and 92 % of the article is
    given; everything outside `nav`, `aside` and the like would be 64 % and 91 %. Pages of documentation are another
    matter: there it loses a quarter of the code blocks, so a page of which it loses one is taken whole.
    """
    if (tags := html.count("<")) > MOST_TAGS:
        raise ValueError(f"the page has {tags:,} tags; the limit is {MOST_TAGS:,}")
    title, whole, metadata = html_to_markdown(html)
    article, found = _article(html, url)
    if len(article) < min(MIN_ARTICLE, len(whole)) or _code_blocks(article) < _code_blocks(whole):
        article = whole
    return title or str(found.get("title") or ""), article, merged(metadata, found)


def _code_blocks(text: str) -> int:
    """Code blocks. (Not tables: half of the old web is laid out in them.)"""
    return len(re.findall(r"^```+$", text, re.MULTILINE))


def _article(html: str, url: str) -> tuple[str, dict[str, Any]]:
    from trafilatura import bare_extraction

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # it logs an error for each page that holds no article
    found = bare_extraction(
        html,
        url=url or None,
        favor_recall=True,
        include_comments=False,
        include_tables=True,
        include_formatting=True,
        with_metadata=True,
    )
    if found is None or isinstance(found, dict):
        return "", {}
    metadata = {
        "title": found.title, "author": found.author, "date": found.date, "url": found.url,
        "tags": [*(found.categories or []), *(found.tags or [])],
    }  # fmt: skip
    blocks: list[str] = []
    _blocks(found.body, blocks)
    return "\n\n".join(blocks), metadata


def _blocks(node: Element, blocks: list[str]) -> None:
    """The Markdown blocks of trafilatura's tree (its own small TEI-like vocabulary), in order."""
    _add(blocks, node.text)
    for child in node:
        if child.tag == "head":
            level = re.sub(r"\D", "", child.get("rend", "")) or "2"
            _add(blocks, _inline(child), "#" * min(6, int(level)) + " ")
        elif child.tag == "code":
            blocks.append(fenced("".join(child.itertext())))
        elif child.tag == "list":
            items = [_squeeze(_inline(item)) for item in child.iter("item")]
            _add(blocks, "\n".join(f"- {item}" for item in items if item))
        elif child.tag == "table":
            _add(blocks, _table(child))
        elif child.tag == "quote" or any("\n" in "".join(code.itertext()) for code in child.iter("code")):
            _blocks(child, blocks)
        elif child.tag not in ("graphic", "lb"):
            _add(blocks, _squeeze(_inline(child)))
        _add(blocks, child.tail)


def _inline(node: Element) -> str:
    parts = [node.text or ""]
    for child in node:
        if child.tag == "code":
            parts.append(f"`{''.join(child.itertext())}`")
        elif child.tag == "lb":
            parts.append("\n")
        elif child.tag != "list" or node.tag != "item":  # a list in an item is listed by itself
            parts.append(_inline(child))
        parts.append(child.tail or "")
    return "".join(parts)


def _table(node: Element) -> str:
    rows = [[_squeeze(_inline(cell)).replace("|", "\\|") for cell in row.iter("cell")] for row in node.iter("row")]
    rows = [row for row in rows if any(row)]
    if not rows:
        return ""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _add(blocks: list[str], text: str | None, prefix: str = "") -> None:
    if text and text.strip():
        blocks.append(prefix + (_squeeze(text) if prefix else text.strip()))


def _squeeze(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
