"""Word documents as HTML: headings, lists, tables and code survive; pictures are left out."""

from __future__ import annotations

import io
import zipfile
import zlib
from typing import Any
from xml.etree import ElementTree
from xml.parsers.expat import ExpatError

MAX_UNPACKED = 200_000_000
"""Bytes that a document may unpack to. A document of 20 MB that unpacks to more is mostly pictures, or a bomb."""
MAX_PARTS = 10_000
PROPERTIES = "docProps/core.xml"
NAMES = {"title": "title", "creator": "author", "created": "date", "keywords": "tags"}
STYLES = """
p[style-name^='Code'] => pre:separator('\\n')
p[style-name^='HTML Preformatted'] => pre:separator('\\n')
p[style-name^='Source'] => pre:separator('\\n')
p[style-name='Title'] => h1:fresh
p[style-name='Subtitle'] => p:fresh
"""


# A damaged document makes the parsers fail in whatever they were reading: archive, XML, a number, a missing part.
BROKEN = (
    zipfile.BadZipFile, zlib.error, ElementTree.ParseError, ExpatError, KeyError, IndexError, ValueError, TypeError,
    AttributeError, NotImplementedError, RuntimeError, OSError,
)  # fmt: skip


def docx_to_html(data: bytes) -> tuple[str, dict[str, Any]]:
    """(HTML, title/author/date/tags) of a document's bytes. Raises `ValueError` with the reason it cannot be read."""
    import mammoth

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = archive.infolist()
            size = sum(part.file_size for part in parts)
            small = size <= MAX_UNPACKED and len(parts) <= MAX_PARTS
            properties = _properties(archive) if small else {}
        picture = mammoth.images.img_element(lambda _: {})
        html = mammoth.convert_to_html(io.BytesIO(data), style_map=STYLES, convert_image=picture).value if small else ""
    except BROKEN as error:
        raise ValueError(f"it is a broken Word document ({type(error).__name__}: {str(error)[:80]})") from error
    if not small:
        raise ValueError(f"it unpacks to {size / 1e6:.0f} MB in {len(parts)} parts; no document is that large")
    return str(html), properties


def _properties(archive: zipfile.ZipFile) -> dict[str, Any]:
    if PROPERTIES not in archive.namelist():
        return {}
    found: dict[str, Any] = {}
    for element in ElementTree.fromstring(archive.read(PROPERTIES)):
        name = NAMES.get(element.tag.rpartition("}")[2])
        if name and element.text and element.text.strip():
            found[name] = element.text.strip()
    return found
