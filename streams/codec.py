"""Events as log records: CloudEvents 1.0, Kafka protocol binding, binary content mode.

The value is the payload's JSON; the attributes travel as headers `ce_…`, so any CloudEvents reader understands them
without ours. `dataschema` carries the payload's version, which also stands in the payload as `schema_version`. Events
of older versions are read as if they had been written today: one step per version lifts them to the newest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn, TypeVar

from pydantic import TypeAdapter, ValidationError

from infra.errors import InputError
from infra.identity import Value
from streams.events import MODELS, Event, Payload, key_of
from streams.large_records import is_claim
from streams.log import Record, StoredRecord

CONTENT_TYPE = "application/json"
MAX_DEPTH = 64
"""Levels of nesting; pydantic gives up at 255, and no payload of ours has more than 6 outside `metadata`."""

_PAYLOAD: TypeAdapter[Payload] = TypeAdapter(Payload)
VERSIONS: dict[str, int] = {name: model.model_fields["schema_version"].default for name, model in MODELS.items()}
"""Type of a payload to the version that is written."""
# Escaped NUL and lone surrogates are valid JSON, but PostgreSQL and UTF-8 take neither.
_SUSPECT = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")
_FREE = frozenset(name for name, model in MODELS.items() if "Any" in str(model.model_fields.values()))
"""Types with fields that hold any JSON; all others nest no deeper than their models do."""

_HEAD = re.compile(rb'\{"type":"([a-z.]+)","schema_version":([0-9]{1,9}),')

P = TypeVar("P", bound=Value)


class UndecodableEvent(InputError):
    """A record that is no event this installation can read."""


def dataschema(name: str, version: int) -> str:
    """The CloudEvents `dataschema` of a version of a payload type, which is the id of its JSON Schema."""
    return f"urn:quillstream:{name}:{version}"


_SPECVERSION = ("ce_specversion", b"1.0")
_CONTENT_TYPE = ("content-type", CONTENT_TYPE.encode())
_FIXED = {
    name: (("ce_type", name.encode()), ("ce_dataschema", dataschema(name, version).encode()))
    for name, version in VERSIONS.items()
}
"""Type of a payload to the headers that are the same for all its events."""


def encode(event: Event) -> Record:
    """The record of an event. Raises `InputError` for NaN, NUL and lone surrogates: no store takes them."""
    return encode_payload(event.data, event.id, event.source, event.time)


def encode_payload(payload: Payload, event_id: str, source: str, time: datetime) -> Record:
    """As `encode`, of an event whose attributes are known to be right: `time` has its offset."""
    name = payload.type
    try:
        # The model's own serializer: a tenth of the time of `json.dumps`, and lone surrogates raise.
        value = payload.__pydantic_serializer__.to_json(payload)
        key = key_of(payload)
        if name in _FREE or b"\\u0000" in value or b"NaN" in value or b"Infinity" in value:
            _check(json.loads(value, parse_constant=_no_constant), texts=_SUSPECT.search(value) is not None)
    except (ValueError, RecursionError) as error:
        raise InputError(f"a {name} event cannot be encoded", seen=event_id, rule=str(error)) from error
    kind, schema = _FIXED[name]
    headers = (
        _SPECVERSION,
        ("ce_id", event_id.encode()),
        ("ce_source", source.encode()),
        kind,
        ("ce_time", time.isoformat().encode()),
        ("ce_partitionkey", key.encode()),
        schema,
        _CONTENT_TYPE,
    )
    return Record(key, value, headers)


def decode(record: StoredRecord | Record) -> Event:
    """The event of a record. A missing `ce_time` is the time the log took it. Raises `UndecodableEvent`."""
    attributes = _attributes(record)
    payload = _payload(record.value)
    if attributes["ce_type"] != payload.type:
        _refuse("header and payload name different types", f"{attributes['ce_type']} and {payload.type}")
    time: Any = attributes.get("ce_time") or (record.time if isinstance(record, StoredRecord) else None)
    try:
        if isinstance(time, str):
            time = datetime.fromisoformat(time)
        if time is None or time.tzinfo is None:
            _refuse("ce_time is not a time with its offset", time)
        return Event(id=attributes["ce_id"], source=attributes["ce_source"], time=time, data=payload)
    except ValueError as error:
        _refuse("an attribute is not valid", str(error).splitlines()[0])


def read_payload(model: type[P], text: str | bytes) -> P:
    """A payload that was kept as JSON outside the log, in any version. Raises `ValueError` when it is none."""
    tree = json.loads(text)
    return model.model_validate(_newest(tree) if isinstance(tree, dict) else tree)


def versions_read(name: str) -> list[int]:
    """Versions of a payload type that are read, oldest first; the last is the one that is written."""
    return sorted([version for each, version in _UPCASTS if each == name] + [VERSIONS[name]])


def _attributes(record: Record) -> dict[str, str]:
    try:
        attributes = {name.lower(): value.decode() for name, value in reversed(record.headers)}
    except UnicodeDecodeError:
        _refuse("a header is not UTF-8", record.headers)
    for name in ("ce_id", "ce_source", "ce_type"):
        if not attributes.get(name):
            _refuse(f"the header {name} is missing", sorted(attributes))
    if is_claim(record):
        _refuse(
            "its value is too long for a record, and the artifact that holds it is not here",
            record.value.decode("utf-8", "replace"),
        )
    if attributes.get("ce_specversion") != "1.0":
        _refuse("the CloudEvents version is not 1.0", attributes.get("ce_specversion"))
    return attributes


def _payload(value: bytes) -> Payload:
    """The payload of a value. What is in order is read in one go; the rest step by step, to say what is wrong."""
    return _payload_in_order(value) or _payload_step_by_step(value)


def _payload_in_order(value: bytes) -> Payload | None:
    """A payload as this version writes it; None for whatever needs a closer look, at three times the cost."""
    # The head must say type and version: a default would fill a missing version in, and `true` would pass for 1.
    head = _HEAD.match(value)
    name = head[1].decode() if head else ""
    if head is None or VERSIONS.get(name) != int(head[2]) or b"\\u0000" in value:
        return None
    try:
        payload = _PAYLOAD.validate_json(value)
    except ValidationError as error:
        if error.errors(include_url=False, include_input=False)[0]["type"] == "json_invalid":
            return None
        _refuse_broken(name, error)
    # Free-form metadata may hold what no model forbids: NaN, and nesting without end.
    return None if name in _FREE else payload


def _payload_step_by_step(value: bytes) -> Payload:
    try:
        data = json.loads(value, parse_constant=_no_constant)
        _check(data, texts=_SUSPECT.search(value) is not None)
    except RecursionError:
        _refuse(f"the JSON is nested deeper than {MAX_DEPTH} levels")
    except ValueError as error:
        _refuse("the value is not JSON that can be stored", str(error))
    if not isinstance(data, dict):
        _refuse("the value is not a JSON object", type(data).__name__)
    name, version = data.get("type"), data.get("schema_version")
    if not isinstance(name, str) or name not in VERSIONS:
        _refuse("unknown event type", name)
    if type(version) is not int or version not in versions_read(name):
        _refuse(f"unknown schema_version of {name}", version, f"this installation reads {versions_read(name)}")
    try:
        return _PAYLOAD.validate_python(_newest(data))
    except ValidationError as error:
        _refuse_broken(name, error)


def _newest(data: dict[str, Any]) -> dict[str, Any]:
    """The tree of a payload in the version that is written. What no step is known for is left as it is."""
    while upcast := _UPCASTS.get((data.get("type", ""), data.get("schema_version", 0))):
        data = upcast(data)
    return data


def _interaction_2(data: dict[str, Any]) -> dict[str, Any]:
    # Version 2 added tool_calls, spans and session_id, whose defaults say that there were none.
    return {**data, "schema_version": 2}


_UPCASTS: dict[tuple[str, int], Callable[[dict[str, Any]], dict[str, Any]]] = {
    ("llm.interaction.recorded", 1): _interaction_2,
}
"""Type and version to the step that lifts its tree to the next version."""


def _check(data: Any, *, texts: bool) -> None:
    """Raise `ValueError` for what is nested too deep and, with `texts`, for strings that cannot be stored."""
    level, depth = [data], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
                below += item if texts else ()
            elif isinstance(item, list):
                below += item
            elif texts and isinstance(item, str):
                _check_text(item)
        level = below


def _check_text(text: str) -> None:
    if "\0" in text:
        raise ValueError("a text holds a NUL character")
    text.encode()


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _refuse_broken(name: str, error: ValidationError) -> NoReturn:
    first = error.errors(include_url=False, include_input=False)[0]
    _refuse(f"a {name} event breaks its contract", ".".join(map(str, first["loc"])), first["msg"])


def _refuse(what: str, seen: object = None, rule: str = "") -> NoReturn:
    raise UndecodableEvent(what, seen=seen, rule=rule)
