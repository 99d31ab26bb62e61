"""The built-in corpus is real text that every machine has."""

from pathlib import Path

import pytest

from dagster_project.corpus import NOTES, read_corpus
from infra.errors import InputError
from retrieval.sources import Rejected, SourceDocument


def test_the_built_in_corpus_holds_the_notes_and_package_descriptions():
    documents, scope = read_corpus("")
    found = [document for document in documents if isinstance(document, SourceDocument)]
    packages = {document.source for document in found if document.source.startswith("package:")}
    notes = [document for document in found if str(NOTES) in document.source]
    assert scope == "built-in"
    assert len(notes) >= 30
    assert {"package:torch", "package:peft", "package:qdrant-client", "package:dagster"} <= packages
    assert len({document.document_id for document in found}) == len(found)


def test_a_folder_is_its_own_scope(tmp_path: Path):
    (tmp_path / "note.md").write_text("# Title\n\nSome words about a subject.")
    documents, scope = read_corpus(str(tmp_path))
    assert [type(document) for document in documents] == [SourceDocument]
    assert scope == str(tmp_path.resolve())


def test_a_path_that_does_not_exist_is_named(tmp_path: Path):
    with pytest.raises(InputError, match="no such corpus") as caught:
        read_corpus(str(tmp_path / "gone"))
    assert "gone" in str(caught.value)


def test_documents_beyond_the_budget_are_left_out_with_the_reason(tmp_path: Path):
    for name in ("a.md", "b.md", "c.md"):
        (tmp_path / name).write_text(f"# {name}\n\n" + "Some words about a subject. " * 10_000)
    documents, _ = read_corpus(str(tmp_path))
    found = [(Path(document.source).name, type(document)) for document in documents]
    assert found == [("a.md", SourceDocument), ("b.md", SourceDocument), ("c.md", Rejected)]
