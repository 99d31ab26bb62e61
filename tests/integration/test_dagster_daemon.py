"""The real Dagster daemon: killed between ticks, each alert still gets exactly one run."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infra.settings import Settings, child_environment, load_settings
from store.opening import open_store
from streams.codec import encode
from streams.events import LLM_INTERACTIONS, OPS_ALERTS, TOPICS, AlertChanged, Event, InteractionRecorded, now
from streams.opening import open_log

ROOT = Path(__file__).resolve().parents[2]
ALERT_TAG = "quillstream/alert"


@pytest.fixture
def installation(tmp_path: Path) -> Settings:
    (tmp_path / "dagster").mkdir()
    (tmp_path / "dagster" / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    return load_settings(environment={}, overrides={"home": str(tmp_path / "home")})


@pytest.mark.timeout(280)
def test_a_daemon_killed_between_ticks_runs_each_alert_once(installation: Settings, tmp_path: Path):
    open_alert(installation, "alert-one")
    with daemon(installation, tmp_path) as process:
        wait_until(lambda: finished_runs(tmp_path)["alert-one"] == 1)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=10)
    open_alert(installation, "alert-one")
    open_alert(installation, "alert-two")
    with daemon(installation, tmp_path):
        wait_until(lambda: finished_runs(tmp_path)["alert-two"] == 1)
        ticks = ticks_of_the_alert_sensor(tmp_path)
        wait_until(lambda: ticks_of_the_alert_sensor(tmp_path) >= ticks + 2)
    assert finished_runs(tmp_path) == Counter({"alert-one": 1, "alert-two": 1})


def open_alert(settings: Settings, alert_id: str) -> None:
    """An interaction and an open alert about it, in the store and on the stream."""
    log = open_log(settings)
    log.ensure_topics(TOPICS)
    store = open_store(settings, log)
    interaction = InteractionRecorded(
        interaction_id=f"i-{alert_id}", conversation_id="c", prompt="How?", response="So.", finish_reason="stop"
    )
    alert = AlertChanged(
        alert_id=alert_id,
        alert_key="embedding-drift:prompt",
        state="open",
        title="Prompts moved away from the reference",
        detector="test",
        statistic=1001.0,
        threshold=1000.0,
        interaction_ids=(interaction.interaction_id,),
        opened_at=now(),
    )
    for topic, payload in ((LLM_INTERACTIONS, interaction), (OPS_ALERTS, alert)):
        event = Event(data=payload)
        log.append(topic, [encode(event)])
        if isinstance(payload, AlertChanged):
            store.alerts.put(payload, event_id=event.id)
        else:
            store.interactions.put(event)
    store.close()
    log.close()


@contextmanager
def daemon(settings: Settings, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = child_environment(QUILL_HOME=str(settings.home), DAGSTER_HOME=str(directory / "dagster"))
    command = [Path(sys.executable).with_name("dagster-daemon"), "run", "-m", "dagster_project.definitions"]
    with (directory / "daemon.log").open("ab") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def instance(directory: Path):
    import dagster as dg

    return dg.DagsterInstance.from_config(str(directory / "dagster"))


def finished_runs(directory: Path) -> Counter[str]:
    """Alert id to the number of its runs; a run that failed makes the test fail at once."""
    with instance(directory) as dagster:
        runs = [run for run in dagster.get_runs() if ALERT_TAG in run.tags]
    assert [run.run_id for run in runs if run.is_failure_or_canceled] == []
    return Counter(run.tags[ALERT_TAG] for run in runs if run.is_finished)


def ticks_of_the_alert_sensor(directory: Path) -> int:
    with instance(directory) as dagster:
        states = dagster.all_instigator_state()
        wanted = [state for state in states if state.instigator_name == "ops_alerts_sensor"]
        return sum(len(dagster.get_ticks(state.instigator_origin_id, state.selector_id)) for state in wanted)


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the daemon did not get there in time"
        time.sleep(0.5)
