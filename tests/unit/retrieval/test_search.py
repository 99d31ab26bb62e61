"""Fusion, relevance, folding, and what a writing request is about."""

from __future__ import annotations

import pytest

from retrieval.index.protocol import Hit
from retrieval.ranking import LEXICAL_WEIGHT, fuse
from retrieval.search import CROWDED, RELEVANT, SUFFICIENT, related, relevance, select, subject_of
from streams.protocols import RetrievedChunk


def chunk(name: str, text: str, *, document: str = "d", score: float = 0.5) -> RetrievedChunk:
    return RetrievedChunk(
        chunk_id=name, document_id=document, source="/n.md", title="", heading="", text=text, score=score
    )


def hits(**scores: float) -> list[Hit]:
    return [Hit(name, "d", score) for name, score in scores.items()]


@pytest.mark.parametrize(
    ("question", "subject"),
    [
        (
            "Could you please draft a LinkedIn post discussing Vector Databases? I'm particularly interested in speed.",
            "Vector Databases? speed.",
        ),
        ("Write a short post that explains LoRA to backend engineers", "LoRA"),
        ("Please write me a blog article about mixture of experts for beginners.", "mixture of experts ."),
        ("Draft a tweet on PEFT methods", "PEFT methods"),
        ("Give me a summary of consumer groups", "consumer groups"),
        ("What is the difference between LoRA and QLoRA?", "What is the difference between LoRA and QLoRA?"),
        ("How do I write a post-mortem?", "How do I write a post-mortem?"),
        ("Write a post", "Write a post"),
    ],
)
def test_the_subject_of_a_writing_request(question: str, subject: str) -> None:
    assert subject_of(question) == subject


def scores(fused: list[Hit]) -> dict[str, float]:
    return {hit.chunk_id: hit.score for hit in fused}


def test_a_chunk_found_by_both_comes_first() -> None:
    found = scores(fuse(hits(a=0.9, b=0.8, c=0.1), hits(b=12.0, d=11.0, a=3.0)))
    assert next(iter(found)) == "b"
    assert set(found) == {"a", "b", "c", "d"}
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert all(0 <= score <= 1 for score in found.values())


def test_fusing_survives_empty_and_even_lists() -> None:
    assert fuse([], []) == []
    assert list(scores(fuse(hits(a=0.5), []))) == ["a"]
    assert scores(fuse(hits(a=0.5, b=0.5), hits(a=1.0))) == {"a": 1.0, "b": 1 - LEXICAL_WEIGHT}


def test_a_leg_counts_from_what_an_unrelated_chunk_has() -> None:
    found = scores(fuse(hits(a=0.5, b=0.4, c=0.3, d=0.2), [], unrelated=0.3))
    assert list(found) == ["a", "b", "c", "d"]
    assert found["b"] == pytest.approx((1 - LEXICAL_WEIGHT) / 2)
    assert found["c"] == found["d"] == 0
    assert scores(fuse(hits(a=0.2), hits(b=3.0), unrelated=0.3)) == {"b": LEXICAL_WEIGHT}


KAFKA = chunk("kafka", "Kafka keeps records in partitions and consumers read them by offset.")
LORA = chunk("lora", "Adapters train two small matrices beside each frozen weight.")


@pytest.mark.parametrize(
    ("best", "subject", "level"),
    [
        (0.6, "how records are kept", "sufficient"),
        (0.35, "kafka partitions offset", "sufficient"),
        (0.35, "kafka partitions and leader elections", "relevant"),
        (0.35, "blockchain consensus", "neither"),
        (0.2, "blockchain records", "neither"),
        (-0.5, "kafka", "neither"),
    ],
)
def test_what_has_nothing_to_do_with_the_subject_is_not_a_result(best: float, subject: str, level: str) -> None:
    reached = relevance([LORA, KAFKA], subject, best)
    assert (reached >= SUFFICIENT, reached >= RELEVANT) == (level == "sufficient", level != "neither")


def test_chunks_far_below_the_best_are_no_results() -> None:
    near, far = chunk("near", "a", score=0.5), chunk("far", "b", score=0.09)
    assert related([near, near, far]) == [near, near]
    assert related([]) == []


def test_near_repetitions_are_folded() -> None:
    twin = KAFKA.model_copy(update={"chunk_id": "twin", "document_id": "other", "text": KAFKA.text + " Yes."})
    assert [item.chunk_id for item in select([KAFKA, twin, LORA], 8)] == ["kafka", "lora"]


def test_a_document_that_crowds_the_result_steps_back() -> None:
    texts = ["alpha beta", "gamma delta", "epsilon zeta", "eta theta", "iota kappa"]
    crowd = [chunk(f"c{n}", text, score=0.9) for n, text in enumerate(texts)]
    close = chunk("other", "lambda mu", document="e", score=0.8)
    far = chunk("far", "nu xi", document="f", score=0.3)
    found = select([*crowd, close, far], 6)

    assert [item.chunk_id for item in found] == ["c0", "c1", "c2", "other", "c3", "c4"]
    assert found[4].score == pytest.approx(0.9 * CROWDED)
    assert len(select(crowd, 2)) == 2
