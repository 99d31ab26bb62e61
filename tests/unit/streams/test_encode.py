"""Encoding is quick only where it may be: what a store cannot take is refused, and words that look like it are not."""

from __future__ import annotations

import os
import uuid

import pytest

from infra.errors import InputError
from infra.identity import new_id
from streams.codec import MAX_DEPTH, decode, encode
from streams.events import DocumentUpserted, Event, FeedbackGiven


def document(metadata: object) -> Event:
    plain = DocumentUpserted(document_id="d", source="s", title="t", text="x", content_hash="h")
    return Event(data=plain.model_copy(update={"metadata": metadata}))


def nested(levels: int) -> dict[str, object]:
    tree: dict[str, object] = {}
    for _ in range(levels):
        tree = {"a": tree}
    return tree


@pytest.mark.parametrize("words", ["NaN", "Infinity", "-Infinity, NaN", "\\u0000", "é 🦙 \u2028"])
def test_words_that_look_like_what_is_refused_travel(words: str):
    payload = FeedbackGiven(interaction_id=words, comment=words)
    assert decode(encode(Event(data=payload))).data == payload


@pytest.mark.parametrize(
    "metadata",
    [{"a": float("nan")}, {"a": [{"b": float("-inf")}]}, {"a": "x\0"}, {"a": {"\0": 1}}, {"a": "\udc00"}],
)
def test_free_fields_are_looked_through(metadata: object):
    with pytest.raises(InputError, match="cannot be encoded"):
        encode(document(metadata))


def test_free_fields_nest_as_deep_as_readers_follow_and_no_deeper():
    assert decode(encode(document(nested(MAX_DEPTH - 2)))).data.metadata == nested(MAX_DEPTH - 2)
    for levels in (MAX_DEPTH - 1, 300, 5_000):
        with pytest.raises(InputError, match="cannot be encoded"):
            encode(document(nested(levels)))


def test_a_number_that_is_none_is_refused_in_a_typed_field():
    for number in (float("nan"), float("inf")):
        payload = FeedbackGiven(interaction_id="i").model_copy(update={"ratings": {"relevance": number}})
        with pytest.raises(InputError, match="is not JSON"):
            encode(Event(data=payload))


def test_ids_are_ordered_in_time_unique_and_differ_in_the_child_of_a_fork():
    made = [new_id() for _ in range(2_000)]
    assert len(set(made)) == 2_000
    assert [each[:12] for each in made] == sorted(each[:12] for each in made)
    assert {(uuid.UUID(each).version, uuid.UUID(each).variant) for each in made} == {(7, uuid.RFC_4122)}
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, "".join(new_id()[16:] for _ in range(20)).encode())
        os._exit(0)
    ours = {new_id()[16:] for _ in range(20)}
    os.waitpid(child, 0)
    theirs = os.read(reading, 1_000).decode()
    os.close(reading)
    os.close(writing)
    assert len(theirs) == 320
    assert not ours & {theirs[start : start + 16] for start in range(0, 320, 16)}
