"""What sources are made of: exports, Word documents, code, web pages, metadata, near-duplicates, repositories."""

from __future__ import annotations

import io
import json
import random
import zipfile
from calendar import monthrange
from datetime import date
from pathlib import Path

import pytest

from infra.errors import QuillError
from retrieval.cleaning import clean
from retrieval.docx import MAX_UNPACKED, docx_to_html
from retrieval.extraction import Unusable, decode_page, extract
from retrieval.near_duplicates import Fingerprint, Fingerprints
from retrieval.program_code import code_to_markdown, fenced
from retrieval.source_metadata import iso_date, known_metadata
from retrieval.sources import Rejected, SourceDocument, read_path
from retrieval.sources_exports import list_export
from retrieval.sources_git import is_repository, list_repository
from retrieval.webpage import read_page

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


# --- metadata ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "iso"),
    [
        ("2026-01-08", "2026-01-08"),
        ("2026-01-08T10:00:00Z", "2026-01-08T10:00:00+00:00"),
        ("Thu, 08 Jan 2026 10:00:00 +0200", "2026-01-08T10:00:00+02:00"),
        ("January 8, 2026", "2026-01-08"),
        ("8 Jan 2026", "2026-01-08"),
        ("2026/01/08", "2026-01-08"),
        ("Jan 2026", "2026-01"),
        ("2026", "2026"),
        ("13/02/2026", "2026-02-13"),
        ("01/02/2026", ""),
        ("D:20260108100000+01'00'", "2026-01-08"),
        ("D:20261308", ""),
        ("yesterday", ""),
        ("May 5th", ""),
        ("9" * 5000, ""),
        ("", ""),
    ],
)
def test_dates_become_iso_dates_or_nothing(given: str, iso: str) -> None:
    assert iso_date(given) == iso


def test_metadata_goes_by_one_set_of_names() -> None:
    found = {
        "Authors": [{"name": "A. Writer"}, "B. Writer"],
        "published_at": "8 Jan 2026",
        "keywords": "logs, kafka; logs",
        "link": "https://example.org/x",
        "nested": {"tags": ["no"]},
        "draft": True,
    }
    assert known_metadata(found) == {
        "author": "A. Writer, B. Writer",
        "date": "2026-01-08",
        "tags": ["logs", "kafka"],
        "url": "https://example.org/x",
    }


def test_values_that_nest_are_left_out() -> None:
    bomb: list[object] = ["x"]
    for _ in range(40):
        bomb = [bomb] * 9
    assert known_metadata({"tags": [*bomb, "fine"], "author": {"name": bomb}}) == {"tags": ["fine"]}


# --- exports ----------------------------------------------------------------------------------------------


def rows(file: Path) -> list[SourceDocument | Rejected]:
    listing = list_export(file)
    assert listing is not None
    found = [item.read("") for item in listing.items]
    assert all(isinstance(one, SourceDocument | Rejected) for one in found)
    return [*found, *listing.rejected]  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"_id": "7", "title": "T", "text": "Words.", "metadata": {"author": "A"}}\n'),
        ("a.ndjson", '\n{"id": 7, "headline": "T", "body": "Words.", "creator": "A"}\n\n'),
        ("a.json", '[{"id": "7", "content": {"Title": "T", "Subtitle": null, "Content": "Words."}, "author": "A"}]'),
        ("a.json", '{"artifact_data": [{"id": "7", "title": "T", "html": "<p>Words.</p>", "author": "A"}]}'),
        ("a.csv", 'id,title,text,author\n7,T,"Words.",A\n'),
    ],
)
def test_exports_of_several_shapes_give_the_same_document(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    (document,) = rows(tmp_path / name)
    assert isinstance(document, SourceDocument)
    assert document.source == f"{tmp_path / name}#7"
    assert (document.title, document.text, document.metadata) == ("T", "Words.", {"author": "A"})


def test_a_post_without_a_title_is_called_by_its_first_words(tmp_path: Path) -> None:
    (tmp_path / "Shares.csv").write_text(
        "Date,ShareLink,ShareCommentary\n2026-01-08 10:00:00,https://x.org/1,One two three four five six seven eight "
        "nine ten eleven\n"
    )
    (document,) = rows(tmp_path / "Shares.csv")
    assert isinstance(document, SourceDocument)
    assert document.title == "One two three four five six seven eight nine ten …"
    assert document.metadata == {"date": "2026-01-08T10:00:00", "url": "https://x.org/1"}


def test_bad_rows_are_named_and_many_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    bad = ["{", "3", '{"id": 1}', '{"text": "caf\udce9"}', "[" * 100_000]
    file.write_bytes("\n".join([*bad, '{"id": 2, "text": "Words."}', *["nope"] * 40]).encode(errors="surrogateescape"))
    found = rows(file)
    reasons = [one.reason for one in found if isinstance(one, Rejected)]
    assert len(reasons) == 21
    assert ["not JSON" in reasons[0], "not an object" in reasons[1], "no text" in reasons[2]] == [True] * 3
    assert "byte 0xe9" in reasons[3]
    assert reasons[-1] == "25 more rows cannot be used"
    assert [one.source for one in found if isinstance(one, SourceDocument)] == [f"{file}#2"]


@pytest.mark.parametrize("text", ["{}", "3", "{broken", '{"train": {"a": 1}}'])
def test_json_that_is_no_export_says_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(Unusable, match="it is not"):
        list_export(tmp_path / "a.json")


@pytest.mark.corpus
def test_the_articles_of_an_llm_twin_are_read() -> None:
    file = DATA / "corpus" / "llm_engineers_handbook" / "ArticleDocument.json"
    if not file.exists():
        pytest.skip(f"{file} is missing")
    expected = json.loads(file.read_text())
    found = rows(file)
    assert len(found) == len(expected) == 76
    for row, document in zip(expected, found, strict=True):
        assert isinstance(document, SourceDocument)
        assert document.source.endswith("#" + row["_id"])
        assert document.metadata["author"] == row["author_full_name"]
        assert document.metadata["url"] == row["link"]
        assert document.title


# --- Word documents, code, pages --------------------------------------------------------------------------


def docx(body: str, *, extra: dict[str, bytes] | None = None) -> bytes:
    parts = {
        "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        '<Override PartName="/word/document.xml" ContentType='
        '"application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"/></Types>',
        "_rels/.rels": '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
        '<Relationship Id="r" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"'
        ' Target="word/document.xml"/></Relationships>',
        "word/document.xml": f'<w:document xmlns:w="{WORD}"><w:body>{body}</w:body></w:document>',
        "docProps/core.xml": '<p xmlns:d="http://purl.org/dc/elements/1.1/" xmlns:t="http://purl.org/dc/terms/">'
        "<d:title>On logs</d:title><d:creator>A. Writer</d:creator><t:created>2026-01-08T10:00:00Z</t:created></p>",
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in parts.items():
            archive.writestr(name, text)
        for name, data in (extra or {}).items():
            archive.writestr(name, data)
    return out.getvalue()


def paragraph(text: str, style: str = "") -> str:
    kind = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{kind}<w:r><w:t>{text}</w:t></w:r></w:p>"


def test_a_word_document_keeps_headings_and_tables() -> None:
    cells = "".join(
        f"<w:tr>{''.join(f'<w:tc>{paragraph(cell)}</w:tc>' for cell in row)}</w:tr>" for row in ("kv", "12")
    )
    body = paragraph("Use", "Heading1") + paragraph("It is small.") + f"<w:tbl>{cells}</w:tbl>"
    found = extract(docx(body), "a.docx")
    assert found.title == "On logs"
    assert found.metadata == {"author": "A. Writer", "date": "2026-01-08T10:00:00+00:00"}
    assert found.text == "# Use\n\nIt is small.\n\n| k | v |\n|---|---|\n| 1 | 2 |"


def test_word_documents_that_are_damaged_or_bombs_are_refused() -> None:
    whole = docx(paragraph("x"))
    with pytest.raises(ValueError, match="no document is that large"):
        docx_to_html(docx("", extra={"word/media/zeros": bytes(MAX_UNPACKED)}))
    shuffled = random.Random(7)
    refused = 0
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(20):
            data[shuffled.randrange(len(data))] = shuffled.randrange(256)
        try:
            docx_to_html(bytes(data))
        except ValueError:
            refused += 1
    assert refused > 30
    with pytest.raises(ValueError, match="broken Word document"):
        docx_to_html(whole[: len(whole) // 2])


def test_python_is_read_by_what_it_defines() -> None:
    source = (
        '"""About logs."""\n\nimport os\n\n\n@cache\ndef poll() -> int:\n    """Read the next."""\n    return 1\n\n\n'
        'class Log:\n    """A log."""\n\n    def read(self):\n        """Read one."""\n\n\nLIMIT = 3\n'
    )
    title, text = code_to_markdown(source, "logs.py")
    assert title == "logs.py"
    assert text == (
        "About logs.\n\n```python\nimport os\n\nLIMIT = 3\n```\n\n## poll\n\nRead the next.\n\n"
        '```python\n@cache\ndef poll() -> int:\n    """Read the next."""\n    return 1\n```\n\n'
        "## Log\n\nA log.\n\n`Log.read`: Read one.\n\n"
        '```python\nclass Log:\n    """A log."""\n\n    def read(self):\n        """Read one."""\n```'
    )


def test_other_code_is_shown_whole_after_what_it_says_first() -> None:
    assert code_to_markdown("// Reads logs.\n// Fast.\npackage logs\n", "a.go")[1] == (
        "Reads logs.\nFast.\n\n```go\n// Reads logs.\n// Fast.\npackage logs\n```"
    )
    assert code_to_markdown("print 'python 2'\n", "a.py")[1] == "```python\nprint 'python 2'\n```"
    cells = [{"cell_type": "markdown", "source": ["# Hi"]}, {"cell_type": "code", "source": "a = 1"}]
    assert code_to_markdown(json.dumps({"cells": cells}), "a.ipynb")[1] == "# Hi\n\n```python\na = 1\n```"
    assert code_to_markdown("not json", "a.ipynb")[1] == ""


def test_a_fence_is_longer_than_any_in_the_code() -> None:
    assert fenced("```\nx\n```", "md") == "````md\n```\nx\n```\n````"


def test_an_article_is_found_among_furniture_with_its_code_and_table_whole() -> None:
    words = "Kafka keeps records in partitions, and consumers read them by offset at their own pace. "
    html = (
        "<html><head><title>The log</title></head><body><div class='menu'><ul><li><a href='/a'>Home</a></li>"
        "<li><a href='/b'>Related stories</a></li></ul></div><div class='content'><h1>The log</h1>"
        f"<p>{words * 3}</p><h2>Use</h2><p>{words * 2}</p><pre><code>if a:\n\n    b = 1\n</code></pre>"
        f"<table><tr><th>k</th><th>v</th></tr><tr><td>1</td><td>2</td></tr></table><p>{words * 2}</p></div>"
        "<div class='cookie-banner'>We use cookies. Accept all</div><div class='footer'>Imprint</div></body></html>"
    )
    title, text, _ = read_page(html)
    assert title == "The log"
    assert "## Use" in text
    assert "```\nif a:\n\n    b = 1\n```" in text
    assert "| k | v |\n|---|---|\n| 1 | 2 |" in text
    assert [word for word in ("Related", "cookies", "Imprint") if word in text] == []


@pytest.mark.parametrize(
    ("data", "charset", "text"),
    [
        (b"caf\xc3\xa9", "", "café"),
        (b"caf\xe9", "", "café"),
        (b"caf\xe9", "iso-8859-1", "café"),
        (b"\xd0\xcf\xd2", "koi8-r", "пор"),
        ("<p>é</p>".encode("utf-16"), "", "<p>é</p>"),
        (b"<meta charset=shift_jis>\x93\xfa\x96{", "", "<meta charset=shift_jis>日本"),
        (b"x" * 200 + b"\xff", "utf-8", "x" * 200 + "\ufffd"),
        (b"caf\xe9", "hex", "café"),
    ],
)
def test_pages_are_decoded_as_browsers_do(data: bytes, charset: str, text: str) -> None:
    assert decode_page(data, charset) == text


@pytest.mark.parametrize("data", [b"\xff\xfd" * 50, b"a\0b"])
def test_pages_that_are_no_text_are_refused(data: bytes) -> None:
    with pytest.raises(Unusable):
        decode_page(data, "utf-8")


# --- near-duplicates --------------------------------------------------------------------------------------


def words(count: int, seed: int = 1) -> list[str]:
    chosen = random.Random(seed)
    return ["".join(chosen.choices("abcdefghij", k=5)) for _ in range(count)]


def test_nearly_the_same_words_are_the_same_and_others_are_not() -> None:
    text = words(400)
    fingerprint = Fingerprint.of(" ".join(text))
    assert fingerprint is not None
    one_word = Fingerprint.of("# " + ", ".join([*text[:100], "zebra", *text[101:]]).upper())
    a_tenth = Fingerprint.of(" ".join([*text[:100], *words(40, seed=2), *text[140:]]))
    assert one_word is not None
    assert a_tenth is not None
    assert fingerprint.same(one_word)
    assert not fingerprint.same(a_tenth)
    assert not fingerprint.same(Fingerprint.of(" ".join([*text, "7"])) or fingerprint._replace(numbers="none"))
    assert Fingerprint.of("too short") is None
    assert Fingerprint.parse(str(fingerprint)) == fingerprint
    assert [Fingerprint.parse(text) for text in ("", "x", "AAAA:1")] == [None, None, None]


def test_a_near_duplicate_is_found_among_many_until_it_is_dropped() -> None:
    held = Fingerprints()
    for number in range(200):
        fingerprint = Fingerprint.of(" ".join(words(100, seed=number)))
        assert fingerprint is not None
        held.put(str(number), fingerprint)
    asked = Fingerprint.of(" ".join(words(100, seed=42)))
    assert asked is not None
    assert held.like(asked, but="") == "42"
    assert held.like(asked, but="42") == ""
    held.drop("42")
    assert held.like(asked, but="") == ""


@pytest.mark.corpus
def test_notes_of_one_author_are_not_taken_for_duplicates() -> None:
    folder = DATA / "corpus" / "simonw_til" / "content"
    if not folder.exists():
        pytest.skip(f"{folder} is missing")
    held = Fingerprints()
    found = 0
    for file in sorted(folder.rglob("*.md"))[:200]:
        fingerprint = Fingerprint.of(file.read_text())
        if fingerprint is not None:
            assert held.like(fingerprint, but="") == "", file
            held.put(str(file), fingerprint)
            found += 1
    assert found > 150


# --- repositories -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "is_one"),
    [
        ("git+https://example.org/x", True),
        ("https://example.org/x.git", True),
        ("https://github.com/owner/name", True),
        ("https://github.com/owner/name/blob/main/a.md", False),
        ("git@example.org:owner/name.git", True),
        ("ssh://git@example.org/x", True),
        ("https://example.org/page", False),
        (".", False),
    ],
)
def test_what_names_a_repository(target: str, is_one: bool) -> None:
    assert is_repository(target) is is_one


@pytest.mark.parametrize("target", ["git+ext::sh -c true", "git+ftp://example.org/x", "git+--exec=x", "git+x#-b"])
def test_transports_that_run_programs_are_refused(tmp_path: Path, target: str) -> None:
    with pytest.raises(QuillError, match=r"not a repository|not an address|no repository"):
        list_repository(target, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.corpus
def test_the_front_matter_of_a_blog_becomes_metadata() -> None:
    folder = DATA / "corpus" / "milvus_blog_en"
    if not folder.exists():
        pytest.skip(f"{folder} is missing")
    index = {row["path"]: row for row in map(json.loads, (folder / "index.jsonl").read_text().splitlines())}
    found = {path: next(read_path(folder / path)) for path in sorted(index)[::5]}
    assert len(found) > 50
    for path, document in found.items():
        assert isinstance(document, SourceDocument)
        year, month, day = map(int, index[path]["date"].split("-"))  # some are written 2026-3-25, one 2024-11-31
        known = day <= monthrange(year, month)[1]
        said = date(year, month, day).isoformat() if known else ""
        assert document.metadata.get("date", "")[:10] == said, path
        assert document.metadata.get("author", "") == (index[path].get("author") or ""), path
        assert document.metadata.get("tags") or not index[path].get("tag"), path
        assert "![" not in clean(document.text)
