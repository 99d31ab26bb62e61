"""The published documents are those of the models, they hold together, and real events meet them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from golden_events import EVENTS, FOLDER, read_golden
from jsonschema import Draft7Validator

from streams.codec import VERSIONS, versions_read
from streams.contract import ASYNCAPI_FILE, CARRIES, asyncapi, documents, main, payload_schema, schema_file
from streams.events import CONTENT_DOCUMENTS, INTAKE_TYPES, LLM_INTAKE, MODELS, TOPICS
from streams.frames import pack
from streams.large_records import Claims
from streams.log import MAX_RECORD_BYTES, Record

DOCUMENTS = Path(__file__).parents[3] / "docs" / "contract"
GOLDEN = sorted(FOLDER.iterdir())


def validator(file: str) -> Draft7Validator:
    return Draft7Validator(json.loads((DOCUMENTS / file).read_text()), format_checker=Draft7Validator.FORMAT_CHECKER)


def references(tree: Any) -> Iterator[str]:
    if isinstance(tree, dict):
        yield from (value for name, value in tree.items() if name == "$ref")
    for below in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from references(below)


def look_up(tree: Any, pointer: str) -> Any:
    for part in pointer.removeprefix("#/").split("/"):
        tree = tree[part]
    return tree


def test_the_committed_documents_are_what_the_models_render(tmp_path: Path):
    assert main([str(tmp_path)]) == 0
    rendered = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert len(rendered) == len(MODELS) + 1
    committed = {name: (DOCUMENTS / name).read_text() for name in rendered}
    assert committed == rendered, "render again: python -m streams.contract docs/contract"


def test_nothing_else_lies_there_but_older_versions():
    others = {file.name for file in DOCUMENTS.glob("*.json")} - set(documents())
    older = {schema_file(name, number) for name in VERSIONS for number in versions_read(name)[:-1]}
    assert others == older
    assert len(older) == 1


def test_the_command_wants_a_folder(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 2
    assert "FOLDER" in capsys.readouterr().err


@pytest.mark.parametrize("file", sorted(each.name for each in DOCUMENTS.glob("*.schema.json")))
def test_each_schema_is_one_of_draft_07_with_the_id_that_headers_name(file: str):
    schema = json.loads((DOCUMENTS / file).read_text())
    Draft7Validator.check_schema(schema)
    name, version = file.removesuffix(".schema.json").rsplit(".", 1)
    assert schema["$id"] == f"urn:quillstream:{name}:{version}"
    assert schema["properties"]["schema_version"]["const"] == int(version)
    for reference in references(schema):
        assert look_up(schema, reference)["type"] == "object"


@pytest.mark.parametrize("file", GOLDEN, ids=lambda file: file.stem)
def test_real_events_meet_the_schema_that_their_header_names(file: Path):
    record = read_golden(file)
    check = validator(f"{file.stem}.schema.json")
    value = json.loads(record.value)
    assert check.schema["$id"].encode() == dict(record.headers)["ce_dataschema"]
    check.validate(value)
    for broken in ({**value, "extra": 1}, {**value, "type": "x"}, {k: v for k, v in value.items() if k != "type"}):
        assert not check.is_valid(broken)


def test_the_schemas_refuse_what_the_models_refuse():
    check = Draft7Validator(payload_schema("llm.evaluation.recorded"))
    good = EVENTS["llm.evaluation.recorded"].data.model_dump(mode="json")
    verdict, unscored = good["scores"]
    assert check.is_valid(good)
    for scores in ([{**verdict, "score": 6}], [{**verdict, "kind": "unscored"}], [{**unscored, "kind": "other"}]):
        assert not check.is_valid(good | {"scores": scores})
    assert not check.is_valid(good | {"scores": [{k: v for k, v in verdict.items() if k != "kind"}]})


def test_every_reference_of_the_asyncapi_document_leads_somewhere():
    document = json.loads((DOCUMENTS / ASYNCAPI_FILE).read_text())
    found = list(references(document))
    assert len(found) > 40
    for reference in found:
        if reference.startswith("#"):
            assert look_up(document, reference)
        else:
            assert (DOCUMENTS / reference).is_file()


def test_the_asyncapi_document_has_every_topic_with_its_dead_letters_and_every_message_once():
    document = asyncapi()
    assert document["asyncapi"] == "3.0.0"
    assert set(CARRIES) == set(TOPICS)
    assert set(document["channels"]) == {*TOPICS, *(f"{topic}.dlq" for topic in TOPICS)}
    carried = [name for topic in TOPICS if topic != LLM_INTAKE for name in document["channels"][topic]["messages"]]
    forms = {"frame": 2, "claim": 1}
    assert {form: carried.count(form) for form in forms} == forms
    carried = [name for name in carried if name not in forms]
    assert sorted(carried) == sorted(f"{name}.{number}" for name in VERSIONS for number in versions_read(name))
    sent = document["operations"]["send.llm.interactions"]["messages"]
    assert [each["$ref"].rsplit("/", 1)[1] for each in sent] == ["llm.interaction.recorded.2"]
    for name, channel in document["channels"].items():
        assert channel["address"] == channel["bindings"]["kafka"]["topic"] == name
    for operation in document["operations"].values():
        place = operation["channel"]["$ref"]
        assert {each["$ref"].rsplit("/messages/", 1)[0] for each in operation["messages"]} == {place}


def test_strangers_may_send_interactions_and_feedback_to_the_intake_which_keeps_them_for_hours():
    document = asyncapi()
    taken = [f"{name}.{number}" for name in INTAKE_TYPES for number in versions_read(name)]
    assert list(document["channels"][LLM_INTAKE]["messages"]) == taken
    for topic in (LLM_INTAKE, f"{LLM_INTAKE}.dlq"):
        channel = document["channels"][topic]
        assert 0 < channel["bindings"]["kafka"]["topicConfiguration"]["retention.ms"] <= 24 * 3_600_000
        assert "estricted" in channel["description"]


def test_the_headers_of_real_events_meet_the_asyncapi_document():
    document = asyncapi()
    for file in GOLDEN:
        message = document["components"]["messages"][file.stem]
        headers = {name: text.decode() for name, text in read_golden(file).headers}
        Draft7Validator(message["headers"] | {"components": document["components"]}).validate(headers)
        wrong = Draft7Validator(message["headers"] | {"components": document["components"]})
        assert not wrong.is_valid(headers | {"ce_type": "other"})
        assert not wrong.is_valid(headers | {"ce_specversion": "0.3"})
    assert len(GOLDEN) == len(document["components"]["messages"]) - 4


def test_frames_and_claims_meet_the_asyncapi_document(tmp_path: Path):
    document = asyncapi()
    record = read_golden(GOLDEN[0])
    large = Record("k", bytes(MAX_RECORD_BYTES), record.headers)
    for form, made in {
        "frame": pack([record, record]),
        "claim": Claims(tmp_path).put(CONTENT_DOCUMENTS, large),
    }.items():
        message = document["components"]["messages"][form]
        headers = {name: text.decode() for name, text in reversed(made.headers)}
        Draft7Validator(message["headers"] | {"components": document["components"]}).validate(headers)
        if form == "claim":
            Draft7Validator(message["payload"]["schema"]).validate(json.loads(made.value))
        other = Draft7Validator(message["headers"] | {"components": document["components"]})
        assert not other.is_valid(headers | {"content-type": "application/json"})
    assert "claim" in document["channels"]["content.documents.dlq"]["messages"]
    assert "claim" not in document["channels"]["llm.intake.dlq"]["messages"]
