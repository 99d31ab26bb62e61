"""Interactions, evaluations, feedback and means: the same behaviour on SQLite and PostgreSQL."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from infra.database import batches
from infra.errors import InputError
from infra.settings import Settings
from store.means import MeanScore
from store.opening import Store, open_store
from streams.events import (
    Criterion,
    DocumentDeleted,
    EvaluationRecorded,
    Event,
    FeedbackGiven,
    InteractionRecorded,
    ReleaseRef,
    Unscored,
    Verdict,
)

START = datetime(2025, 3, 1, 12, tzinfo=UTC)


def interaction(number: int, *, event_id: str = "", minutes: float | None = None, **fields: Any) -> Event:
    data = {
        "interaction_id": f"i{number}",
        "conversation_id": f"c{number % 3}",
        "prompt": f"question {number}",
        "response": "answer \x00 with a NUL",
        "finish_reason": "stop",
    } | fields
    time = START + timedelta(minutes=number if minutes is None else minutes)
    return Event(id=event_id or f"e-i{number}", time=time, data=InteractionRecorded.model_validate(data))


def verdict(score: float, criterion: Criterion = "relevance") -> Verdict:
    return Verdict(criterion=criterion, score=score, justification=f"says {score}")


def evaluation(
    number: int,
    *scores: Verdict | Unscored,
    judge: str = "local@1",
    minutes: float = 0,
    event_id: str = "",
    sampled_with: float = 1.0,
) -> Event:
    data = EvaluationRecorded(
        interaction_id=f"i{number}", judge=judge, scores=scores, sampled_with=sampled_with, latency_ms=1.5
    )
    return Event(id=event_id or f"e-{judge}-{number}", time=START + timedelta(minutes=minutes), data=data)


def release(release_id: str) -> ReleaseRef:
    return ReleaseRef(release_id=release_id, prompt="post@1", model="m")


def test_an_interaction_comes_back_whole_and_is_stored_once(store: Store) -> None:
    event = interaction(1, release=release("r1"), tags={"topic": "drift"})
    assert store.interactions.put(event)
    assert not store.interactions.put(event)
    assert not store.interactions.put(interaction(1, event_id="another event", response="other"))
    assert not store.interactions.put(interaction(2, event_id=event.id))
    assert store.interactions.get("i1") == event.data
    assert store.interactions.list() == [(START + timedelta(minutes=1), event.data)]
    assert store.interactions.get("nobody") is None


def test_listing_filters_by_everything_it_names(store: Store) -> None:
    for number in range(6):
        tags = {"topic": "a" if number % 2 else "b", "lang": "en"} if number else {}
        store.interactions.put(interaction(number, release=release(f"r{number // 3}"), tags=tags))

    def found(**conditions: Any) -> list[str]:
        return [data.interaction_id for _, data in store.interactions.list(**conditions)]

    assert found() == ["i0", "i1", "i2", "i3", "i4", "i5"]
    assert found(release_id="r1") == ["i3", "i4", "i5"]
    assert found(since=START + timedelta(minutes=4)) == ["i4", "i5"]
    assert found(tags={"topic": "a"}) == ["i1", "i3", "i5"]
    assert found(tags={"topic": "a", "lang": "de"}) == []
    assert found(ids=["i5", "i2", "i5", "nobody"]) == ["i2", "i5"]
    assert found(limit=2) == ["i4", "i5"]
    assert found(limit=0) == []
    assert found(ids=[]) == []
    assert found(release_id="r1", tags={"topic": "a"}, limit=1) == ["i5"]
    assert store.interactions.count() == 6
    assert store.interactions.count(release_id="r1") == 3


def test_more_ids_than_one_statement_takes(store: Store) -> None:
    for number in range(5):
        store.interactions.put(interaction(number))
        store.interactions.put(evaluation(number, verdict(4)))
    ids = [f"i{number}" for number in range(1300)]
    assert len(store.interactions.list(ids=ids)) == 5
    assert [data.interaction_id for _, data in store.interactions.list(ids=ids[::-1], limit=2)] == ["i3", "i4"]
    assert len(store.interactions.evaluations(ids)) == 5
    mean = store.interactions.means(ids=ids)[0]
    assert (mean.judged, mean.total) == (5, 5)


def test_verdicts_and_unscored_are_kept_apart(store: Store) -> None:
    event = evaluation(1, verdict(4.5), Unscored(criterion="coherence", reason="too long"), sampled_with=0.25)
    assert store.interactions.put(event)
    assert store.interactions.evaluations(["i1", "i2"]) == [
        event.data.model_copy(
            update={"scores": (Unscored(criterion="coherence", reason="too long"), verdict(4.5))}  # by criterion
        )
    ]


def test_the_newest_score_of_a_judge_wins_in_any_order_of_arrival(store: Store) -> None:
    events = [
        evaluation(1, verdict(2), minutes=1, event_id="e1"),
        evaluation(1, Unscored(criterion="relevance", reason="timeout"), minutes=3, event_id="e3"),
        evaluation(1, verdict(5), minutes=2, event_id="e2"),
    ]
    for number, order in enumerate(itertools.permutations(events)):
        for event in order:
            data = event.data.model_copy(update={"interaction_id": f"i{number}"})
            store.interactions.put(event.model_copy(update={"data": data}))
    found = store.interactions.evaluations([f"i{number}" for number in range(6)])
    assert [one.scores for one in found] == [(Unscored(criterion="relevance", reason="timeout"),)] * 6


def test_an_evaluation_seen_before_or_older_changes_nothing(store: Store) -> None:
    assert store.interactions.put(evaluation(1, verdict(2), minutes=1, event_id="e1"))
    assert not store.interactions.put(evaluation(1, verdict(2), minutes=1, event_id="e1"))
    assert not store.interactions.put(evaluation(1, verdict(5), minutes=0, event_id="e0"))
    assert store.interactions.put(evaluation(1, verdict(3), minutes=1, event_id="e2"))  # equal time: the id decides
    assert not store.interactions.put(evaluation(1, verdict(2), minutes=1, event_id="e1"))
    assert store.interactions.evaluations(["i1"])[0].scores == (verdict(3),)


def test_a_newer_partial_evaluation_leaves_the_other_criteria(store: Store) -> None:
    store.interactions.put(evaluation(1, verdict(2), verdict(3, "coherence"), minutes=1, event_id="e1"))
    store.interactions.put(evaluation(1, verdict(4), minutes=2, event_id="e2"))
    assert [one.scores for one in store.interactions.evaluations(["i1"])] == [
        (verdict(3, "coherence"),),
        (verdict(4),),
    ]


def test_feedback_keeps_the_newest_of_each_reviewer_and_every_anonymous_one(store: Store) -> None:
    def given(event_id: str, minutes: float, reviewer: str, comment: str) -> bool:
        data = FeedbackGiven(interaction_id="i1", reviewer=reviewer, ratings={"relevance": 4}, comment=comment)
        return store.interactions.put(Event(id=event_id, time=START + timedelta(minutes=minutes), data=data))

    assert given("e2", 2, "ada", "second thought")
    assert not given("e1", 1, "ada", "first thought")
    assert given("e3", 3, "", "anonymous a")
    assert given("e4", 4, "", "anonymous b")
    assert not given("e4", 4, "", "anonymous b")
    comments = [feedback.comment for feedback in store.interactions.feedback(["i1", "i2"])]
    assert comments == ["second thought", "anonymous a", "anonymous b"]


def test_other_events_are_refused(store: Store) -> None:
    with pytest.raises(InputError, match=r"content\.document\.deleted"):
        store.interactions.put(Event(data=DocumentDeleted(document_id="a", source="a")))


def test_means_weigh_by_the_sampling_and_show_the_share(store: Store) -> None:
    for number in range(10):
        store.interactions.put(interaction(number, release=release("r1")))
    store.interactions.put(interaction(10, release=release("r2")))
    store.interactions.put(evaluation(0, verdict(5)))
    store.interactions.put(evaluation(1, verdict(1), sampled_with=0.25))
    store.interactions.put(evaluation(2, verdict(1), sampled_with=0.25))
    store.interactions.put(evaluation(3, Unscored(criterion="relevance", reason="no reply")))
    store.interactions.put(evaluation(10, verdict(3)))  # another release
    store.interactions.put(evaluation(99, verdict(3)))  # no such interaction
    (mean,) = store.interactions.means(release_id="r1")
    assert (mean.judge, mean.criterion, mean.judged, mean.unscored, mean.total) == ("local@1", "relevance", 3, 1, 10)
    assert mean.mean == pytest.approx(13 / 9)
    # t(2) = 4.3027, weighted residuals 3.5556, -1.7778, -1.7778, sum of the weights 9.
    assert (mean.low, mean.high) == (1.0, pytest.approx(13 / 9 + 4.302653 * (1.5 * 18.962963) ** 0.5 / 9))


def test_means_are_apart_by_judge_and_criterion(store: Store) -> None:
    for number in range(3):
        store.interactions.put(interaction(number))
        store.interactions.put(evaluation(number, verdict(4), verdict(2, "coherence")))
    store.interactions.put(evaluation(0, verdict(1), judge="llm@2"))
    means = store.interactions.means()
    assert [(one.judge, one.criterion, one.mean, one.judged, one.total) for one in means] == [
        ("llm@2", "relevance", 1.0, 1, 3),
        ("local@1", "coherence", 2.0, 3, 3),
        ("local@1", "relevance", 4.0, 3, 3),
    ]
    assert store.interactions.means(judge="llm@2") == means[:1]
    assert [one.judged for one in store.interactions.means(ids=["i1", "i2"], judge="local@1")] == [2, 2]


def test_a_judge_that_judged_nothing_has_no_mean(store: Store) -> None:
    store.interactions.put(interaction(1))
    assert store.interactions.means() == []
    store.interactions.put(evaluation(1, Unscored(criterion="relevance", reason="empty")))
    assert store.interactions.means() == [
        MeanScore(judge="local@1", criterion="relevance", mean=None, low=None, high=None, judged=0, unscored=1, total=1)
    ]
    assert store.interactions.means(ids=[]) == []


def given(number: int, *, event_id: str, minutes: float, reviewer: str = "ada") -> Event:
    data = FeedbackGiven(interaction_id=f"i{number}", reviewer=reviewer, comment=event_id)
    return Event(id=event_id, time=START + timedelta(minutes=minutes), data=data)


def mixed() -> list[Event]:
    """Events of every kind, with repeats, rivals for one row, and older ones after newer ones."""
    events: list[Event] = []
    for number in range(30):
        tags = {"topic": f"t{number % 4}", "late": ""} if number % 2 else {}
        events += [
            interaction(number, tags=tags),
            evaluation(number, verdict(2), verdict(4, "coherence"), minutes=2, event_id=f"v2-{number}"),
            evaluation(number, verdict(5), minutes=1, event_id=f"v1-{number}"),
            given(number, event_id=f"f1-{number}", minutes=1),
            given(number, event_id=f"f2-{number}", minutes=2),
            given(number, event_id=f"f0-{number}", minutes=0, reviewer=""),
            interaction(number, tags=tags),
            interaction(number, event_id=f"rival-{number}", tags={"rival": "yes"}, response="rival"),
        ]
    return events


def contents(store: Store) -> tuple[Any, ...]:
    ids = [f"i{number}" for number in range(30)]
    interactions = store.interactions
    wanted = [{"topic": "t1"}, {"topic": "t3"}, {"late": ""}, {"rival": "yes"}]
    tagged = [[found.interaction_id for _, found in interactions.list(tags=tags)] for tags in wanted]
    return interactions.list(), interactions.evaluations(ids), interactions.feedback(ids), tagged, interactions.means()


def test_a_batch_ends_in_the_same_state_as_its_events_one_by_one(store: Store) -> None:
    events = mixed()
    assert store.interactions.put_many(events) == 30 + 60 + 60
    together = contents(store)
    assert [len(part) for part in together[:3]] == [30, 30, 60]
    assert [len(part) for part in together[3]] == [8, 7, 15, 0]
    assert store.interactions.put_many(events[::-1]) == 0
    for event in events:
        assert not store.interactions.put(event)
    assert contents(store) == together


def test_events_in_any_split_end_in_the_state_of_one_batch(store: Store, tmp_path: Path) -> None:
    other = open_store(Settings(home=tmp_path / "other"))
    events = mixed()
    other.interactions.put_many(events)
    for start in range(0, len(events), 7):
        store.interactions.put_many(events[start : start + 7])
    assert contents(store) == contents(other)
    other.close()


def test_a_batch_is_all_or_nothing(store: Store) -> None:
    strange = Event(data=DocumentDeleted(document_id="a", source="a"))
    with pytest.raises(InputError, match=r"content\.document\.deleted"):
        store.interactions.put_many([interaction(1), evaluation(1, verdict(3)), strange])
    assert store.interactions.count() == 0
    assert store.interactions.evaluations(["i1"]) == []
    assert store.interactions.put_many([]) == 0


def test_two_writers_of_the_same_events_store_each_once(store: Store, store_settings: Settings) -> None:
    """As a member that was paused does beside the one that took its work over."""
    other = open_store(store_settings)
    events = [interaction(number, tags={"n": str(number)}) for number in range(400)]
    orders = [events, events[::-1]]
    with ThreadPoolExecutor(2) as pool:
        writers = [
            pool.submit(lambda one, order: [one.interactions.put_many(batch) for batch in batches(order, 50)], *each)
            for each in zip((store, other), orders, strict=True)
        ]
        assert sum(sum(writer.result()) for writer in writers) == 400
    assert store.interactions.count() == 400
    assert len(store.interactions.list(tags={"n": "7"})) == 1
    other.close()
