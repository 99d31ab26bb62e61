"""Citations: verbatim quotes, right chunks, honest about what nothing supports."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from infra.embedder import HashEmbedder
from retrieval.citations import cite, consistent, is_claim
from streams.protocols import RetrievedChunk

LOG = (
    "Kafka appends each record to the end of a partition. Records with the same key land in the same partition. "
    "A consumer group commits 3 offsets per second."
)
LORA = (
    "Low-rank adapters train two thin matrices beside every frozen weight.\n\n```\nrank = 16\n```\n\n"
    "Merging them adds no latency at all."
)


def chunk(name: str, text: str) -> RetrievedChunk:
    return RetrievedChunk(
        chunk_id=name, document_id=name, source=f"/{name}.md", title="", heading="", text=text, score=1.0
    )


CHUNKS = [chunk("log", LOG), chunk("lora", LORA)]
EMBEDDER = HashEmbedder(dimensions=1024)


def test_supported_sentences_get_markers_in_order_of_appearance() -> None:
    text = (
        "Low-rank adapters train two thin matrices beside each frozen weight. "
        "Kafka appends each record to the end of a partition!"
    )
    cited = cite(text, CHUNKS, EMBEDDER)

    assert cited.text == (
        "Low-rank adapters train two thin matrices beside each frozen weight [1]. "
        "Kafka appends each record to the end of a partition [2]!"
    )
    assert [(item.marker, item.chunk_id, item.source) for item in cited.citations] == [
        (1, "lora", "/lora.md"),
        (2, "log", "/log.md"),
    ]
    assert cited.citations[1].quote == "Kafka appends each record to the end of a partition."
    assert cited.citations[1].sentence == "Kafka appends each record to the end of a partition!"
    assert cited.unsupported == ()


def test_every_quote_stands_in_its_chunk_and_every_marker_in_the_text() -> None:
    text = (
        "Records with the same key land in the same partition. Merging them adds no latency at all. "
        "Kafka appends each record to the end of a partition."
    )
    cited = cite(text, CHUNKS, EMBEDDER)
    texts = {item.chunk_id: item.text for item in CHUNKS}

    assert len(cited.citations) == 3
    for item in cited.citations:
        assert item.quote in texts[item.chunk_id]
        assert f"[{item.marker}]" in cited.text
        assert 0.7 <= item.support <= 1
    assert sorted({item.marker for item in cited.citations}) == [1, 2]


def test_what_nothing_supports_is_listed_and_left_in_the_text() -> None:
    claim = "Kafka was written in Haskell by seven astronauts on holiday."
    cited = cite(f"{claim} Records with the same key land in the same partition.", CHUNKS, EMBEDDER)
    assert cited.unsupported == (claim,)
    assert claim in cited.text
    assert len(cited.citations) == 1


@pytest.mark.parametrize(
    "claim",
    [
        "A consumer group commits 5 offsets per second.",
        "Kafka never appends each record to the end of a partition.",
        "Records with the same key don't land in the same partition.",
        "Merging them adds latency at all.",
        "Only records with the same key land in the same partition.",
    ],
)
def test_other_numbers_denials_and_scopes_are_not_supported(claim: str) -> None:
    cited = cite(claim, CHUNKS, EMBEDDER)
    assert cited.citations == ()
    assert cited.unsupported == (claim,)


@pytest.mark.parametrize(
    ("sentence", "source", "agrees"),
    [
        ("It costs 1,000 a month.", "It costs 1000 a month.", True),
        ("It saves 40%.", "It saves 40 percent.", True),
        ("It saves 40%.", "It saves 45%.", False),
        ("Version 2.6 is out.", "Version 2.60 is out.", False),
        ("Latency is higher.", "Latency is lower.", False),
        ("Latency is higher.", "Latency is higher, cost is lower.", True),
        ("Order holds between partitions.", "Order holds within a partition.", False),
    ],
)
def test_consistency(sentence: str, source: str, agrees: bool) -> None:
    assert consistent(sentence, source) is agrees


@pytest.mark.parametrize(
    "sentence",
    [
        "What if your heating only had to carry warmth?",
        "Let's look at how vector databases find neighbours.",
        "#VectorDatabases #AI #MachineLearning #Search",
        "Share your experience with consumer groups in the comments.",
        "Follow me for more posts about streaming systems.",
        "In this post we explain how adapters work in practice.",
        "Vector databases explained",
    ],
)
def test_questions_titles_and_calls_to_action_claim_nothing(sentence: str) -> None:
    assert not is_claim(sentence)
    cited = cite(sentence, CHUNKS, EMBEDDER)
    assert (cited.text, cited.citations, cited.unsupported) == (sentence, (), ())


@pytest.mark.parametrize(
    "sentence",
    [
        "When using a vector database, watch out for overfitting and false positives.",
        "Which index serves best depends on the collection's size.",
        "Where the collection is small, no index is needed.",
    ],
)
def test_a_claim_may_begin_with_a_question_word(sentence: str) -> None:
    assert is_claim(sentence)
    assert cite(sentence, CHUNKS, EMBEDDER).unsupported == (sentence,)


def test_code_in_an_answer_is_left_alone() -> None:
    code = "```\nrank = 16 of the partition key record\n```"
    text = (
        f"Records with the same key land in the same partition.\n\n{code}\n\n"
        "Kafka appends each record to the end of a partition."
    )
    cited = cite(text, CHUNKS, EMBEDDER)
    assert code in cited.text
    assert len(cited.citations) == 2


def test_marks_around_a_sentence_do_not_matter() -> None:
    cited = cite("- **Kafka appends each record to the end of a partition.**\n- Other", CHUNKS, EMBEDDER)
    assert cited.text == "- **Kafka appends each record to the end of a partition [1].**\n- Other"
    assert cited.citations[0].sentence == "Kafka appends each record to the end of a partition."


def test_nothing_to_cite_needs_no_embedding() -> None:
    class Refuses(HashEmbedder):
        def embed(self, texts: Sequence[str], on_progress: object = None) -> np.ndarray:
            raise AssertionError("nothing to embed")

    assert cite("What now?", CHUNKS, Refuses()).citations == ()
    assert cite("Kafka appends each record to a partition.", [], Refuses()).unsupported != ()
    assert cite("", CHUNKS, Refuses()).text == ""
