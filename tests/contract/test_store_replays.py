"""Replays in the store, on SQLite and PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from infra.errors import Conflict, InputError, NotFound
from store.opening import Store
from store.replays import Replay, ReplayResult
from streams.events import LLM_INTERACTIONS, EvaluationRecorded, InteractionRecorded, ReleaseRef, Unscored, Verdict
from streams.replay import Window

START = datetime(2025, 3, 4, 5, 6, 7, 89, tzinfo=UTC)
WINDOW = Window(topic=LLM_INTERACTIONS, start=START, end=START + timedelta(hours=1))
REPLAY = Replay(name="stricter", window=WINDOW, judge="llm-judge:m@2")


def evaluation(name: str, judge: str = "local-judge@1", score: float = 4) -> EvaluationRecorded:
    scores = (Verdict(criterion="relevance", score=score, justification="Fits."),)
    return EvaluationRecorded(interaction_id=name, judge=judge, scores=scores)


def result(name: str, minute: int = 0, answer: InteractionRecorded | None = None) -> ReplayResult:
    return ReplayResult(
        interaction_id=name,
        time=START + timedelta(minutes=minute),
        originals=(evaluation(name), evaluation(name, "llm-judge:m@1", 2)),
        answer=answer,
        evaluation=EvaluationRecorded(
            interaction_id=name, judge=REPLAY.judge, scores=(Unscored(criterion="relevance", reason="empty response"),)
        ),
    )


def test_a_replay_goes_on_where_it_stopped(store: Store):
    begun = store.replays.begin(REPLAY)
    assert (begun.replay, begun.results, begun.finished_at) == (REPLAY, 0, None)
    answer = InteractionRecorded(
        interaction_id="a-again", conversation_id="a-again", prompt="What?", response="Two. 🦙", finish_reason="stop"
    )
    store.replays.put(REPLAY.name, [result("b", 2), result("a", 1, answer)])
    store.replays.put(REPLAY.name, [result("a", 1), result("c", 3)])
    store.replays.put(REPLAY.name, [])
    assert store.replays.begin(REPLAY).results == 3
    assert store.replays.replayed(REPLAY.name) == {"a", "b", "c"}
    assert store.replays.results(REPLAY.name) == [result("a", 1, answer), result("b", 2), result("c", 3)]
    done = store.replays.finish(REPLAY.name, passed_over=2)
    assert (done.results, done.passed_over, done.created_at) == (3, 2, begun.created_at)
    assert done.finished_at is not None


def test_a_name_has_one_replay_for_good(store: Store):
    store.replays.begin(REPLAY)
    release = ReleaseRef(release_id="sha256:" + "a" * 64, prompt="post@2", model="m")
    for other in ({"judge": "other@1"}, {"release": release}, {"window": WINDOW.model_copy(update={"topic": "t"})}):
        with pytest.raises(Conflict, match="another replay of this name"):
            store.replays.begin(REPLAY.model_copy(update=other))
    assert store.replays.get(REPLAY.name).replay == REPLAY


def test_replays_are_listed_and_do_not_mix(store: Store):
    other = REPLAY.model_copy(update={"name": "other"})
    for replay in (REPLAY, other):
        store.replays.begin(replay)
        store.replays.put(replay.name, [result("a")])
    store.replays.put("other", [result("b")])
    assert {state.replay.name: state.results for state in store.replays.list()} == {"stricter": 1, "other": 2}
    with pytest.raises(NotFound, match="quill replay list"):
        store.replays.get("nothing")


def test_a_window_goes_forward():
    with pytest.raises(InputError, match="the window is empty"):
        Window(topic="t", start=START, end=START)
