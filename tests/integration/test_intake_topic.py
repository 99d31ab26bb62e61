"""What strangers produce to `llm.intake` arrives masked in the topic of its type, and unmasked nowhere else."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from golden_events import FOLDER, INTERACTION, read_golden
from installation import wait_until

from infra.embedder import HashEmbedder
from infra.identity import new_id
from infra.kafka_broker import KafkaBroker
from infra.settings import LogSettings
from monitoring.consumer import Monitor
from monitoring.local_judge import LocalJudge
from store.opening import open_store
from streams.codec import UndecodableEvent, decode, encode
from streams.dead_letters import dead_letters, read_letter, replay
from streams.embedded import EmbeddedLog
from streams.events import (
    LLM_FEEDBACK,
    LLM_INTAKE,
    LLM_INTERACTIONS,
    TOPICS,
    Event,
    FeedbackGiven,
    InteractionRecorded,
    ReleaseChanged,
)
from streams.intake import GROUP, Intake
from streams.log import EventLog, StoredRecord, lag
from streams.masking import Masker
from streams.opening import open_log

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "intake" / "producer.py"
CANARY = "canary.person@example.org"


def interaction(name: str, **fields) -> InteractionRecorded:
    defaults = {"prompt": f"Write to {CANARY}", "response": "Done.", "finish_reason": "stop", "application": "stranger"}
    return InteractionRecorded(interaction_id=name, conversation_id=name, **(defaults | fields))


def produce(log: EventLog, *payloads) -> list[Event]:
    events = [Event(source="stranger", data=payload) for payload in payloads]
    log.append(LLM_INTAKE, [encode(event) for event in events])
    return events


def take_all(log: EventLog) -> int:
    return Intake(log, Masker()).run(threading.Event(), until=log.end_offsets(LLM_INTAKE))


def records(log: EventLog, topic: str) -> list[StoredRecord]:
    return [one for place in log.end_offsets(topic) for one in log.read(topic, place, 0, limit=100_000)]


def events(log: EventLog, topic: str, ids: set[str]) -> list[Event]:
    """The events of these interactions on a topic; the broker of the tests holds others too."""
    found = []
    for record in records(log, topic):
        try:
            event = decode(record)
        except UndecodableEvent:
            continue
        if getattr(event.data, "interaction_id", "") in ids:
            found.append(event)
    return found


class IntakeSuite:
    """Inherited by each log."""

    environment: dict[str, str]

    @pytest.fixture
    def log(self, settings) -> Iterator[EventLog]:
        log = open_log(self.configured(settings))
        log.ensure_topics(TOPICS)
        yield log
        log.close()

    def configured(self, settings):
        return settings

    def test_events_arrive_masked_with_their_id_and_time(self, log):
        name = new_id()
        asked, said = produce(
            log,
            interaction(name, tags={"from": CANARY}),
            FeedbackGiven(interaction_id=name, comment=f"ask {CANARY}", edited_response=f"To {CANARY}", reviewer="ann"),
        )
        assert take_all(log) >= 2
        [event] = events(log, LLM_INTERACTIONS, {name})
        assert (event.id, event.source, event.time) == (asked.id, "stranger", asked.time)
        assert (event.data.prompt, event.data.tags) == ("Write to [EMAIL]", {"from": "[EMAIL]"})
        [event] = events(log, LLM_FEEDBACK, {name})
        assert (event.id, event.time) == (said.id, said.time)
        assert (event.data.comment, event.data.edited_response) == ("ask [EMAIL]", "To [EMAIL]")
        assert lag(log, GROUP, LLM_INTAKE) == 0

    def test_turns_tool_calls_steps_errors_and_sessions_are_kept_as_they_were_also_of_older_versions(self, log):
        name = new_id()
        whole = INTERACTION.model_copy(update={"interaction_id": name, "conversation_id": name})
        assert whole.spans
        assert whole.tool_calls
        assert whole.session_id
        assert whole.error
        cut = interaction(f"{name}-cut", prompt="What?", response="Two", finish_reason="cancelled")
        produce(log, whole, cut)
        old = read_golden(FOLDER / "llm.interaction.recorded.1.event")
        log.append(LLM_INTAKE, [old])
        take_all(log)
        assert [one.data for one in events(log, LLM_INTERACTIONS, {name})] == [whole]
        assert [one.data for one in events(log, LLM_INTERACTIONS, {f"{name}-cut"})] == [cut]
        lifted = decode(old)
        assert lifted in events(log, LLM_INTERACTIONS, {lifted.data.interaction_id})

    def test_what_is_no_event_for_it_lies_unmasked_in_its_dead_letters_and_nowhere_else(self, log, caplog):
        caplog.set_level(logging.DEBUG)
        name = new_id()
        good = encode(Event(data=interaction(name)))
        promoted = ReleaseChanged(channel="c", release_id="r", action="promoted", reason="", actor="a")
        log.append(
            LLM_INTAKE,
            [
                replace(good, value=f"no JSON: {CANARY}".encode()),
                replace(good, value=json.dumps({**json.loads(good.value), CANARY: 1}).encode()),
                encode(Event(data=promoted)),
                good,
            ],
        )
        before = {letter.id for letter in dead_letters(log, LLM_INTAKE)}
        take_all(log)
        letters = [letter for letter in dead_letters(log, LLM_INTAKE) if letter.id not in before]
        reasons = sorted(letter.error for letter in letters)
        assert len(reasons) == 3
        assert "does not take this event" in reasons[0]
        assert len(events(log, LLM_INTERACTIONS, {name})) == 1
        assert any(CANARY.encode() in read_letter(log, letter).value for letter in letters)  # the search would see it
        looked = 0
        for topic in (*TOPICS, *(f"{topic}.dlq" for topic in TOPICS)):
            if not topic.startswith(LLM_INTAKE):
                looked += len(found := records(log, topic))
                assert not [one for one in found if CANARY in f"{one.key}{one.headers}{one.value!r}"]
        assert looked >= 1
        assert CANARY not in caplog.text
        assert len([line for line in caplog.messages if "goes to the dead letters" in line]) == 3

    def test_what_cannot_be_masked_goes_no_further_until_it_is_sent_again(self, log):
        class Broken(Masker):
            def mask(self, text: str):
                raise ZeroDivisionError

        name = new_id()
        [event] = produce(log, interaction(name))
        Intake(log, Broken()).run(threading.Event(), until=log.end_offsets(LLM_INTAKE))
        assert events(log, LLM_INTERACTIONS, {name}) == []
        letter = dead_letters(log, LLM_INTAKE)[-1]
        assert letter.error.startswith("ZeroDivisionError")
        replay(log, letter)
        take_all(log)
        [arrived] = events(log, LLM_INTERACTIONS, {name})
        assert (arrived.id, arrived.data.prompt) == (event.id, "Write to [EMAIL]")

    def test_what_arrives_twice_is_stored_once_and_feedback_reaches_the_store(self, log, settings):
        name = new_id()
        asked = Event(data=interaction(name))
        log.append(LLM_INTAKE, [encode(asked), encode(asked)])
        produce(log, FeedbackGiven(interaction_id=name, ratings={"relevance": 2}, comment=f"not {CANARY}"))
        take_all(log)
        assert len(events(log, LLM_INTERACTIONS, {name})) == 2
        store = open_store(settings)
        embedder = HashEmbedder()
        monitor = Monitor(log, store, local=LocalJudge(embedder), llm=None, sample=0, embedder=embedder, reference=None)
        monitor.run_until({topic: log.end_offsets(topic) for topic in (LLM_INTERACTIONS, LLM_FEEDBACK)}, timeout=60)
        assert len(store.interactions.list(ids=[name])) == 1
        [given] = store.interactions.feedback([name])
        assert (given.ratings, given.comment) == ({"relevance": 2}, "not [EMAIL]")
        store.close()

    def test_a_member_killed_in_the_middle_loses_and_doubles_nothing(self, log, tmp_path: Path):
        ids = {new_id() for _ in range(1000)}
        produce(log, *(interaction(name) for name in ids))
        script = textwrap.dedent("""
            import threading
            from infra.settings import load_settings
            from streams import intake
            from streams.masking import Masker
            from streams.opening import open_log
            intake.BATCH = 10
            intake.Intake(open_log(load_settings()), Masker()).run(threading.Event())
        """)
        with subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, env=self.environment) as child:
            wait_until(lambda: events(log, LLM_INTERACTIONS, ids), 30)
            child.send_signal(signal.SIGKILL)
        assert 0 < len(events(log, LLM_INTERACTIONS, ids)) < len(ids)
        take_all(log)
        assert sorted(one.data.interaction_id for one in events(log, LLM_INTERACTIONS, ids)) == sorted(ids)


class TestEmbedded(IntakeSuite):
    """The log of one machine."""

    @pytest.fixture(autouse=True)
    def here(self, settings) -> None:
        from infra.settings import child_environment

        self.environment = child_environment(QUILL_HOME=str(settings.home))

    def test_the_log_is_embedded(self, log):
        assert isinstance(log._inner, EmbeddedLog)


@pytest.mark.kafka
class TestKafka(IntakeSuite):
    """A real broker."""

    @pytest.fixture(autouse=True)
    def here(self, settings, kafka_broker: KafkaBroker) -> None:
        from infra.settings import child_environment

        self.address = kafka_broker.address
        self.environment = child_environment(
            QUILL_HOME=str(settings.home),
            QUILL_LOG_BACKEND="kafka",
            QUILL_LOG_BOOTSTRAP_SERVERS=self.address,
        )

    def configured(self, settings):
        return settings.model_copy(update={"log": LogSettings(backend="kafka", bootstrap_servers=self.address)})

    def test_the_example_of_a_producer_arrives_masked(self, log):
        run = subprocess.run(
            [sys.executable, EXAMPLE, self.address], capture_output=True, text=True, timeout=120, check=False
        )
        assert run.returncode == 0, run.stderr
        name = run.stdout.split()[-1]
        take_all(log)
        [event] = events(log, LLM_INTERACTIONS, {name})
        assert (event.source, event.data.prompt) == ("digest", "Summarise this mail from [EMAIL].")
        assert event.time is not None
        [event] = events(log, LLM_FEEDBACK, {name})
        assert (event.data.ratings, event.data.comment) == ({"relevance": 5}, "Send it to [EMAIL].")
