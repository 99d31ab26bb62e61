"""Interactions of version 1 are read as of today, and everything that version 2 added is masked."""

from __future__ import annotations

import json
from typing import Any

import pytest
from golden_events import EVENTS, INTERACTION, golden_file, read_golden
from pydantic import ValidationError
from sqlalchemy import update

from infra.settings import Settings
from store.opening import open_store
from store.tables import interactions
from streams.codec import decode, encode, read_payload, versions_read
from streams.events import InteractionRecorded, TraceSpan
from streams.masking import mask_payload

VERSION_1 = read_golden(golden_file("llm.interaction.recorded", 1))
MAIL = "ada@example.org"
IDS = {
    "type", "interaction_id", "conversation_id", "session_id", "application", "channel", "finish_reason",
    "release.release_id", "release.prompt", "release.model", "release.adapter", "release.index_build",
    "release.judge", "release.decoding.stop", "messages.role", "chunks.chunk_id", "chunks.document_id",
    "citations.chunk_id", "citations.source", "tool_calls.name", "spans.span_id", "spans.parent_id", "spans.kind",
    "spans.start", "spans.end",
}  # fmt: skip
"""Paths of texts that are names and ids, and stay as they are."""


def flat(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """Path and value of each leaf; places in lists and names of free labels are left out of the path."""
    if isinstance(value, dict):
        free = path in {"tags", "spans.attributes"}
        return [
            leaf for name, each in value.items() for leaf in flat(each, path if free else f"{path}.{name}".strip("."))
        ]
    if isinstance(value, list):
        return [leaf for each in value for leaf in flat(each, path)]
    return [(path, value)]


def with_mail(value: Any, path: str = "") -> Any:
    """The tree with an address in every text that may hold any."""
    if isinstance(value, dict):
        free = path in {"tags", "spans.attributes"}
        return {name: with_mail(each, path if free else f"{path}.{name}".strip(".")) for name, each in value.items()}
    if isinstance(value, list):
        return [with_mail(each, path) for each in value]
    fixed = {"type", "finish_reason", "messages.role", "spans.start", "spans.end"}
    return f"{value} {MAIL}" if isinstance(value, str) and path not in fixed else value


def test_version_1_is_read_with_the_new_fields_empty_and_written_as_version_2():
    assert json.loads(VERSION_1.value)["schema_version"] == 1
    event = decode(VERSION_1)
    plain = INTERACTION.model_copy(update={"session_id": None, "tool_calls": (), "spans": ()})
    assert event == EVENTS["llm.interaction.recorded"].model_copy(update={"data": plain})
    again = encode(event)
    assert dict(again.headers)["ce_dataschema"] == b"urn:quillstream:llm.interaction.recorded:2"
    assert decode(again) == event
    assert versions_read("llm.interaction.recorded") == [1, 2]


def test_a_payload_kept_outside_the_log_is_read_in_any_version():
    assert read_payload(InteractionRecorded, VERSION_1.value) == decode(VERSION_1).data
    assert read_payload(InteractionRecorded, INTERACTION.model_dump_json()) == INTERACTION
    for broken in ("[]", "{", "{}", '{"type": "llm.interaction.recorded", "schema_version": 3}'):
        with pytest.raises(ValueError, match=r"column|type"):
            read_payload(InteractionRecorded, broken)


def test_records_that_version_1_wrote_are_read(settings: Settings):
    store = open_store(settings)
    event = decode(VERSION_1)
    assert isinstance(event.data, InteractionRecorded)
    assert store.interactions.put(event)
    with store.engine.begin() as connection:
        connection.execute(update(interactions).values(payload=VERSION_1.value.decode()))
    assert store.interactions.get(event.data.interaction_id) == event.data
    assert store.interactions.list() == [(event.time, event.data)]
    store.close()


def test_every_text_but_names_and_ids_is_masked():
    masked_paths, seen = set(), set()
    payload = mask_payload(InteractionRecorded.model_validate(with_mail(INTERACTION.model_dump(mode="json"))))
    for path, value in flat(payload.model_dump(mode="json")):
        if isinstance(value, str):
            seen.add(path)
            if MAIL not in value:
                masked_paths.add(path)
    assert len(seen) > 30
    assert seen - masked_paths <= IDS
    assert {"tool_calls.arguments", "tool_calls.result", "spans.name", "spans.attributes"} <= masked_paths


def test_a_step_has_times_with_their_offset():
    step = INTERACTION.spans[0].model_dump(mode="json")
    assert step["start"].endswith("Z")
    with pytest.raises(ValidationError, match="timezone"):
        TraceSpan.model_validate(step | {"start": "2025-03-04T05:06:07"})
