"""Events survive the trip through a record, and what is no event is refused with its reason."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import InputError
from infra.llm.chat import Message
from streams.codec import UndecodableEvent, decode, encode
from streams.events import (
    AlertChanged,
    ChunkRef,
    Citation,
    DocumentDeleted,
    DocumentUpserted,
    EvaluationRecorded,
    Event,
    FeedbackGiven,
    InteractionRecorded,
    Payload,
    ReleaseChanged,
    ReleaseRef,
    Slice,
    Unscored,
    Verdict,
    key_of,
)
from streams.log import Record, StoredRecord

TIME = datetime(2025, 3, 4, 5, 6, 7, 89, tzinfo=UTC)
INTERACTION = InteractionRecorded(
    interaction_id="i",
    conversation_id="c",
    prompt="What is LoRA?",
    messages=(Message(role="user", content="Hi"),),
    response="Two small matrices. [1]",
    finish_reason="stop",
    release=ReleaseRef(release_id="sha256:r", prompt="p@1", model="m", index_position={"0": 3}),
    chunks=(ChunkRef(chunk_id="k", document_id="d", score=0.5),),
    citations=(Citation(marker=1, chunk_id="k", source="s", quote="q", sentence="t", support=1.0),),
    tags={"topic": "lora"},
)
PAYLOADS: tuple[Payload, ...] = (
    DocumentUpserted(document_id="d", source="s", title="t", text="ü\n", content_hash="sha256:h", metadata={"a": [1]}),
    DocumentDeleted(document_id="d", source="s"),
    INTERACTION,
    EvaluationRecorded(
        interaction_id="i",
        judge="j@1",
        scores=(
            Verdict(criterion="relevance", score=4, justification="good"),
            Unscored(criterion="coherence", reason="no text"),
        ),
    ),
    FeedbackGiven(interaction_id="i", ratings={"relevance": 5}),
    AlertChanged(
        alert_id="a",
        alert_key="k",
        state="open",
        title="t",
        detector="d",
        statistic=1.5,
        threshold=1,
        interaction_ids=("i",),
        slices=(Slice(field="topic", value="x", share=1, reference_share=0),),
        opened_at=TIME,
    ),
    ReleaseChanged(channel="production", release_id="sha256:r", action="promoted", reason="r", actor="a"),
)


def record(value: bytes | None = None, **headers: str | None) -> Record:
    """The record of INTERACTION with another value or other headers (None takes one away)."""
    made = encode(Event(id="e", time=TIME, data=INTERACTION))
    kept = {name: text.decode() for name, text in made.headers} | headers
    pairs = tuple((name, text.encode()) for name, text in kept.items() if text is not None)
    return Record(key=made.key, value=made.value if value is None else value, headers=pairs)


def changed(**fields: object) -> bytes:
    return json.dumps({**INTERACTION.model_dump(mode="json"), **fields}).encode()


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: payload.type)
def test_every_payload_comes_back_equal(payload: Payload):
    event = Event(id="e-1", source="tests/ü", time=TIME, data=payload)
    made = encode(event)
    assert decode(made) == event
    assert made.key == key_of(payload)


def test_there_is_a_payload_of_every_type():
    assert len({payload.type for payload in PAYLOADS}) == 7


def test_the_attributes_are_those_of_cloudevents_in_binary_mode():
    made = encode(Event(id="e", source="s", time=TIME, data=INTERACTION))
    assert {name: text.decode() for name, text in made.headers} == {
        "ce_specversion": "1.0",
        "ce_id": "e",
        "ce_source": "s",
        "ce_type": "llm.interaction.recorded",
        "ce_time": "2025-03-04T05:06:07.000089+00:00",
        "ce_partitionkey": "c",
        "ce_dataschema": "urn:quillstream:llm.interaction.recorded:2",
        "content-type": "application/json",
    }
    assert json.loads(made.value)["prompt"] == "What is LoRA?"


def test_a_foreign_producer_may_leave_the_time_to_the_log_and_use_another_zone():
    stored = StoredRecord(**asdict(record(ce_time=None)), topic="t", partition=0, offset=0, time=TIME)
    assert decode(stored).time == TIME
    elsewhere = TIME.astimezone(timezone(timedelta(hours=2)))
    assert decode(record(ce_time=elsewhere.isoformat())).time == TIME


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (record(b""), "not JSON"),
        (record(b"{"), "not JSON"),
        (record(b"\xff\xfe\x00"), "not JSON"),
        (record(b"[1]"), "not a JSON object"),
        (record(b'{"type": NaN}'), "NaN is not JSON"),
        (record(b"[" * 200_000), "nested deeper"),
        (record(changed(tags={"a": "x"}, extra=1)), "extra"),
        (record(changed(type="llm.other")), "unknown event type"),
        (record(changed(type=["list"])), "unknown event type"),
        (record(changed(schema_version=3)), r"unknown schema_version.*seen: 3; rule: this installation reads \[1, 2\]"),
        (record(changed(schema_version=0)), "unknown schema_version"),
        (record(changed(schema_version=True)), "unknown schema_version"),
        (record(changed(schema_version=[1])), "unknown schema_version"),
        (record(changed(schema_version=None)), "unknown schema_version"),
        (record(changed(prompt="a\0b")), "NUL"),
        (record(changed(tags={"a\0": "b"})), "NUL"),
        (record(changed(prompt="a").replace(b'"a"', b'"\\ud800"')), "surrogates"),
        (record(changed(latency_ms=-1)), "latency_ms"),
        (record(changed(finish_reason="bored")), "finish_reason"),
        (record(b'{"n": ' + b"9" * 5000 + b"}"), "not JSON"),
        (record(ce_id=None), "ce_id is missing"),
        (record(ce_type="llm.feedback.given"), "different types"),
        (record(ce_specversion="0.3"), "version is not 1.0"),
        (record(ce_time="yesterday"), "not valid"),
        (record(ce_time="2025-01-01T00:00:00"), "ce_time"),
        (record(ce_time=None), "ce_time"),
        (Record(key="k", value=b"{}", headers=(("ce_id", b"\xff"),)), "not UTF-8"),
        (Record(key="k", value=b"{}"), "is missing"),
    ],
)
def test_what_is_no_event_is_refused_with_the_reason(bad: Record, reason: str):
    with pytest.raises(UndecodableEvent, match=reason):
        decode(bad)


def test_the_words_backslash_u0000_are_not_a_nul_character():
    payload = INTERACTION.model_copy(update={"prompt": "write \\u0000 and \\ud800"})
    assert decode(encode(Event(data=payload))).data == payload


@pytest.mark.parametrize(
    "payload",
    [
        INTERACTION.model_copy(update={"prompt": "a\0b"}),
        PAYLOADS[0].model_copy(update={"metadata": {"a": "\ud800"}}),
        PAYLOADS[0].model_copy(update={"metadata": {"\0": 1}}),
        PAYLOADS[5].model_copy(update={"statistic": float("inf")}),
    ],
)
def test_what_could_not_be_read_back_is_not_encoded(payload: Payload):
    with pytest.raises(InputError, match="cannot be encoded"):
        encode(Event(data=payload))


@given(st.binary(max_size=200), st.lists(st.tuples(st.sampled_from(["ce_id", "ce_type", "x"]), st.binary(max_size=9))))
def test_no_bytes_get_past_with_another_error(value: bytes, headers: list[tuple[str, bytes]]):
    with pytest.raises(UndecodableEvent):
        decode(Record(key="k", value=value, headers=tuple(headers)))


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: payload.type)
def test_the_order_and_spacing_of_the_json_do_not_matter(payload: Payload):
    ours = encode(Event(data=payload))
    foreign = json.dumps(json.loads(ours.value), sort_keys=True, indent=1).encode()
    assert foreign != ours.value
    assert decode(replace(ours, value=foreign)).data == decode(ours).data == payload


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b'"latency_ms":0.0', b'"latency_ms":-1', "latency_ms; rule: Input should be greater"),
        (b'"latency_ms":0.0', b'"latency_ms":1e999', "latency_ms; rule: Input should be a finite"),
        (b'"latency_ms":0.0', b'"latency_ms":NaN', "latency_ms; rule: Input should be"),
        (b'"latency_ms":0.0', b'"latency_ms":0.0,"extra":' + b"[" * 30 + b"]" * 30, "extra; rule: Extra inputs"),
        (b'"latency_ms":0.0', b'"latency_ms":0.0,"extra":' + b"[" * 9999 + b"]" * 9999, "nested deeper than 64"),
        (b'"schema_version":2', b'"schema_version":3', "unknown schema_version"),
        (b'"schema_version":2', b'"schema_version":true', "unknown schema_version"),
        (b'"schema_version":2,', b"", "unknown schema_version"),
        (b'"prompt":"What', b'"prompt":"\\u0000What', "NUL"),
        (b'"prompt":"What', b'"prompt":"\\ud800What', "surrogates"),
        (b'"prompt":"What', b'"prompt":"\xff', "not JSON"),
    ],
)
def test_what_is_spoilt_in_a_record_of_ours_is_refused_with_the_reason(old: bytes, new: bytes, reason: str):
    ours = encode(Event(data=INTERACTION))
    assert old in ours.value
    with pytest.raises(UndecodableEvent, match=reason):
        decode(replace(ours, value=ours.value.replace(old, new, 1)))
