"""The whole slice over real Apache Kafka: a server and a monitor in processes of their own, the monitor killed once."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from installation import Installation, wait_until

from infra.embedder import open_embedder
from infra.identity import new_id
from infra.llm import local
from monitoring.consumer import DRIFT_KEY
from monitoring.drift import make_reference
from store.opening import Store, open_store
from streams.codec import decode
from streams.events import LLM_EVALUATIONS, EvaluationRecorded
from streams.opening import open_log

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PROMPTS = (EXAMPLES / "off_topic_burst.txt").read_text().splitlines()[:10]
WAIT_SECONDS = 90

pytestmark = [pytest.mark.kafka, pytest.mark.small_models]


@pytest.fixture
def here(tmp_path, own_broker) -> Iterator[Installation]:
    installation = Installation(tmp_path, QUILL_LOG_BACKEND="kafka", QUILL_LOG_BOOTSTRAP_SERVERS=own_broker.address)
    yield installation
    installation.end()
    local.stop(installation.settings.models)


@pytest.fixture
def store(here) -> Iterator[Store]:
    store = open_store(here.settings)
    yield store
    store.close()


def reference_texts() -> list[str]:
    """Sentences of the notes: what prompts about the documents would be like."""
    text = " ".join(note.read_text() for note in sorted((EXAMPLES / "notes").glob("*.md")))
    return [sentence for sentence in re.split(r"(?<=[.?!])\s+", text) if 40 < len(sentence) < 240][:240]


def ask(here: Installation, prompt: str) -> str:
    wanted = {"question": prompt, "max_tokens": 8, "interaction_id": new_id()}
    answer = httpx.post(f"{here.url}/v1/write", json=wanted, timeout=120, trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer.json()["interaction_id"]


def judged(store: Store, ids: list[str]) -> set[str]:
    return {evaluation.interaction_id for evaluation in store.interactions.evaluations(ids)}


def evaluation_events(here: Installation, ids: list[str]) -> list[tuple[str, EvaluationRecorded]]:
    """(event id, evaluation) of everything that was published about these interactions."""
    log = open_log(here.settings)
    try:
        records = [
            record
            for partition in log.end_offsets(LLM_EVALUATIONS)
            for record in log.read(LLM_EVALUATIONS, partition, 0)
        ]
    finally:
        log.close()
    events = [decode(record) for record in records]
    return [(event.id, event.data) for event in events if event.data.interaction_id in ids]


@pytest.mark.timeout(300)
def test_ten_prompts_become_ten_judged_interactions_and_one_alert(here, store):
    make_reference(store.artifacts, reference_texts(), open_embedder(here.settings.models), name="notes")
    notes = here.folder / "notes"
    notes.mkdir()
    shutil.copy(EXAMPLES / "notes" / "lora.md", notes)
    here.start("--no-monitor")
    monitor = here.spawn("monitor", "monitor", "run")
    here.quill("ingest", str(notes))
    ids = [ask(here, prompt) for prompt in PROMPTS[:5]]
    assert wait_until(lambda: judged(store, ids), WAIT_SECONDS), here.log_of("monitor").read_text()
    os.kill(monitor.pid, signal.SIGKILL)
    monitor.wait(10)
    ids += [ask(here, prompt) for prompt in PROMPTS[5:]]
    monitor = here.spawn("monitor", "monitor", "run")
    complete = wait_until(lambda: judged(store, ids) == set(ids) and store.alerts.list("open"), WAIT_SECONDS)
    assert complete, here.log_of("monitor").read_text()
    monitor.send_signal(signal.SIGTERM)
    assert monitor.wait(60) == 0
    assert here.stop() == 0

    stored = {record.interaction_id: record for _, record in store.interactions.list(ids=ids)}
    assert sorted(stored) == sorted(ids)
    assert [stored[identity].prompt for identity in ids] == PROMPTS
    per_interaction = Counter(evaluation.interaction_id for evaluation in store.interactions.evaluations(ids))
    assert per_interaction == dict.fromkeys(ids, 1)
    assert all(len(evaluation.scores) >= 3 for evaluation in store.interactions.evaluations(ids))
    published = {
        (event_id, evaluation.interaction_id, evaluation.judge) for event_id, evaluation in evaluation_events(here, ids)
    }
    assert len(published) == 10
    [alert] = [alert for alert in store.alerts.list() if alert.alert_key == DRIFT_KEY]
    assert set(alert.interaction_ids) <= set(ids)
    assert len(alert.interaction_ids) >= 3
