"""Files, folders and installed distributions as documents; what cannot be one says why."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import pytest
from pypdf import PdfWriter
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

from infra.errors import NotFound
from retrieval.sources import MAX_BYTES, Rejected, SourceDocument, installed_packages, read_path

LONG = "Kafka keeps records in partitions, and consumers read them by offset."


def only(path: Path) -> SourceDocument:
    found = list(read_path(path))
    assert len(found) == 1
    assert isinstance(found[0], SourceDocument), found[0]
    return found[0]


def refusal(path: Path) -> str:
    found = list(read_path(path))
    assert len(found) == 1
    assert isinstance(found[0], Rejected), found[0]
    assert found[0].source == str(path)
    return found[0].reason


def pdf(text: str = "", *, password: str = "", title: str = "") -> bytes:
    writer = PdfWriter()
    page = writer.add_blank_page(300, 300)
    font = DictionaryObject(
        {
            NameObject(k): NameObject(v)
            for k, v in (("/Type", "/Font"), ("/Subtype", "/Type1"), ("/BaseFont", "/Helvetica"))
        }
    )
    fonts = DictionaryObject({NameObject("/F1"): writer._add_object(font)})
    page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
    stream = DecodedStreamObject()
    stream.set_data(f"BT /F1 12 Tf 20 200 Td ({text}) Tj ET".encode() if text else b"")
    page[NameObject("/Contents")] = writer._add_object(stream)
    if title:
        writer.add_metadata({"/Title": title, "/Author": "A. Writer"})
    if password:
        writer.encrypt(password, algorithm="RC4-128")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def test_markdown_with_front_matter(tmp_path: Path) -> None:
    file = tmp_path / "kafka-log.md"
    file.write_text(
        "---\ntitle: The log\nauthor: A. Writer\ndate: 2026-01-08\ntags: [kafka, log]\n"
        f"sources:\n  - A book\nlayout: wide\n---\n\n# Another heading\n\n{LONG}\n"
    )
    document = only(file)

    assert document.title == "The log"
    assert document.metadata == {
        "author": "A. Writer",
        "date": "2026-01-08",
        "tags": ["kafka", "log"],
        "sources": ["A book"],
    }
    assert document.text == f"# Another heading\n\n{LONG}"
    assert document.source == str(file)


@pytest.mark.parametrize(
    ("text", "title"),
    [
        (f"# A *title* with `code`\n\n{LONG}", "A title with code"),
        (LONG, "Kafka log"),
        (f"---\ntitle: [broken: yaml\n---\n# Heading\n{LONG}", "Heading"),
        (f"```\n# comment\n```\n# Heading\n{LONG}", "Heading"),
    ],
)
def test_a_title_is_always_found(tmp_path: Path, text: str, title: str) -> None:
    file = tmp_path / "kafka-log.md"
    file.write_text(text)
    assert only(file).title == title


def test_text_is_normalised(tmp_path: Path) -> None:
    file = tmp_path / "note.txt"
    file.write_bytes("\ufeffcafe\u0301\r\nzero\u200bwidth\u00a0space \x07bell\n\n\n\n\nend".encode())
    assert only(file).text == "café\nzerowidth space bell\n\n\nend"


def test_html_keeps_the_main_content_with_structure(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(
        "<html><head><title>The log</title><meta name='author' content='A. Writer'>"
        "<link rel=canonical href='https://example.org/log'></head><body><nav>Home | About</nav>"
        f"<main><h1>The log</h1><p>{LONG} It is <b>fast</b>.</p><h2>Use</h2><ul><li>one <a href='x'>link</a></li>"
        "<li>two</li></ul><pre><code>a = 1\nb = 2</code></pre>"
        "<table><tr><th>k</th><th>v</th></tr><tr><td>1</td><td>2</td></tr></table>"
        "<script>track()</script><!-- hidden --></main><footer>Imprint</footer></body></html>"
    )
    document = only(file)

    assert document.title == "The log"
    assert document.metadata == {"author": "A. Writer", "url": "https://example.org/log"}
    assert document.text == (
        f"# The log\n\n{LONG} It is fast.\n\n## Use\n\n- one link\n- two\n\n```\na = 1\nb = 2\n```\n\n"
        "| k | v |\n|---|---|\n| 1 | 2 |"
    )


def test_html_may_declare_its_charset(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_bytes(b"<html><head><meta charset=iso-8859-1></head><body><p>caf\xe9</p></body></html>")
    assert only(file).text == "café"
    file.write_bytes(b"<html><head><meta charset=no-such-thing></head><body><p>ok</p></body></html>")
    assert only(file).text == "ok"


def test_restructured_text(tmp_path: Path) -> None:
    file = tmp_path / "readme.rst"
    file.write_text(
        "Client\n======\n\n.. image:: https://example.org/badge.svg\n    :target: https://example.org\n\n"
        "Reads the `log <https://example.org>`_ with ``poll`` and :class:`Consumer`. See |docs|.\n\n"
        "Use\n---\n\nInstall it::\n\n    pip install client\n\n.. code-block:: python\n\n    import client\n\n"
        ".. note::\n\n   It is small.\n\n.. _target: https://example.org\n"
    )
    document = only(file)

    assert document.title == "Client"
    assert "Reads the log with `poll` and `Consumer`." in document.text
    assert "## Use" in document.text
    assert "```\npip install client\n```" in document.text
    assert "```\nimport client\n```" in document.text
    assert "It is small." in document.text
    assert "badge" not in document.text
    assert "_target" not in document.text


def test_pdf(tmp_path: Path) -> None:
    file = tmp_path / "paper.pdf"
    file.write_bytes(pdf(LONG, title="On logs"))
    document = only(file)
    assert (document.title, document.metadata) == ("On logs", {"author": "A. Writer"})
    assert LONG in document.text


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("empty.md", b"", "it is empty"),
        ("blank.txt", b" \n\t\n", "it is empty"),
        ("binary.md", b"MZ\x00\x01" * 50, "it is binary"),
        ("latin.txt", b"caf\xe9 au lait", "byte 0xe9 at offset 3"),
        ("wide.md", "text".encode("utf-16"), "it is UTF-16"),
        ("nothing.html", b"<html><script>x</script></html>", "it holds no text"),
        ("broken.pdf", b"%PDF-1.7\nnot really", "it is a broken PDF"),
        ("picture.png", b"\x89PNG", "its kind .png is not one of"),
        ("Makefile", b"all:\n", "its kind (no suffix) is not one of"),
    ],
)
def test_unusable_files_say_why(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(data)
    assert reason in refusal(tmp_path / name)


def test_pdfs_without_text_or_with_a_password_say_so(tmp_path: Path) -> None:
    (tmp_path / "scan.pdf").write_bytes(pdf())
    (tmp_path / "locked.pdf").write_bytes(pdf(LONG, password="secret"))
    assert "without text" in refusal(tmp_path / "scan.pdf")
    assert "password" in refusal(tmp_path / "locked.pdf")


def test_a_huge_file_is_refused_without_reading_it(tmp_path: Path) -> None:
    file = tmp_path / "huge.txt"
    with file.open("wb") as opened:
        opened.truncate(5 * MAX_BYTES)
    assert "it has 100.0 MB; the limit is 20 MB" in refusal(file)


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "gone.md"
    file.symlink_to(tmp_path / "nowhere.md")
    with pytest.raises(NotFound):
        list(read_path(file))
    loop = tmp_path / "loop" / "a.md"
    loop.parent.mkdir()
    loop.symlink_to(loop)
    assert [item for item in read_path(loop.parent) if isinstance(item, SourceDocument)] == []


def test_a_folder_is_read_sorted_without_hidden_files_and_counts_other_kinds(tmp_path: Path) -> None:
    for name in ("b.md", "a.txt", "sub/c.md", ".hidden.md", ".git/d.md", "x.png", "y.png", "LICENSE"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(LONG)
    (tmp_path / "empty.md").touch()
    skipped: Counter[str] = Counter()
    found = list(read_path(tmp_path, skipped))

    names = [Path(item.source).relative_to(tmp_path).as_posix() for item in found]
    assert names == ["a.txt", "b.md", "empty.md", "sub/c.md"]
    assert [type(item) for item in found] == [SourceDocument, SourceDocument, Rejected, SourceDocument]
    assert skipped == {".png": 2, "(no suffix)": 1}


def test_a_path_that_does_not_exist_is_an_error_not_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nothing at this path"):
        list(read_path(tmp_path / "nots"))


def test_identity_follows_the_source_and_the_hash_follows_the_content(tmp_path: Path) -> None:
    for name in ("a/note.md", "b/note.md"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(f"# T\n\n{LONG}")
    one, other = (only(tmp_path / name / "note.md") for name in "ab")

    assert one.document_id.startswith("note-")
    assert one.document_id != other.document_id
    assert one.content_hash == other.content_hash
    before = one.document_id
    (tmp_path / "a/note.md").write_text(f"---\ntags: x\n---\n# T\n\n{LONG}")
    assert only(tmp_path / "a/note.md").document_id == before
    assert only(tmp_path / "a/note.md").content_hash != one.content_hash


def test_installed_packages_come_in_the_asked_order_once_each() -> None:
    documents = list(installed_packages(first=["pypdf", "not-installed", "Kafka_Python"], limit=20))

    assert len(documents) == 20
    assert [document.source for document in documents[:2]] == ["package:pypdf", "package:kafka-python"]
    assert len({document.source for document in documents}) == 20
    assert all(document.text and document.title for document in documents)
    kafka = documents[1]
    assert kafka.title.startswith("kafka-python: ")
    assert kafka.metadata["version"]
    assert "img.shields.io" not in kafka.text
