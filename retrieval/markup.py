"""HTML and reStructuredText rewritten as Markdown: headings, paragraphs, lists, code and tables survive."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from retrieval.cleaning import code_and_rest

if TYPE_CHECKING:
    from bs4 import BeautifulSoup

NOISE_TAGS = ("script", "style", "noscript", "template", "svg", "nav", "header", "footer", "aside", "form", "button")
HEADING = re.compile(r"h([1-6])")
RST_UNDERLINE = re.compile(r"^([=\-~^\"'`#*+.:_<>])\1{2,}\s*$")
RST_DIRECTIVE = re.compile(r"^\s*\.\.\s+(?:\|[^|]+\|\s+)?([\w:-]+)::\s*(.*)$")
RST_LINK = re.compile(r"`([^`<]{1,500}?)\s{0,100}<[^`>]{1,2000}>`_{1,2}")
RST_ROLE = re.compile(r":[\w:+.-]{1,100}:`~?([^`<]{1,500}?)(?:\s{0,100}<[^`>]{1,2000}>)?`")
RST_REFERENCE = re.compile(r"`([^`]{1,500})`_{1,2}(?!\w)|\b(\w[\w.-]{0,100}\w)_(?=[\s.,;:)]|$)")
RST_TABLE_RULE = re.compile(r"^\s*\+(?:[-=]+\+)+\s*$|^\s*=+(?:\s+=+)+\s*$")
RST_SUBSTITUTION = re.compile(r"(?<!\S)\|\w[\w .-]*\|_{0,2}(?!\S)")
CODE_DIRECTIVES = {"code-block", "code", "sourcecode", "parsed-literal", "doctest"}
PROSE_DIRECTIVES = {"note", "warning", "tip", "important", "hint", "caution", "attention", "admonition", "seealso"}


def html_to_markdown(html: str) -> tuple[str, str, dict[str, str]]:
    """(title, Markdown-like text, metadata) of a page: main content only, navigation and scripts left out."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(html, "html.parser")
    title, metadata = _html_head(soup)
    for tag in soup.find_all(NOISE_TAGS):
        if not (tag.name == "header" and tag.find_parent(["article", "main"])):
            tag.decompose()
    root = soup.find("main") or soup.find("article") or soup.find("body") or soup
    blocks: list[str] = []
    _html_blocks(root, blocks)
    return title, "\n\n".join(blocks), metadata


def rst_to_markdown(text: str) -> str:
    """reStructuredText as Markdown; images, badges, substitutions, targets and comments are left out."""
    lines = text.expandtabs(8).splitlines()
    out: list[str] = []
    levels: list[str] = []
    at = 0
    while at < len(lines):
        at = _rst_step(lines, at, out, levels)
    # Inline marks may run over a line end, so they are read last, paragraph by paragraph, outside code.
    return "\n".join(part if is_code else _rst_inline(part) for is_code, part in code_and_rest("\n".join(out)))


# --- HTML -------------------------------------------------------------------------------------------------


def _html_head(soup: BeautifulSoup) -> tuple[str, dict[str, str]]:
    def meta(*names: str) -> str:
        for name in names:
            tag = soup.find("meta", attrs={"property": name}) or soup.find("meta", attrs={"name": name})
            if tag and tag.get("content"):
                return str(tag["content"]).strip()
        return ""

    heading = soup.find("h1")
    title = meta("og:title") or (soup.title.get_text(" ", strip=True) if soup.title else "")
    title = title or (heading.get_text(" ", strip=True) if heading else "")
    canonical = soup.find("link", rel="canonical")
    found = {
        "author": meta("author", "article:author"),
        "date": meta("article:published_time", "date"),
        "tags": meta("keywords"),
        "url": str(canonical.get("href", "")) if canonical else meta("og:url"),
    }
    return title, {name: value for name, value in found.items() if value}


def _html_blocks(node: Any, blocks: list[str]) -> None:
    loose: list[str] = []
    for child in node.children:
        name = child.name
        if name is None or name in _INLINE:
            loose.append(_inline(child))
            continue
        _flush(loose, blocks)
        if match := HEADING.fullmatch(name):
            _add(blocks, "#" * int(match[1]) + " ", _inline(child))
        elif name == "pre":
            blocks.append(f"```\n{child.get_text().strip(chr(10))}\n```")
        elif name in ("ul", "ol"):
            _add(blocks, "", "\n".join(f"- {_inline(item)}" for item in child.find_all("li", recursive=False)))
        elif name == "table":
            _add(blocks, "", _table(child))
        elif name in ("p", "dt", "dd", "figcaption", "blockquote"):
            _add(blocks, "", _inline(child))
        elif name not in ("img", "hr", "iframe", "video"):
            _html_blocks(child, blocks)
    _flush(loose, blocks)


_INLINE = frozenset({"a", "abbr", "b", "br", "cite", "code", "em", "i", "kbd", "mark", "q", "s", "small", "span"}) | {
    "strong", "sub", "sup", "time", "u", "var", "label",
}  # fmt: skip


def _inline(node: Any) -> str:
    from bs4 import Comment

    if isinstance(node, Comment):
        return ""
    if node.name is None:
        return str(node)
    if node.name == "code":
        return f"`{node.get_text()}`"
    if node.name == "br":
        return "\n"
    return "".join(_inline(child) for child in node.children)


def _table(node: Any) -> str:
    rows = [[_squeeze(_inline(cell)) for cell in row.find_all(["th", "td"])] for row in node.find_all("tr")]
    rows = [row for row in rows if any(row)]
    if not rows:
        return ""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _add(blocks: list[str], prefix: str, text: str) -> None:
    lines = [_squeeze(line) for line in text.splitlines()]
    if prefix:
        lines = [" ".join(line for line in lines if line)]
    body = "\n".join(line for line in lines if line and line != "-")
    if body:
        blocks.append(prefix + body)


def _flush(loose: list[str], blocks: list[str]) -> None:
    _add(blocks, "", "".join(loose))
    loose.clear()


def _squeeze(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


# --- reStructuredText -------------------------------------------------------------------------------------


def _rst_step(lines: list[str], at: int, out: list[str], levels: list[str]) -> int:
    line = lines[at]
    if line.lstrip().startswith(".."):
        return _rst_directive(lines, at, out)
    if heading := _rst_heading(lines, at):
        mark, title, used = heading
        if mark not in levels:
            levels.append(mark)
        out.extend(["", "#" * min(6, levels.index(mark) + 1) + " " + title, ""])
        return at + used
    if line.rstrip().endswith("::"):
        text = line.rstrip()[:-1].rstrip()
        out.append(text if text.strip(": ") else "")
        return _rst_literal(lines, at + 1, out, len(line) - len(line.lstrip()))
    out.append("" if RST_UNDERLINE.match(line) or RST_TABLE_RULE.match(line) else line)
    return at + 1


def _rst_heading(lines: list[str], at: int) -> tuple[str, str, int] | None:
    """(level mark, title, lines used) of an underlined or over- and underlined title."""
    following = [line.rstrip() for line in lines[at : at + 3]] + ["", ""]
    first, second, third = following[:3]
    if RST_UNDERLINE.match(first) and second.strip() and RST_UNDERLINE.match(third) and first[0] == third[0]:
        return first[0] * 2, second.strip(), 3
    if first.strip() and not first.startswith(" ") and RST_UNDERLINE.match(second) and len(second) >= len(first) - 2:
        return second[0], first.strip(), 2
    return None


def _rst_directive(lines: list[str], at: int, out: list[str]) -> int:
    indent = len(lines[at]) - len(lines[at].lstrip())
    end = _rst_block_end(lines, at + 1, indent)
    match = RST_DIRECTIVE.match(lines[at])
    name = match[1].lower() if match else ""
    body = [line for line in lines[at + 1 : end] if not re.match(r"^\s+:[\w-]+:", line)]
    if name in CODE_DIRECTIVES:
        out.extend(["", "```", *_dedent(body), "```", ""])
    elif name in PROSE_DIRECTIVES and match:
        out.extend(["", match[2], *_dedent(body), ""])
    return end


def _rst_literal(lines: list[str], at: int, out: list[str], indent: int) -> int:
    end = _rst_block_end(lines, at, indent)
    body = _dedent(lines[at:end])
    if any(line.strip() for line in body):
        out.extend(["", "```", *body, "```", ""])
    return end


def _rst_block_end(lines: list[str], at: int, indent: int) -> int:
    end = at
    while end < len(lines) and (not lines[end].strip() or len(lines[end]) - len(lines[end].lstrip()) > indent):
        end += 1
    return end


def _dedent(lines: list[str]) -> list[str]:
    margin = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    body = [line[margin:].rstrip() for line in lines]
    while body and not body[0]:
        body.pop(0)
    while body and not body[-1]:
        body.pop()
    return body


def _rst_inline(text: str) -> str:
    text = RST_SUBSTITUTION.sub("", text)
    text = RST_ROLE.sub(r"`\1`", text)
    text = RST_LINK.sub(r"\1", text)
    text = RST_REFERENCE.sub(lambda match: match[1] or match[2], text)
    return text.replace("``", "`")
