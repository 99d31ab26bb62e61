"""Records that lie in logs already: the same members are written today, and they are still read."""

from __future__ import annotations

import json

import pytest
from golden_events import EVENTS, FOLDER, golden_file, read_golden

from streams.codec import VERSIONS, decode, encode
from streams.events import MODELS


@pytest.mark.parametrize("name", sorted(MODELS))
def test_an_event_is_written_as_in_its_file_and_read_from_it(name: str):
    golden = read_golden(golden_file(name, VERSIONS[name]))
    made = encode(EVENTS[name])
    assert (made.key, made.headers) == (golden.key, golden.headers)
    # The order of an object's members means nothing in JSON; which they are, and what each holds, does.
    assert json.loads(made.value) == json.loads(golden.value)
    assert decode(golden) == EVENTS[name]


def test_there_is_an_event_of_every_type_and_it_sets_every_field():
    assert set(EVENTS) == set(MODELS) == set(VERSIONS)
    assert len(EVENTS) == 7
    unset = [
        f"{name}.{field}"
        for name, event in EVENTS.items()
        for field, value in event.data
        if field not in {"type", "schema_version"} and value in (None, "", (), {})
    ]
    assert unset == []


def test_every_file_is_read():
    files = sorted(FOLDER.iterdir())
    assert {golden_file(*pair) for pair in VERSIONS.items()} <= set(files)
    for file in files:
        name = file.name.rsplit(".", 2)[0]
        assert decode(read_golden(file)).data.type == name
