"""The contract as documents for other languages: a JSON Schema of each payload, and one AsyncAPI 3.0 document.

`python -m streams.contract docs/contract` renders them from the models of `events.py`; a test compares the result with
what is committed. The schemas keep to draft 07, which is what AsyncAPI tools read (AsyncAPI 3.0.0, Multi Format Schema
Object). The schema of a version that is read but no longer written stays in the folder as it was rendered last.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from inspect import getdoc
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from streams import frames, large_records
from streams.codec import CONTENT_TYPE, VERSIONS, dataschema, versions_read
from streams.dead_letters import dead_letter_topic
from streams.events import (
    COMPACTED,
    CONTENT_DOCUMENTS,
    INTAKE_TYPES,
    KEY_BY_TOPIC,
    LLM_EVALUATIONS,
    LLM_FEEDBACK,
    LLM_INTAKE,
    LLM_INTERACTIONS,
    MODELS,
    OPS_ALERTS,
    OPS_RELEASES,
    TOPIC_BY_TYPE,
    TOPICS,
    UNMASKED,
    UNMASKED_HOURS,
)
from streams.frames import COUNT_HEADER, FRAMABLE, SLOTS
from streams.large_records import takes_claims

VERSION = "2.2.0"
"""Of the contract as a whole; the first number rises with the `schema_version` of any payload."""
ASYNCAPI_FILE = "asyncapi.json"
CARRIES = {
    CONTENT_DOCUMENTS: "Upsert or tombstone of one source document.",
    LLM_INTAKE: "What strangers send, not masked yet; it goes on, masked, to the topic of its type. Restricted.",
    LLM_INTERACTIONS: "One prompt and its response, masked, with what answered.",
    LLM_EVALUATIONS: "What one judge said of one interaction: verdicts and what it could not judge.",
    LLM_FEEDBACK: "What a person said of one interaction: ratings, an edit, a preference.",
    OPS_ALERTS: "Alerts opened and resolved, with their evidence.",
    OPS_RELEASES: "Which release a channel serves from now on, and why.",
}
"""Topic to what travels on it."""

_DRAFT_07 = "http://json-schema.org/draft-07/schema#"
_KAFKA = {"bindingVersion": "0.5.0"}
_TEXT = {"type": "string"}
_CLOUDEVENTS: dict[str, Any] = {
    "type": "object",
    "required": ["ce_specversion", "ce_id", "ce_source", "ce_type"],
    "properties": {
        "ce_specversion": {"const": "1.0"},
        "ce_id": _TEXT | {"minLength": 1, "description": "Unique; effects are idempotent by it."},
        "ce_source": _TEXT | {"minLength": 1, "description": "Process or application that speaks."},
        "ce_type": _TEXT | {"description": "Type of the payload; the same stands in the value."},
        "ce_time": _TEXT
        | {"format": "date-time", "description": "When it happened; without it, when the log took it."},
        "ce_partitionkey": _TEXT | {"description": "The record's key."},
        "ce_dataschema": _TEXT | {"format": "uri", "description": "Id of the JSON Schema of the value."},
        "content-type": {"const": CONTENT_TYPE},
    },
}
_DEAD_LETTER: dict[str, Any] = {
    "type": "object",
    "description": "The headers as they came, then these.",
    "required": ["dlq_error", "dlq_attempts", "dlq_topic", "dlq_partition", "dlq_offset"],
    "properties": {
        "dlq_error": _TEXT | {"description": "Why it could not be handled."},
        "dlq_attempts": _TEXT | {"pattern": "^[0-9]+$", "description": "How often it was tried."},
        "dlq_topic": _TEXT | {"description": "Topic it came on."},
        "dlq_partition": _TEXT | {"pattern": "^[0-9]+$", "description": "Partition it came on."},
        "dlq_offset": _TEXT | {"pattern": "^[0-9]+$", "description": "Its offset there."},
    },
}
_REPLAYED: dict[str, Any] = {
    "type": "object",
    "required": ["dlq_replayed", "dlq_replayed_to"],
    "properties": {
        "dlq_replayed": _TEXT | {"pattern": "^[0-9]+/[0-9]+$", "description": "Partition and offset of the letter."},
        "dlq_replayed_to": _TEXT | {"pattern": "^[0-9]+/[0-9]+$", "description": "Where it lies in its topic now."},
    },
}
_FRAME: dict[str, Any] = {
    "type": "object",
    "required": ["content-type", COUNT_HEADER],
    "properties": {
        "content-type": {"const": frames.CONTENT_TYPE.decode()},
        COUNT_HEADER: _TEXT | {"pattern": "^[0-9]+$", "description": f"How many events it holds, 1 to {SLOTS}."},
    },
}
_CLAIM: dict[str, Any] = {
    "type": "object",
    "description": "This first; after it the headers of the record whose value is stored, a content type among them.",
    "required": ["content-type"],
    "properties": {"content-type": {"const": large_records.CONTENT_TYPE.decode()}},
}
_CLAIMED: dict[str, Any] = {
    "type": "object",
    "required": ["artifact", "bytes"],
    "properties": {
        "artifact": _TEXT | {"pattern": "^sha256:[0-9a-f]{64}$", "description": "Hash of the value."},
        "bytes": {"type": "integer", "description": "Its length."},
    },
}
_DEAD = ("dead_letter", "dead_letter_replayed")


class _Draft07(GenerateJsonSchema):
    """Pydantic's schemas without `discriminator`, which AsyncAPI reads as a name and OpenAPI as an object."""

    schema_dialect = _DRAFT_07

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        """As pydantic has it; each branch holds the constant that tells it apart."""
        rendered = super().tagged_union_schema(schema)
        rendered.pop("discriminator", None)
        return rendered


def payload_schema(name: str) -> dict[str, Any]:
    """The JSON Schema (draft 07) of the version of a payload type that is written."""
    rendered = MODELS[name].model_json_schema(ref_template="#/definitions/{model}", schema_generator=_Draft07)
    definitions = rendered.pop("$defs", {})
    for part in (rendered, *definitions.values()):
        _require_constants(part)
    head = {"$schema": _DRAFT_07, "$id": dataschema(name, VERSIONS[name])}
    return head | rendered | ({"definitions": definitions} if definitions else {})


def asyncapi() -> dict[str, Any]:
    """The AsyncAPI 3.0 document: topics as channels, payload types as messages in CloudEvents binary mode."""
    channels: dict[str, Any] = {topic: _channel(topic) for topic in TOPICS}
    dead = {dead_letter_topic(topic): _dead_letters(topic) for topic in TOPICS}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Quillstream events",
            "version": VERSION,
            "description": "Facts about documents, generated texts, their judgement and releases, as CloudEvents 1.0"
            " in Kafka's binary content mode: attributes in headers, the payload's JSON as the value.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": CONTENT_TYPE,
        "channels": channels | dead,
        "operations": {name: one for topic, channel in channels.items() for name, one in _operations(topic, channel)},
        "components": {
            "messages": {
                f"{name}.{version}": _message(name, version) for name in MODELS for version in versions_read(name)
            }
            | {
                "dead_letter": _dead_letter(),
                "dead_letter_replayed": _replayed(),
                "frame": _frame(),
                "claim": _claim(),
            },
            "schemas": {
                "cloudevents": _CLOUDEVENTS,
                "dead_letter": _DEAD_LETTER,
                "dead_letter_replayed": _REPLAYED,
                "frame": _FRAME,
                "claim": _CLAIM,
            },
        },
    }


def documents() -> dict[str, str]:
    """File name to text of every document."""
    trees = {schema_file(name, version): payload_schema(name) for name, version in VERSIONS.items()}
    trees[ASYNCAPI_FILE] = asyncapi()
    return {name: json.dumps(tree, indent=2, ensure_ascii=False) + "\n" for name, tree in trees.items()}


def schema_file(name: str, version: int) -> str:
    """The file of a payload's JSON Schema."""
    return f"{name}.{version}.schema.json"


def main(arguments: Sequence[str]) -> int:
    """Write the documents into the folder that the arguments name."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        sys.stderr.write("usage: python -m streams.contract FOLDER\n")
        return 2
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    written = documents()
    for name, text in written.items():
        (folder / name).write_text(text, encoding="utf-8")
    sys.stdout.write(f"{len(written)} documents in {folder}\n")
    return 0


def _require_constants(schema: dict[str, Any]) -> None:
    # Pydantic fills `type`, `schema_version` and `kind` in, but on the wire they say how to read the rest.
    constant = [name for name, field in schema.get("properties", {}).items() if "const" in field]
    required = schema.get("required", [])
    if constant:
        schema["required"] = [*constant, *(name for name in required if name not in constant)]


def _channel(topic: str) -> dict[str, Any]:
    own = [name for name, its_topic in TOPIC_BY_TYPE.items() if its_topic == topic]
    types = INTAKE_TYPES if topic == LLM_INTAKE else own
    names = [f"{name}.{version}" for name in types for version in versions_read(name)]
    bindings: dict[str, Any] = {"topic": topic, **_KAFKA}
    if topic in COMPACTED:
        bindings["topicConfiguration"] = {"cleanup.policy": ["compact"], "retention.ms": -1}
    if topic in UNMASKED:
        bindings["topicConfiguration"] = {"retention.ms": _milliseconds(UNMASKED_HOURS)}
    key = "as the topic that it goes on to" if topic == LLM_INTAKE else f"by `{KEY_BY_TOPIC[topic]}`"
    return {
        "address": topic,
        "description": f"{CARRIES[topic]} Keyed {key}.",
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in [*names, *_other_forms(topic)]},
        "bindings": {"kafka": bindings},
    }


def _dead_letters(topic: str) -> dict[str, Any]:
    name = dead_letter_topic(topic)
    kept = _milliseconds(UNMASKED_HOURS) if name in UNMASKED else -1
    return {
        "address": name,
        "description": f"Records of `{topic}` that could not be handled, as they came."
        + (" Restricted as the topic is." if name in UNMASKED else ""),
        "messages": {each: {"$ref": f"#/components/messages/{each}"} for each in [*_DEAD, *_other_forms(name)]},
        "bindings": {"kafka": {"topic": name, "topicConfiguration": {"retention.ms": kept}, **_KAFKA}},
    }


def _other_forms(topic: str) -> list[str]:
    """The messages that stand for events on a topic, beside one record each."""
    return ["frame"] * (topic in FRAMABLE) + ["claim"] * takes_claims(topic)


def _milliseconds(hours: int) -> int:
    return hours * 3_600_000


def _operations(topic: str, channel: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    place = f"#/channels/{topic}"
    read = list(channel["messages"])
    written = [name for name in read if name in {f"{each}.{version}" for each, version in VERSIONS.items()}]
    return [
        (
            f"{action}.{topic}",
            {
                "action": action,
                "channel": {"$ref": place},
                "messages": [{"$ref": f"{place}/messages/{name}"} for name in names],
            },
        )
        for action, names in (("send", written), ("receive", read))
    ]


def _message(name: str, version: int) -> dict[str, Any]:
    key = MODELS[name].model_fields[KEY_BY_TOPIC[TOPIC_BY_TYPE[name]]]
    own = {"ce_type": {"const": name}, "ce_dataschema": {"const": dataschema(name, version)}}
    return {
        "name": name,
        "title": MODELS[name].__name__,
        "summary": getdoc(MODELS[name]),
        "contentType": CONTENT_TYPE,
        "headers": {"type": "object", "allOf": [{"$ref": "#/components/schemas/cloudevents"}, {"properties": own}]},
        "payload": {
            "schemaFormat": "application/schema+json;version=draft-07",
            "schema": {"$ref": f"./{schema_file(name, version)}"},
        },
        "bindings": {"kafka": {"key": _TEXT | {"description": key.description}, **_KAFKA}},
    }


def _dead_letter() -> dict[str, Any]:
    return {
        "name": "dead_letter",
        "title": "Dead letter",
        "summary": "A record that could not be handled: its bytes and headers as they came, and why.",
        "contentType": "application/octet-stream",
        "headers": {"$ref": "#/components/schemas/dead_letter"},
        "payload": {"description": "Any bytes."},
        "bindings": {"kafka": {"key": _TEXT | {"description": "As in the topic it came from."}, **_KAFKA}},
    }


def _replayed() -> dict[str, Any]:
    return {
        "name": "dead_letter_replayed",
        "title": "Dead letter replayed",
        "summary": "A dead letter of this topic was sent to its own topic again. The value is empty.",
        "headers": {"$ref": "#/components/schemas/dead_letter_replayed"},
        "bindings": {"kafka": {"key": _TEXT | {"description": "That of the letter."}, **_KAFKA}},
    }


def _frame() -> dict[str, Any]:
    return {
        "name": "frame",
        "title": "Frame",
        "summary": "Several events of one partition in one record, where the operator chose it (`log.frames`).",
        "description": getdoc(frames),
        "contentType": frames.CONTENT_TYPE.decode(),
        "headers": {"$ref": "#/components/schemas/frame"},
        "payload": {"description": "As described."},
        "bindings": {"kafka": {"key": {"type": "null", "description": "None."}, **_KAFKA}},
    }


def _claim() -> dict[str, Any]:
    return {
        "name": "claim",
        "title": "Claim",
        "summary": "A record whose value is too long to travel: the hash of the artifact that holds it.",
        "description": getdoc(large_records),
        "contentType": large_records.CONTENT_TYPE.decode(),
        "headers": {"$ref": "#/components/schemas/claim"},
        "payload": {"schemaFormat": "application/schema+json;version=draft-07", "schema": _CLAIMED},
        "bindings": {"kafka": {"key": _TEXT | {"description": "That of the record."}, **_KAFKA}},
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
