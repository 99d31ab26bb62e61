"""Chunks follow the structure, fit the embedder and keep their ids when something else changes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.embedder import HashEmbedder
from retrieval.chunking import ChunkSettings, blocks, chunk_document, embedding_text
from store.documents import Chunk
from streams.events import DocumentUpserted

EMBEDDER = HashEmbedder(max_tokens=254)
ALONE = ChunkSettings(merge_below=0)
SENTENCE = "The broker writes each record to the end of one partition, where it keeps its place for good."


def chunked(
    text: str, chunking: ChunkSettings = ALONE, title: str = "Note", embedder: HashEmbedder = EMBEDDER
) -> list[Chunk]:
    document = DocumentUpserted(document_id="note-1", source="/n.md", title=title, text=text, content_hash="sha256:0")
    return chunk_document(document, embedder, chunking)


def words(seed: int, count: int = 30) -> str:
    return (
        " ".join(
            f"word{chr(97 + (seed * 7 + n) % 26)}{chr(97 + (seed * 3 + n // 26) % 26)}{'x' * (seed % 5)}"
            for n in range(count)
        )
        + "."
    )


def test_sections_do_not_mix_and_carry_their_heading_path() -> None:
    text = f"# Note\n\n{words(1)}\n\n## How\n\n{words(2)}\n\n### Deep\n\n{words(3)}\n\n## Why\n\n{words(4)}"
    assert [(chunk.heading, chunk.text) for chunk in chunked(text)] == [
        ("", words(1)),
        ("How", words(2)),
        ("How > Deep", words(3)),
        ("Why", words(4)),
    ]
    assert [chunk.position for chunk in chunked(text)] == [0, 1, 2, 3]


def test_a_short_section_takes_in_the_next_one_with_its_heading() -> None:
    text = f"## One\n\n{words(1, 20)}\n\n## Two\n\n{words(2, 20)}\n\n## Three\n\n{words(3, 60)}"
    found = chunked(text, ChunkSettings(merge_below=30))
    assert [(chunk.heading, chunk.text) for chunk in found] == [
        ("One", f"{words(1, 20)}\n\nTwo\n\n{words(2, 20)}"),
        ("Three", words(3, 60)),
    ]


def test_underlined_headings_count_too() -> None:
    found = list(blocks("Title\n=====\n\ntext\n\nPart\n----\n\nmore\n", "Title"))
    assert [(block.path, block.text) for block in found] == [((), "text"), (("Part",), "more")]


def test_code_and_tables_stay_whole_and_with_the_words_before_them() -> None:
    code = "```python\n# Not a heading\n\nx = 1\n```"
    table = "| a | b |\n|---|---|\n| 1 | 2 |"
    found = chunked(f"## How\n\n{words(1)}\n\n{code}\n\n{table}\n\n{words(2)}")
    assert [chunk.text for chunk in found] == [f"{words(1)}\n\n{code}\n\n{table}\n\n{words(2)}"]


def test_long_paragraphs_are_cut_between_sentences() -> None:
    paragraph = " ".join(f"{SENTENCE[:-1]} number {words(n, 12)}" for n in range(30))
    found = chunked(paragraph)
    assert len(found) > 3
    assert all(chunk.text.endswith(".") for chunk in found)
    assert all(chunk.text in paragraph for chunk in found)
    assert all(chunk.tokens <= 180 for chunk in found)


def test_a_sentence_longer_than_the_model_is_cut_anyway() -> None:
    found = chunked(" ".join(words(n, 40)[:-1] for n in range(20)))
    assert len(found) > 3
    assert max(chunk.tokens for chunk in found) <= 180


def test_long_code_and_tables_are_cut_at_lines() -> None:
    rows = "\n".join(f"| {words(n, 12)} | {n} |" for n in range(40))
    found = chunked(f"| what | n |\n|---|---|\n{rows}")
    assert len(found) > 2
    assert all(chunk.text.startswith("| what | n |\n|---|---|\n|") for chunk in found)


def test_a_document_of_a_few_words_is_still_a_chunk() -> None:
    assert [chunk.text for chunk in chunked("A preliminary report on sorting")] == ["A preliminary report on sorting"]
    beside_prose = chunked("# One\n\n" + words(1) + "\n\n# Two\n\n" + words(2) + "\n\n# Three\n\nFew words here.")
    assert "Few words here." not in [chunk.text for chunk in beside_prose]


@pytest.mark.parametrize(
    "text",
    [
        "## Changelog\n\n" + words(1),
        "## Use\n\n### 1.2.0 (2024-01-01)\n\n" + words(1),
        "## Sponsors\n\n" + words(1),
        "https://a.org/1 https://a.org/2 " * 10,
        "```\n" + "x = 1\n" * 40 + "```",
        "",
    ],
)
def test_what_says_nothing_is_left_out(text: str) -> None:
    assert chunked(text) == []


def test_a_repetition_inside_a_document_is_kept_once() -> None:
    text = f"## A\n\n{SENTENCE} {words(1)}\n\n## B\n\n{SENTENCE} {words(1)}\n\n## C\n\n{words(3)}"
    assert [chunk.heading for chunk in chunked(text)] == ["A", "C"]


def test_an_edit_keeps_the_ids_of_other_chunks_and_a_new_title_changes_all() -> None:
    sections = [f"## S{n}\n\n{words(n)}" for n in range(5)]
    before = [chunk.chunk_id for chunk in chunked("\n\n".join(sections))]
    sections[2] = f"## S2\n\n{words(9)}\n\n## New\n\n{words(10)}"
    after = [chunk.chunk_id for chunk in chunked("\n\n".join(sections))]

    assert [chunk_id for chunk_id in before if chunk_id in after] == before[:2] + before[3:]
    assert not set(before) & {chunk.chunk_id for chunk in chunked("\n\n".join(sections), title="Other")}


def test_two_documents_with_the_same_text_have_different_chunks() -> None:
    one = DocumentUpserted(document_id="a", source="/a", title="T", text=words(1), content_hash="sha256:0")
    other = one.model_copy(update={"document_id": "b"})
    ids = [chunk_document(document, EMBEDDER, ALONE)[0].chunk_id for document in (one, other)]
    assert ids[0] != ids[1]


BLOCKS = st.one_of(
    st.integers(0, 30).map(lambda n: words(n, 25)),
    st.integers(0, 30).map(lambda n: " ".join(words(m, 20) for m in range(n))),
    st.integers(0, 5).map(lambda n: "#" * (n + 1) + f" Heading {n}"),
    st.integers(1, 200).map(lambda n: "```\n" + "call(a, b)\n" * n + "```"),
    st.integers(1, 60).map(lambda n: "| a | b |\n|---|---|\n" + "| one two | three |\n" * n),
    st.text(max_size=60),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(BLOCKS, max_size=8), st.text(alphabet="ab c", max_size=40))
def test_whatever_is_embedded_fits_the_model(parts: list[str], title: str) -> None:
    found = chunked("\n\n".join(parts), ChunkSettings(), title)
    for chunk in found:
        embedded = embedding_text(title, chunk.heading, chunk.text)
        assert len(EMBEDDER.token_spans(embedded)) <= EMBEDDER.max_tokens
    assert len({chunk.chunk_id for chunk in found}) == len(found)
    assert [chunk.position for chunk in found] == list(range(len(found)))
