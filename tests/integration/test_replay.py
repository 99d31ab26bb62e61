"""A window of real traffic through another judge, another prompt: compared with what was, and nothing live moves."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from chat_upstream import ChatUpstream
from installation import Installation, wait_until
from sqlalchemy import select

from dagster_project.replay_report import compared
from dagster_project.replaying import Heard, Replayer, ReplayRequest, release_with, replay
from dagster_project.resources import Wiring
from infra.database import reading
from infra.embedder import HashEmbedder
from infra.errors import Conflict, InputError, NotFound, Unavailable
from infra.llm.chat import Message
from infra.llm.scripted import ScriptedChat
from monitoring.consumer import Monitor, state_folder
from monitoring.llm_judge import LlmJudge
from monitoring.local_judge import LocalJudge
from monitoring.opening import open_rubric
from retrieval.answer import GroundedAnswerer
from store.opening import Store
from store.releases import Release
from store.replays import Replay
from store.tables import metadata
from streams.codec import encode
from streams.events import (
    CRITERIA,
    EVALUATION_CHANNEL,
    LLM_FEEDBACK,
    LLM_INTERACTIONS,
    OPS_ALERTS,
    TOPICS,
    Event,
    FeedbackGiven,
    InteractionRecorded,
    Unscored,
)
from streams.log import EventLog, Record
from streams.masking import Masker
from streams.protocols import RetrievedChunk, SearchResult
from streams.replay import Window

CANARY = "canary.person@example.org"
START = datetime(2020, 1, 1, tzinfo=UTC)
WINDOW = Window(topic=LLM_INTERACTIONS, start=START, end=START + timedelta(days=36500))
REPLY = json.dumps({name: {"justification": f"Seen by {CANARY}.", "score": 2} for name in CRITERIA})
NAMES = [f"i{number}" for number in range(12)]


class OneChunk:
    """Finds the same for every question."""

    def search(self, question: str, *, limit: int = 8) -> SearchResult:
        text = "LoRA trains two small matrices beside a frozen one."
        chunk = RetrievedChunk(chunk_id="sha256:c", document_id="d", source="d.md", title="LoRA", text=text, score=1)
        return SearchResult(chunks=(chunk,), index_build="sha256:b", index_position={"0": 1})


def interaction(name: str, **fields) -> InteractionRecorded:
    defaults = {
        "prompt": f"What does LoRA train in {name}?",
        "response": f"Two matrices, {name}.",
        "finish_reason": "stop",
    }
    return InteractionRecorded(interaction_id=name, conversation_id=name, **(defaults | fields))


@pytest.fixture
def upstream() -> Iterator[ChatUpstream]:
    opened = ChatUpstream(said=REPLY)
    yield opened
    opened.close()


@pytest.fixture
def here(tmp_path: Path, upstream: ChatUpstream) -> Installation:
    return Installation(tmp_path, QUILL_JUDGE_ENDPOINT=upstream.url, QUILL_LLM_ENDPOINT=upstream.url)


@pytest.fixture
def wiring(here: Installation) -> Iterator[Wiring]:
    """An installation whose monitor has handled twelve answers, a refusal, one of our own, and a broken record."""
    opened = Wiring(here.settings)
    opened.embedder = HashEmbedder()
    opened.retriever = OneChunk()
    sent = [interaction(name, tags={"team": "docs"}) for name in NAMES]
    sent += [interaction("refused", response="", finish_reason="refused")]
    sent += [interaction("ours", channel=EVALUATION_CHANNEL), interaction("silent", prompt=" ")]
    opened.log.append(LLM_INTERACTIONS, [encode(Event(data=one)) for one in sent])
    opened.log.append(LLM_INTERACTIONS, [Record(key="k", value=b"no event")])
    judge = LocalJudge(opened.embedder)
    monitor = Monitor(
        opened.log, opened.store, local=judge, llm=None, sample=0, embedder=opened.embedder, reference=None
    )
    monitor.run_until({topic: opened.log.end_offsets(topic) for topic in (LLM_INTERACTIONS, LLM_FEEDBACK)}, 60)
    open_rubric(opened.store)
    release = Release(prompt=other_prompt(opened.store, "usual"), model="ok")
    opened.store.releases.put(release)
    opened.store.releases.promote("production", release.id, reason="test", actor="test")
    yield opened
    opened.close()


def other_prompt(store: Store, name: str, text: str = "{{ sources }}\n{{ question }}") -> str:
    return store.prompts.push(name, (Message(role="user", content=text),)).ref


def live(log: EventLog, store: Store) -> dict[str, Any]:
    """Everything that whoever runs live could notice: ends, offsets of groups, tables, states of detectors."""
    topics = [*TOPICS, *(f"{topic}.dlq" for topic in TOPICS)]
    tables = [table for table in metadata.sorted_tables if not table.name.startswith("replay")]
    with reading(store.engine) as connection:
        rows = {table.name: sorted(map(str, connection.execute(select(table)))) for table in tables}
    assert len(rows) == len(metadata.tables) - 2
    return {
        "ends": {topic: log.end_offsets(topic) for topic in topics},
        "groups": {(g, t): log.committed(g, t) for g in ("monitor", "features", "intake") for t in TOPICS},
        "rows": rows,
        "detectors": {str(file): file.read_bytes() for file in state_folder(store).rglob("*") if file.is_file()},
    }


def run(wiring: Wiring, **fields) -> tuple[Any, list]:
    seen: list[tuple[int, int]] = []
    request = ReplayRequest(window=WINDOW, **fields)
    state = replay(wiring, request, lambda done, total, note: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]
    return state, wiring.store.replays.results(state.replay.name)


def test_another_judge_judges_the_same_answers_and_is_compared_pair_by_pair(wiring, upstream):
    before = live(wiring.log, wiring.store)
    state, results = run(wiring, judge="llm", name="strict")
    assert live(wiring.log, wiring.store) == before
    assert (state.results, state.passed_over) == (13, 3)
    assert state.finished_at is not None
    assert {one.interaction_id for one in results} == {*NAMES, "refused"}
    assert len(upstream.received) == 12  # what was refused is nobody's to judge
    assert CANARY not in str(results)
    rows = {row["criterion"]: row for row in compared(results)}
    relevance = rows["relevance"]
    assert relevance["original_judge"] == wiring.local_judge.id
    assert (relevance["pairs"], relevance["judged"], relevance["replay_mean"]) == (12, 12, 2)
    assert relevance["mean_difference"] == pytest.approx(2 - relevance["original_mean"])
    assert relevance["low"] <= relevance["mean_difference"] <= relevance["high"]
    assert relevance["judged_share"] == pytest.approx(12 / 13)


def test_a_replay_that_is_complete_asks_nobody_again(wiring, upstream):
    first, results = run(wiring, judge="llm")
    asked = len(upstream.received)
    second, again = run(wiring, judge="llm")
    assert (second.replay.name, again, len(upstream.received)) == (first.replay.name, results, asked)
    assert first.replay.name.startswith("llm.interactions-")


def test_another_prompt_answers_again_apart_from_the_traffic(wiring, upstream, monkeypatch):
    monkeypatch.setattr("retrieval.opening.open_embedder", lambda models: HashEmbedder())
    upstream.said = f"LoRA trains two small matrices. Ask {CANARY}."
    prompt = other_prompt(wiring.store, "shorter", "In one line.\n{{ sources }}\n{{ question }}")
    before = live(wiring.log, wiring.store)
    state, results = run(wiring, prompt=prompt)
    assert live(wiring.log, wiring.store) == before
    assert state.results == 13
    assert state.replay.release.prompt == prompt
    for one in results:
        assert one.answer.release.prompt == prompt
        assert one.answer.response.startswith("LoRA trains two small matrices")
        assert (one.answer.channel, one.answer.tags["replayed"]) == (EVALUATION_CHANNEL, one.interaction_id)
        assert one.answer.prompt.startswith("What does LoRA train in ")
        assert one.evaluation.judge == wiring.local_judge.id
    assert len({one.answer.interaction_id for one in results}) == 13
    assert CANARY not in str(results)
    assert all(b"In one line." in body for _, _, body in upstream.received)
    rows = {row["criterion"]: row for row in compared(results)}
    assert rows["relevance"]["pairs"] == 12
    assert {row["original_judge"] for row in rows.values()} == {wiring.local_judge.id}


def test_of_answers_given_again_the_same_judge_has_seen_both(wiring, upstream, monkeypatch):
    monkeypatch.setattr("retrieval.opening.open_embedder", lambda models: HashEmbedder())
    before = live(wiring.log, wiring.store)
    _, results = run(wiring, prompt="usual@1", judge="llm")
    assert live(wiring.log, wiring.store) == before
    judges = {one.judge for result in results for one in result.originals}
    assert judges == {wiring.local_judge.id, "llm-judge:qwen2.5-coder-1.5b-instruct@1"}
    assert {row["original_judge"] for row in compared(results)} == {"llm-judge:qwen2.5-coder-1.5b-instruct@1"}


class Refusing(ScriptedChat):
    """Refuses what mentions `i3`, and is away for what mentions `i7`."""

    away = True

    def complete(self, messages, *arguments, **keywords):
        if "i3?" in messages[-1].content:
            raise InputError("the prompt does not fit")
        if "i7?" in messages[-1].content and self.away:
            raise Unavailable("the language model cannot be reached")
        return super().complete(messages, *arguments, **keywords)


def test_a_refused_answer_is_a_result_and_a_model_that_is_away_stops_the_replay(wiring):
    heard, chat = Heard(), Refusing(lambda _: "LoRA trains two small matrices.")
    prompt, release = wiring.store.prompts.get("usual@1"), wiring.store.releases.resolve("production")
    answerer = GroundedAnswerer(OneChunk(), chat, prompt, release, heard, embedder=wiring.embedder)
    replayer = Replayer(wiring.store, wiring.local_judge, Masker(), answerer, heard)
    asked = Replay(name="again", window=WINDOW, judge=wiring.local_judge.id, release=release.ref({}))
    with pytest.raises(Unavailable):
        replayer.run(wiring.log, asked, lambda *_: None)
    kept = wiring.store.replays.results("again")
    assert 0 < len(kept) < 13
    assert wiring.store.replays.get("again").finished_at is None
    chat.away = False
    assert replayer.run(wiring.log, asked, lambda *_: None).results == 13
    results = {one.interaction_id: one for one in wiring.store.replays.results("again")}
    assert [results[one.interaction_id] for one in kept] == kept
    assert results["i3"].answer.finish_reason == "error"
    assert "does not fit" in results["i3"].answer.error
    assert all(isinstance(score, Unscored) for score in results["i3"].evaluation.scores)


def test_a_judge_that_is_away_stops_the_replay_and_one_failure_does_not(wiring):
    class Away(ScriptedChat):
        fails = ("i3?", "i5?")

        def complete(self, messages, *arguments, **keywords):
            if any(name in messages[-1].content for name in self.fails):
                raise Unavailable("the language model cannot be reached")
            return super().complete(messages, *arguments, **keywords)

    chat = Away(lambda _: REPLY)
    judge = LlmJudge(chat, open_rubric(wiring.store))
    replayer = Replayer(wiring.store, judge, Masker())
    asked = Replay(name="away", window=WINDOW, judge=judge.id)
    chat.fails = ("What does LoRA",)
    with pytest.raises(Unavailable, match="in a row"):
        replayer.run(wiring.log, asked, lambda *_: None)
    assert wiring.store.replays.replayed("away") <= {"refused"}
    chat.fails = Away.fails
    assert replayer.run(wiring.log, asked, lambda *_: None).results == 13
    verdicts = [row for row in compared(wiring.store.replays.results("away")) if row["criterion"] == "relevance"]
    assert verdicts[0]["judged"] == 10


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({}, InputError, "nothing to replay through"),
        ({"judge": "nobody"}, NotFound, "nobody"),
        ({"judge": "usual@1"}, InputError, "no rubric"),
        ({"prompt": "usual@9"}, NotFound, "usual"),
        ({"prompt": "judge-rubric@1"}, InputError, "cannot answer"),
        ({"adapter": "abcd"}, NotFound, "no such adapter"),
    ],
)
def test_what_cannot_be_replayed_is_named_before_anything_is_begun(wiring, fields, error, words):
    with pytest.raises(error, match=words):
        run(wiring, **fields)
    assert list(wiring.store.replays.list()) == []


def test_what_people_spoke_of_in_a_window_can_be_replayed(wiring):
    said = [FeedbackGiven(interaction_id=name, comment="x") for name in ("i2", "i2", "i5", "ours", "never stored")]
    wiring.log.append(LLM_FEEDBACK, [encode(Event(data=one)) for one in said])
    window = WINDOW.model_copy(update={"topic": LLM_FEEDBACK})
    state = replay(wiring, ReplayRequest(window=window, judge="local", name="rated"), lambda *_: None)
    assert wiring.store.replays.replayed("rated") == {"i2", "i5"}
    assert (state.results, state.passed_over) == (2, 2)
    live_times = {one.interaction_id: time for time, one in wiring.store.interactions.list()}
    assert all(one.time == live_times[one.interaction_id] for one in wiring.store.replays.results("rated"))


def test_another_adapter_answers_with_its_base_model_and_not_through_an_endpoint(wiring):
    inputs = {"base": {"name": "small"}, "dataset": "sha256:d"}
    adapter = wiring.store.artifacts.build("adapter", "sha256:" + "ab" * 32, inputs, lambda folder: {})
    release = release_with(wiring, "", "abab")
    usual = wiring.store.releases.resolve("production")
    assert (release.adapter, release.model, release.prompt) == (adapter.id, "small", usual.prompt)
    with pytest.raises(InputError, match="local adapter"):
        run(wiring, adapter="abab")
    assert list(wiring.store.replays.list()) == []


def test_other_topics_and_names_that_are_taken_are_refused(wiring):
    window = WINDOW.model_copy(update={"topic": OPS_ALERTS})
    with pytest.raises(InputError, match="cannot be replayed"):
        replay(wiring, ReplayRequest(window=window, judge="llm"), lambda *_: None)
    run(wiring, judge="local", name="mine")
    with pytest.raises(Conflict, match="--name"):
        run(wiring, judge="llm", name="mine")


def test_a_killed_replay_goes_on_where_it_stopped(here, wiring, upstream):
    before = live(wiring.log, wiring.store)
    words = ["replay", LLM_INTERACTIONS, "--from", "2020-01-01", "--to", "2120-01-01T00:00Z", "--judge", "llm"]
    words += ["--name", "night"]
    upstream.delay = 0.2
    child = subprocess.Popen(here.command(*words), cwd=here.folder, env=here.environment, stderr=subprocess.DEVNULL)
    with child:
        wait_until(lambda: len(upstream.received) >= 3, 60)
        child.send_signal(signal.SIGKILL)
    kept = wiring.store.replays.results("night")
    assert 2 <= len(kept) < 13
    upstream.delay = 0
    found = json.loads(here.quill(*words, "--json").stdout)
    assert (found["replayed"], found["complete"], found["passed_over"]) == (13, True, 3)
    assert len(upstream.received) <= 12 + 1  # the one that was in hand when it was killed is asked again
    shown = json.loads(here.quill("replay", "show", "night", "--json").stdout)
    assert shown["comparison"] == found["comparison"]
    assert len(shown["results"]) == 13
    assert {one.interaction_id for one in kept} <= {one["interaction_id"] for one in shown["results"]}
    [listed] = json.loads(here.quill("replay", "list", "--json").stdout)
    assert (listed["name"], listed["judge"], listed["replayed"]) == ("night", found["judge"], 13)
    assert "relevance" in here.quill("replay", "show", "night").stdout
    assert "ISO 8601" in here.quill("replay", LLM_INTERACTIONS, "--from", "then", "--to", "now", code=2).stderr
    assert live(wiring.log, wiring.store) == before
