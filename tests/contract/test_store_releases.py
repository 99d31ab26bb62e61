"""Releases, channels, their events and alerts: the same behaviour on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from infra.errors import Conflict, InputError, NotFound, Unavailable
from infra.identity import short
from infra.llm.chat import Decoding
from infra.settings import Settings
from store.opening import Store, open_store
from store.releases import Release, ReleaseStore
from streams.codec import decode
from streams.events import OPS_RELEASES, AlertChanged, Event
from streams.log import EventLog, Record

START = datetime(2025, 3, 1, 12, tzinfo=UTC)
WHY = {"reason": "better", "actor": "ada"}


class AppendedTo:
    """An event log of which only `append` is used; it can be unreachable, or die, after some records."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.fails: BaseException | None = None

    def append(self, topic: str, records: Sequence[Record]) -> list[tuple[int, int]]:
        if self.fails is not None:
            raise self.fails
        assert topic == OPS_RELEASES
        self.records += records
        return [(0, len(self.records))]

    def events(self) -> list[Event]:
        return [decode(record) for record in self.records]


@pytest.fixture
def log() -> AppendedTo:
    return AppendedTo()


@pytest.fixture
def logged(store: Store, log: AppendedTo) -> Store:
    return replace(store, releases=ReleaseStore(store.engine, cast(EventLog, log)))


def release(prompt: str = "post@1", **parts: Any) -> Release:
    return Release.model_validate({"prompt": prompt, "model": "qwen"} | parts)


def put(store: Store, *prompts: str) -> list[Release]:
    return [store.releases.put(release(prompt)) for prompt in prompts]


def test_equal_parts_make_one_release_and_each_part_counts(store: Store) -> None:
    variants = [
        release(),
        release("post@2"),
        release(model="other"),
        release(adapter="sha256:a"),
        release(index_build="sha256:b"),
        release(judge="llm@1"),
        release(decoding=Decoding(temperature=0.7)),
    ]
    assert len({one.id for one in variants}) == 7
    for one in [*variants, release()]:
        assert store.releases.put(one) == one
    assert store.releases.list() == variants


def test_what_a_response_records_names_every_part() -> None:
    ref = release(adapter="sha256:a", index_build="sha256:b", judge="llm@1").ref({0: 5, 2: 7})
    assert ref.release_id == release(adapter="sha256:a", index_build="sha256:b", judge="llm@1").id
    assert (ref.prompt, ref.model, ref.adapter, ref.index_build) == ("post@1", "qwen", "sha256:a", "sha256:b")
    assert (ref.index_position, ref.judge, ref.decoding) == ({"0": 5, "2": 7}, "llm@1", Decoding())


def test_a_release_is_found_by_id_or_unique_prefix(store: Store) -> None:
    (one,) = put(store, "post@1")
    assert store.releases.get(one.id) == one
    assert store.releases.get(short(one.id, 6)) == one
    assert store.releases.get(short(one.id).upper()) == one
    with pytest.raises(NotFound, match="quill release list"):
        store.releases.get("0" * 64)
    for bad in ("", "abc", "sha256:", "100%", "no such", "sha256:____"):
        with pytest.raises(InputError, match="4 to 64 hex digits"):
            store.releases.get(bad)


def test_an_ambiguous_prefix_is_refused(store: Store) -> None:
    by_prefix: dict[str, int] = {}
    number = 0
    while True:  # about 300 tries until two of 65,536 prefixes meet
        number += 1
        prefix = short(release(f"p@{number}").id, 4)
        if prefix in by_prefix:
            break
        by_prefix[prefix] = number
    put(store, f"p@{by_prefix[prefix]}", f"p@{number}")
    with pytest.raises(InputError, match="several"):
        store.releases.get(prefix)


def test_promote_serves_and_tells_the_log(logged: Store, log: AppendedTo) -> None:
    one, two = put(logged, "post@1", "post@2")
    assert logged.releases.current("production") is None
    first = logged.releases.promote("production", one.id, **WHY)
    second = logged.releases.promote("production", short(two.id), reason="newer", actor="bob")
    assert (first.previous, first.action) == (None, "promoted")
    assert (second.previous, second.release_id) == (one.id, two.id)
    assert logged.releases.resolve("production", "any key") == two
    assert logged.releases.channels() == {"production": two.id}
    assert [event.data for event in log.events()] == [first, second]
    history = logged.releases.history("production")
    assert [entry.change for entry in history] == [second, first]
    assert [entry.event_id for entry in history] == [event.id for event in reversed(log.events())]
    assert all(entry.published for entry in history)


def test_promoting_what_is_served_changes_nothing(logged: Store, log: AppendedTo) -> None:
    (one,) = put(logged, "post@1")
    first = logged.releases.promote("production", one.id, **WHY)
    assert logged.releases.promote("production", one.id, reason="again", actor="bob") == first
    assert len(logged.releases.history("production")) == len(log.records) == 1


def test_rollback_walks_back_per_channel(logged: Store, log: AppendedTo) -> None:
    one, two, three = put(logged, "post@1", "post@2", "post@3")
    for channel in ("production", "canary"):
        for each in (one, two, three):
            logged.releases.promote(channel, each.id, **WHY)
    change = logged.releases.rollback("production", reason="worse", actor="cy")
    assert (change.action, change.release_id, change.previous) == ("rolled_back", two.id, three.id)
    assert logged.releases.rollback("production", reason="worse", actor="cy").release_id == one.id
    with pytest.raises(Conflict, match="one release only"):
        logged.releases.rollback("production", reason="worse", actor="cy")
    assert logged.releases.resolve("production") == one
    assert logged.releases.resolve("canary") == three
    logged.releases.promote("production", three.id, **WHY)
    assert logged.releases.rollback("production", reason="worse", actor="cy").release_id == one.id
    assert len(log.records) == 10


def test_nothing_promoted_and_unknown_releases_are_not_found(logged: Store, log: AppendedTo) -> None:
    for call in (
        lambda: logged.releases.resolve("production"),
        lambda: logged.releases.rollback("production", **WHY),
        lambda: logged.releases.promote("production", "f" * 64, **WHY),
    ):
        with pytest.raises(NotFound, match="fix:"):
            call()
    assert log.records == []
    assert logged.releases.history("production") == []


def test_every_change_stands_in_the_audit_log(logged: Store) -> None:
    one, two = put(logged, "post@1", "post@2")
    for each in (one, two):
        logged.releases.promote("production", each.id, **WHY)
    logged.releases.rollback("production", reason="drift", actor="cy")
    newest = logged.audit.list("production")[0]
    assert (newest.actor, newest.action) == ("cy", "release.rolled_back")
    assert newest.detail == {"release_id": one.id, "previous": two.id, "reason": "drift"}
    assert len(logged.audit.list("production")) == 3


def test_an_unreachable_log_delays_the_event_but_not_the_promotion(logged: Store, log: AppendedTo) -> None:
    one, two = put(logged, "post@1", "post@2")
    log.fails = Unavailable("the log does not answer")
    first = logged.releases.promote("production", one.id, **WHY)
    assert logged.releases.resolve("production") == one
    assert [entry.published for entry in logged.releases.history("production")] == [False]
    log.fails = None
    second = logged.releases.promote("production", two.id, **WHY)
    assert [event.data for event in log.events()] == [first, second]
    assert logged.releases.publish_pending() == 0


def test_words_that_no_database_takes_do_not_block_the_log(logged: Store, log: AppendedTo) -> None:
    (one,) = put(logged, "post@1")
    change = logged.releases.promote("production", one.id, reason="nul \0 and \udcff", actor="a\0")
    assert (change.reason, change.actor) == ("nul \ufffd and ?", "a\ufffd")
    assert [event.data for event in log.events()] == [change]
    assert logged.audit.list()[0].detail["reason"] == change.reason
    with pytest.raises(InputError, match="channel"):
        logged.releases.promote("no\0 channel", one.id, **WHY)


def test_a_process_that_dies_before_the_append_loses_nothing(
    store_settings: Settings, logged: Store, log: AppendedTo
) -> None:
    (one,) = put(logged, "post@1")
    log.fails = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        logged.releases.promote("production", one.id, **WHY)
    next_log = AppendedTo()
    reopened = open_store(store_settings, cast(EventLog, next_log))
    (entry,) = reopened.releases.history("production")
    assert [(event.id, event.time, event.data) for event in next_log.events()] == [
        (entry.event_id, entry.time, entry.change)
    ]
    assert entry.published
    reopened.close()


def test_a_process_that_dies_after_the_append_sends_an_equal_event_again(logged: Store, log: AppendedTo) -> None:
    (one,) = put(logged, "post@1")
    append = log.append

    def append_and_die(topic: str, records: Sequence[Record]) -> list[tuple[int, int]]:
        append(topic, records)
        raise KeyboardInterrupt

    log.append = append_and_die  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        logged.releases.promote("production", one.id, **WHY)
    log.append = append  # type: ignore[method-assign]
    assert logged.releases.publish_pending() == 1
    first, again = log.events()
    assert first == again


def alert(state: str = "open", **fields: Any) -> AlertChanged:
    data = {
        "alert_id": "a1",
        "alert_key": "embedding-drift:prompt",
        "state": state,
        "title": "Prompts drift",
        "detector": "mmd",
        "statistic": 0.4,
        "threshold": 0.1,
        "interaction_ids": ("i1", "i2"),
        "opened_at": START,
    } | fields
    return AlertChanged.model_validate(data)


def test_the_newest_change_of_an_alert_wins(store: Store) -> None:
    resolved = alert("resolved", note="back to normal")
    assert store.alerts.put(resolved, event_id="e2", time=START + timedelta(minutes=2))
    assert not store.alerts.put(alert(), event_id="e1", time=START + timedelta(minutes=1))
    assert not store.alerts.put(resolved, event_id="e2", time=START + timedelta(minutes=2))
    assert store.alerts.get("a1") == resolved
    reopened = alert(severity="critical")
    assert store.alerts.put(reopened, event_id="e3", time=START + timedelta(minutes=3))
    assert store.alerts.get("a1") == reopened
    assert store.alerts.get("nobody") is None


def test_the_same_alert_event_without_a_time_counts_once(store: Store) -> None:
    assert store.alerts.put(alert(), event_id="e1")
    assert not store.alerts.put(alert(), event_id="e1")


def test_alerts_are_listed_by_state_last_opened_first(store: Store) -> None:
    older = alert(alert_id="older", opened_at=START - timedelta(hours=1))
    newer = alert(alert_id="newer")
    closed = alert("resolved", alert_id="closed", opened_at=START - timedelta(minutes=1))
    for one in (older, newer, closed):
        store.alerts.put(one, event_id=one.alert_id)
    assert store.alerts.list("open") == [newer, older]
    assert store.alerts.list("resolved") == [closed]
    assert store.alerts.list() == [newer, closed, older]
