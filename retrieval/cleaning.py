"""Markdown without what no reader reads: badges, navigation, link lists, raw HTML, JSX, comments."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence

FENCE = re.compile(r"^\s*(```+|~~~+)")
MDX_LINE = re.compile(r"^(?:import\s.+from\s+['\"].+|export\s+(?:default|const|function)\b.*)$")
# Whatever looks for an end is bounded: a line of a million opening marks must not be read a million times.
IMAGE = re.compile(r"!\[[^\]]{0,1000}\](?:\([^)]*\)|\[[^\]]*\])")
LINK = re.compile(
    r"\[((?:[^\[\]]|\[[^\[\]]*\])*)\](?:\([^()\s]*(?:\([^()]*\)[^()\s]*)*(?:\s+[\"'][^)]{0,300})?\)|\[[^\]]*\])"
)
REFERENCE = re.compile(r"^\s*\[[^\]]+\]:\s+\S+.*$")
AUTOLINK = re.compile(r"<(https?://[^>\s]{1,2000})>")
URL = re.compile(r"https?://\S+")
TAG = re.compile(r"</?[A-Za-z][\w.:-]*(?:\s[^<>]*)?/?>")
CODE_SPAN = re.compile(r"(`+[^`]*`+)")
EMPHASIS = re.compile(r"(\*{1,3}|_{2,3})(?=\S)(.{1,300}?)(?<=\S)\1")
NAVIGATION = re.compile(
    r"^(?:table of contents|contents|back to top|on this page|edit this page|previous|next|skip to .*|"
    r"view (?:source|on .*)|share (?:this|on) .*|subscribe.*|read more|learn more|all rights reserved.*)[.:!»›→ ]*$",
    re.IGNORECASE,
)
TABLE_RULE = re.compile(r"^\s*\|[\s:|-]+\|?\s*$")
SETEXT = re.compile(r"^(?:=+|-+)\s*$")
STRUCTURE = re.compile(r"^\s*(?:#{1,6}\s|\||>|={3,}|-{3,})")
ITEM = re.compile(r"^\s*(?:[-*+•]|\d{1,3}[.)])\s")
DIRECTIVE = re.compile(r"^\s*(?::::?\s?\w*|\{%.*%\}|\[\[.*\]\]|\[!\w+\])\s*$")


def clean(text: str) -> str:
    """The text without furniture, paragraphs unwrapped; code blocks stay as they are, links become their words."""
    out: list[str] = []
    for is_code, part in code_and_rest(text):
        if is_code:
            out.append(part)
            continue
        bare = _mark_only_links(_without_comments(part))
        bare = _without_links(IMAGE.sub("", AUTOLINK.sub(r"\1", bare)))
        lines = [line for line in map(_clean_line, bare.split("\n")) if line is not None]
        out.extend(_unwrapped(lines))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out)).strip()


def code_and_rest(text: str) -> Iterator[tuple[bool, str]]:
    """(is a fenced code block, its lines joined) in order; a fence that never closes reaches to the end."""
    group: list[str] = []
    fence = ""
    for line in text.splitlines():
        match = FENCE.match(line)
        if fence:
            group.append(line)
            if match and match[1].startswith(fence):
                yield True, "\n".join(group)
                group, fence = [], ""
            continue
        if match:
            if group:
                yield False, "\n".join(group)
            group, fence = [line.strip()], match[1]
            continue
        group.append(line)
    if group:
        yield bool(fence), "\n".join(group)


def is_prose(text: str) -> bool:
    """Whether a text reads as sentences: mostly words, not addresses, version numbers, tables of digits."""
    words = text.split()
    if not words:
        return False
    wordy = sum(1 for word in words if re.fullmatch(r"[\"'(*`]*[A-Za-z][A-Za-z'’-]*[\"').,:;!?*`]*", word))
    return wordy / len(words) >= 0.5


def _without_comments(part: str) -> str:
    kept: list[str] = []
    at = 0
    while (start := part.find("<!--", at)) >= 0 and (end := part.find("-->", start + 4)) >= 0:
        kept.append(part[at:start])
        at = end + 3
    return "".join([*kept, part[at:]])


def _mark_only_links(part: str) -> str:
    """Lines that are nothing but links become empty, before links turn into words."""
    return "\n".join("" if _only_links(line) else line for line in part.split("\n"))


def _without_links(part: str) -> str:
    for _ in range(2):  # twice: a badge is a link around an image, and some links hold brackets
        part = LINK.sub(r"\1", part)
    return part


def _clean_line(line: str) -> str | None:
    """The line as a reader sees it, '' where a paragraph must break, None to drop it without a break."""
    if not line.strip():
        return ""
    if MDX_LINE.match(line) or REFERENCE.match(line) or DIRECTIVE.match(line):
        return None
    if line.startswith("#"):
        line = re.sub(r"[ \t]+", " ", line)
    if line.lstrip().startswith("|"):  # source tables are padded to columns; the padding costs tokens
        line = re.sub(r"-{3,}", "---", re.sub(r"[ \t]+", " ", line))
    bare = _outside_code(line)
    words = bare.lstrip(" \t>*+#|-").rstrip(" \t|")
    if not words:
        return line if TABLE_RULE.match(line) or SETEXT.match(line) else None
    return "" if NAVIGATION.match(words) else bare.rstrip()


def _unwrapped(lines: Sequence[str]) -> list[str]:
    """Lines of one paragraph or list item joined: source files wrap at 80 columns, readers and quotes do not."""
    out: list[str] = []
    for line in lines:
        previous = out[-1] if out else ""
        open_text = previous and not STRUCTURE.match(previous) and not previous.endswith("  ")
        if open_text and line and not STRUCTURE.match(line) and not ITEM.match(line) and not SETEXT.match(line):
            out[-1] = previous + " " + line.strip()
        else:
            out.append(line)
    return out


def _only_links(line: str) -> bool:
    """Badges, link bars, bullets that are nothing but a link. Headings are judged by their words."""
    if line.lstrip().startswith(("#", "|")) or not (LINK.search(line) or URL.search(line) or IMAGE.search(line)):
        return False
    rest = URL.sub("", TAG.sub("", LINK.sub("", IMAGE.sub("", line))))
    return not re.sub(r"[\W_\d]+", "", rest)


def _outside_code(line: str) -> str:
    parts = CODE_SPAN.split(line)
    for index in range(0, len(parts), 2):
        parts[index] = html.unescape(EMPHASIS.sub(r"\2", TAG.sub("", parts[index])))
    return "".join(parts)
