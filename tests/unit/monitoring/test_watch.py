"""A watch: one alert at a time, with evidence, that survives restarts, redelivery and people."""

from __future__ import annotations

import numpy as np

from monitoring.watch import RECOVERY, Watch, as_event, most_telling
from streams.events import now

CALIBRATION = tuple(np.random.default_rng(1).standard_normal(100).tolist())


class Desk:
    def __init__(self):
        self.changes = []
        self.closed = set()

    def feed(self, watch, scores, name):
        for number, score in enumerate(scores):
            watch.observe(
                f"{name}{number}", float(score), now(), closed=self.closed.__contains__, announce=self.changes.append
            )


def watch(folder):
    return Watch("embedding-drift:prompt", "Prompts are unlike the reference", folder, calibration=CALIBRATION)


def calm(count, seed):
    return np.random.default_rng(seed).standard_normal(count)


def test_opens_once_updates_and_resolves(tmp_path):
    desk, one = Desk(), watch(tmp_path)
    desk.feed(one, calm(30, 2), "before")
    assert desk.changes == []
    desk.feed(one, [6.0] * 20, "odd")
    assert {change.alert.alert_id for change in desk.changes} == {desk.changes[0].alert.alert_id}
    assert all(change.state == "open" for change in desk.changes)
    last = as_event(one, desk.changes[-1])
    assert {f"odd{number}" for number in range(20)} <= set(last.interaction_ids)
    assert last.interaction_ids[0].startswith("odd")
    assert sum(not name.startswith("odd") for name in last.interaction_ids) <= 3
    assert last.statistic >= last.threshold == 1000
    desk.feed(one, calm(60, 3), "after")
    assert desk.changes[-1].state == "resolved"
    assert one.load().alert is None
    assert one.load().run.count < 60


def test_a_restart_goes_on_where_it_stopped(tmp_path):
    whole, parts = Desk(), Desk()
    scores = [*calm(20, 4), *[5.0] * 12]
    desk_folder = tmp_path / "whole"
    whole.feed(watch(desk_folder), scores, "i")
    for number, score in enumerate(scores):
        watch(tmp_path / "parts").observe(
            f"i{number}", float(score), now(), closed=lambda _: False, announce=parts.changes.append
        )
    assert [change.alert.alert_id for change in parts.changes] == [change.alert.alert_id for change in whole.changes]
    assert len(parts.changes) > 0
    assert watch(tmp_path / "parts").load().run == watch(desk_folder).load().run


def test_redelivery_announces_nothing_new(tmp_path):
    desk, one = Desk(), watch(tmp_path)
    desk.feed(one, [6.0] * 20, "odd")
    seen = len(desk.changes)
    desk.feed(one, [6.0] * 20, "odd")
    assert len(desk.changes) == seen > 0


def test_a_crash_after_announcing_repeats_the_same_alert(tmp_path):
    one, announced = watch(tmp_path), []

    def crash(change):
        announced.append(change)
        raise RuntimeError("killed before the state was written")

    number = 0
    while len(announced) < 2:
        try:
            one.observe(f"odd{number}", 6.0, now(), closed=lambda _: False, announce=crash)
            number += 1
        except RuntimeError:
            pass  # the stream delivers the same record again
        assert number < 30
    assert announced[0].alert.alert_id == announced[1].alert.alert_id
    assert most_telling(announced[0].alert.evidence) == most_telling(announced[1].alert.evidence)


def test_a_person_who_resolves_starts_a_fresh_run(tmp_path):
    desk, one = Desk(), watch(tmp_path)
    desk.feed(one, [6.0] * 20, "odd")
    first = desk.changes[0].alert.alert_id
    desk.closed.add(first)
    desk.feed(one, calm(3, 5), "later")
    assert one.load().alert is None
    assert one.load().run.count == 3
    desk.feed(one, [6.0] * 20, "again")
    assert desk.changes[-1].alert.alert_id != first


def test_a_long_alert_keeps_at_most_fifty_ids_and_stops_repeating_itself(tmp_path):
    desk, one = Desk(), watch(tmp_path)
    desk.feed(one, np.linspace(6, 9, 150), "odd")
    assert len(as_event(one, desk.changes[-1]).interaction_ids) == 50
    assert len(desk.changes) < 60
    assert as_event(one, desk.changes[-1]).severity == "critical"


def test_refusals_are_compared_with_the_streams_own_past(tmp_path):
    desk = Desk()
    one = Watch("refusal-rate:response", "More requests are refused", tmp_path, warmup=50)
    desk.feed(one, np.random.default_rng(6).random(100) < 0.05, "usual")
    assert desk.changes == []
    desk.feed(one, [1.0] * 30, "refused")
    assert desk.changes[0].state == "open"
    ids = most_telling(desk.changes[-1].alert.evidence)
    assert sum(name.startswith("refused") for name in ids) >= 0.8 * len(ids)
    desk.feed(one, [0.0] * (RECOVERY + 5), "fine")
    assert desk.changes[-1].state == "resolved"


def test_a_stream_without_a_past_does_not_alarm(tmp_path):
    desk = Desk()
    one = Watch("refusal-rate:response", "More requests are refused", tmp_path, warmup=50)
    desk.feed(one, [0.0] * 9 + [1.0] * 40, "young")
    assert desk.changes == []
    assert one.load().run.count == 0


def test_constructing_a_watch_touches_no_disk(tmp_path):
    watch(tmp_path / "none")
    assert not (tmp_path / "none").exists()
