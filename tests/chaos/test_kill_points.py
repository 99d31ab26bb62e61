"""Processes killed at every named point between `emit()` and the store: nothing acknowledged is lost, nothing doubled.

The full size (`make chaos`) makes 200 kills while a million events pass, half of each on either log.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from kill_points import EMITTER, POINTS, SEGMENTS
from supervision import Chaos

from infra.settings import Settings

PROCESSES = {"embedded": {"emit": 1, "consume": 2}, "kafka": {"emit": 2, "consume": 2}}


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def installation(request: pytest.FixtureRequest) -> Settings:
    settings: Settings = request.getfixturevalue("settings" if request.param == "embedded" else "on_kafka")
    return settings


@pytest.mark.timeout(3600)
def test_what_was_acknowledged_is_stored_once_whatever_process_dies_where(
    installation: Settings, scale: Callable[[int, int], int]
):
    backend = installation.log.backend
    points = POINTS[backend]
    chaos = Chaos(
        installation,
        points,
        kills=scale(len(points), 100),
        events=scale(3000, 500_000),
        processes=PROCESSES[backend],
        depth=scale(10, 100),
    )
    report = chaos.run()
    print(f"\n{backend}: {report}")
    assert set(report.kills) == {point.name for point in points}
    assert len(report.acknowledged) >= scale(3000, 500_000)
    assert report.acknowledged - set(report.stored) == set()
    assert sorted(report.logged) == sorted(set(report.logged)) == sorted(report.stored)
    assert report.strange == []
    assert report.disordered == []


@pytest.mark.kafka
@pytest.mark.timeout(900)
def test_eight_processes_of_one_outbox_lose_nothing_when_some_are_killed(
    on_kafka: Settings, scale: Callable[[int, int], int]
):
    """Two that opened the outbox, each with three children forked while its emitter was in use."""
    points = (*EMITTER, *SEGMENTS)  # which all of them reach; one of them forwards
    chaos = Chaos(
        on_kafka,
        points,
        kills=scale(8, 2 * len(points)),
        events=scale(3000, 50_000),
        processes={"emit": 2},
        forks=3,
        depth=scale(10, 100),
    )
    report = chaos.run()
    print(f"\neight processes, one outbox: {report}")
    assert report.kills.total() > scale(8, 2 * len(points))
    assert len(report.acknowledged) >= scale(3000, 50_000)
    assert report.acknowledged - set(report.logged) == set()
    assert sorted(report.logged) == sorted(set(report.logged))
    assert report.disordered == []
