"""`quill dlq` as a person and as another program would call it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import typer
from jsonschema import Draft7Validator
from typer.testing import CliRunner

from infra.cli import main
from infra.errors import InputError, NotFound, QuillError
from streams.codec import encode
from streams.consumer import Consumer
from streams.contract import asyncapi
from streams.dead_letters import dead_letter_topic, dead_letters
from streams.dlq_commands import register
from streams.embedded import EmbeddedLog
from streams.events import LLM_FEEDBACK, LLM_INTERACTIONS, Event, FeedbackGiven
from streams.log import Record


class Quill:
    """The command line on one home."""

    def __init__(self) -> None:
        self.app = typer.Typer()
        register(self.app)

    def run(self, *arguments: str) -> str:
        """Standard output; a `QuillError` is raised."""
        result = CliRunner().invoke(self.app, ["dlq", *arguments], env={"COLUMNS": "250"})
        if isinstance(result.exception, QuillError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json"))


@pytest.fixture
def quill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Quill:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUILL_HOME", str(tmp_path / "home"))
    return Quill()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EmbeddedLog]:
    with closing(EmbeddedLog(tmp_path / "home" / "log.db")) as log:
        yield log


def refuse(event: Event, record: object) -> None:
    assert isinstance(event.data, FeedbackGiven)
    if event.data.comment == "poison":
        raise ValueError("[bold]never[/] \x1b[2J this")


def consume(log: EmbeddedLog) -> None:
    """Handle what lies on the topic of feedback; poison goes to the dead letters."""
    consumer = Consumer(log, "g", {LLM_FEEDBACK: refuse}, retries=1, backoff=0.001)
    consumer.run_until({LLM_FEEDBACK: log.end_offsets(LLM_FEEDBACK)}, 20)


def fill(log: EmbeddedLog) -> list[Record]:
    events = [Event(id=f"e{n}", data=FeedbackGiven(interaction_id=f"i{n}", comment=c)) for n, c in enumerate("ab")]
    poison = encode(Event(id="bad", data=FeedbackGiven(interaction_id="i", comment="poison")))
    raw = Record(key="raw", value=b"\xff\x1b[31m", headers=(("x", b"\x9b"),))
    log.append(LLM_FEEDBACK, [*map(encode, events), poison, raw])
    return [poison, raw]


def test_without_letters_the_list_is_empty(quill: Quill):
    assert quill.json("list") == []
    assert "none" in quill.run("list")
    assert quill.json("replay", LLM_FEEDBACK) == []


def test_letters_are_listed_with_what_a_program_needs(quill: Quill, log: EmbeddedLog):
    fill(log)
    consume(log)
    rows = {row["key"]: row for row in quill.json("list")}
    assert set(rows) == {"i", "raw"}
    assert rows["i"]["topic"] == LLM_FEEDBACK
    assert rows["i"]["error"].startswith("ValueError: [bold]never")
    assert (rows["i"]["attempts"], rows["raw"]["attempts"]) == (2, 1)
    assert rows["i"]["letter"] == f"{LLM_FEEDBACK}/{rows['i']['partition']}/{rows['i']['offset']}"
    assert {"time", "size", "origin_partition", "origin_offset", "replayed_at"} <= set(rows["i"])
    assert quill.json("list", LLM_INTERACTIONS) == []
    assert len(quill.json("list", LLM_FEEDBACK, LLM_INTERACTIONS)) == 2


def test_letters_of_any_topic_are_listed_by_its_name_or_theirs(quill: Quill, log: EmbeddedLog):
    log.append("jobs.done", [Record(key="k", value=b"no event")])
    assert quill.json("list", "jobs.done") == []
    consumer = Consumer(log, "g", {"jobs.done": lambda event, record: None})
    consumer.run_until({"jobs.done": log.end_offsets("jobs.done")}, 30)
    assert quill.json("list") == []
    (row,) = quill.json("list", "jobs.done")
    assert quill.json("list", "jobs.done.dlq") == [row]
    assert quill.json("list", LLM_FEEDBACK) == []
    with pytest.raises(NotFound, match=r"no such topic.*jobs\.doen"):
        quill.run("list", "jobs.doen")


def test_nothing_in_a_letter_steers_the_terminal(quill: Quill, log: EmbeddedLog):
    fill(log)
    consume(log)
    listed = quill.run("list")
    assert "\x1b" not in listed
    assert "[bold]never[/] \\x1b[2J this" in listed
    name = next(row["letter"] for row in quill.json("list") if row["key"] == "raw")
    shown = quill.run("show", name)
    assert "\x1b" not in shown
    assert "\\xff\\x1b[31m" in shown
    assert "x: \\x9b" in shown
    assert base64.b64decode(quill.json("show", name)["value_base64"]) == b"\xff\x1b[31m"


def test_show_prints_the_beginning_of_a_long_value_and_all_of_it_as_json(quill: Quill, log: EmbeddedLog):
    log.append(LLM_FEEDBACK, [Record(key="k", value=("ü" * 9000).encode())])
    consume(log)
    (row,) = quill.json("list")
    shown = quill.run("show", row["letter"])
    assert shown.count("ü") == 4000
    assert "(18000 bytes; --json prints all)" in shown
    whole = quill.json("show", row["letter"])
    assert whole["value"] == "ü" * 9000
    assert dict(whole["headers"])["dlq_error"] == whole["error"]


def test_a_letter_is_replayed_once_and_again_only_when_told(quill: Quill, log: EmbeddedLog):
    poison, _ = fill(log)
    consume(log)
    before = sum(log.end_offsets(LLM_FEEDBACK).values())
    name = next(row["letter"] for row in quill.json("list") if row["key"] == "i")
    (row,) = quill.json("replay", name)
    assert row["replayed"]
    topic, partition, offset = row["to"].split("/")
    (back,) = log.read(topic, int(partition), int(offset), limit=1)
    assert (back.key, back.value, back.headers) == (poison.key, poison.value, poison.headers)
    (row,) = quill.json("replay", name)
    assert (row["replayed"], row["to"]) == (False, None)
    assert row["before"]
    assert "once more with --again" in quill.run("replay", name)
    assert sum(log.end_offsets(LLM_FEEDBACK).values()) == before + 1
    assert [each["replayed"] for each in quill.json("replay", name, "--again")] == [True]
    assert "1 of 2 dead letters replayed" in quill.run("replay", LLM_FEEDBACK)
    assert "0 of 2 dead letters replayed" in quill.run("replay", LLM_FEEDBACK)
    assert sum(log.end_offsets(LLM_FEEDBACK).values()) == before + 3
    assert all(row["replayed_at"] for row in quill.json("list"))


def test_what_fails_again_becomes_a_letter_of_its_own(quill: Quill, log: EmbeddedLog):
    fill(log)
    consume(log)
    quill.run("replay", LLM_FEEDBACK)
    consume(log)
    rows = quill.json("list")
    assert [bool(row["replayed_at"]) for row in rows] == [True, True, False, False]
    quill.run("replay", LLM_FEEDBACK)
    consume(log)
    assert len(quill.json("list")) == 6


def test_errors_name_the_fix_and_exit_with_2(quill: Quill, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(InputError, match="TOPIC/PARTITION/OFFSET"):
        quill.run("show", LLM_FEEDBACK)
    with pytest.raises(NotFound, match="quill dlq list"):
        quill.run("replay", f"{LLM_FEEDBACK}/0/7")
    with pytest.raises(InputError, match="not a topic name"):
        quill.run("list", "no topic")
    with pytest.raises(SystemExit) as end:
        main(["dlq", "show", f"{LLM_FEEDBACK}/0/7"])
    assert end.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("quill: no such dead letter")
    assert "Traceback" not in printed


def test_letters_and_their_notes_meet_the_published_headers(quill: Quill, log: EmbeddedLog):
    fill(log)
    consume(log)
    quill.run("replay", *(letter.id for letter in dead_letters(log, LLM_FEEDBACK)))
    schemas = asyncapi()["components"]["schemas"]
    kinds = {"dead_letter": 0, "dead_letter_replayed": 0}
    topic = dead_letter_topic(LLM_FEEDBACK)
    for partition in log.end_offsets(topic):
        for record in log.read(topic, partition, 0):
            headers = {name: text.decode("utf-8", "replace") for name, text in record.headers}
            kind = "dead_letter_replayed" if "dlq_replayed" in headers else "dead_letter"
            Draft7Validator(schemas[kind]).validate(headers)
            kinds[kind] += 1
    assert kinds == {"dead_letter": 2, "dead_letter_replayed": 2}
