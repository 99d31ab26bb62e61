"""The monitor over the real log and store: verdicts, a drift alert with its slice, redelivery, outage, restart."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace

import pytest

from infra.embedder import HashEmbedder
from infra.errors import InputError, Unavailable
from infra.llm.scripted import ScriptedChat
from monitoring.consumer import DRIFT_KEY, GROUP, Monitor
from monitoring.drift import make_reference
from monitoring.llm_judge import LlmJudge
from monitoring.local_judge import LocalJudge
from monitoring.opening import monitor_status, open_monitor, open_rubric
from monitoring.rubric import RUBRIC_NAME
from store.opening import open_store
from streams.codec import decode, encode
from streams.embedded import EmbeddedLog
from streams.events import (
    CRITERIA,
    LLM_EVALUATIONS,
    LLM_FEEDBACK,
    LLM_INTERACTIONS,
    OPS_ALERTS,
    Event,
    FeedbackGiven,
    InteractionRecorded,
    ReleaseRef,
    Unscored,
    topic_of,
)
from streams.log import lag, retry_topic

RELEASE = ReleaseRef(release_id="sha256:" + "a" * 64, prompt="grounded-post@1", model="writer")
SUBJECTS = ("lora", "quantization", "retrieval", "chunking", "embeddings", "reranking", "hnsw", "bm25")
REFERENCE = [
    f"What does {one} change for {other} in {place}?"
    for one in SUBJECTS
    for other in SUBJECTS
    for place in ("rag", "training")
]
REPLY = json.dumps({name: {"justification": "Seen.", "score": 3} for name in CRITERIA})


@pytest.fixture
def log(settings):
    opened = EmbeddedLog(settings.home / "log.db", partitions=2)
    opened.ensure_topics([LLM_INTERACTIONS, LLM_EVALUATIONS, LLM_FEEDBACK, OPS_ALERTS])
    yield opened
    opened.close()


@pytest.fixture
def store(settings, log):
    opened = open_store(settings, log)
    yield opened
    opened.close()


def interaction(name, prompt="What does lora change for bm25 in rag?", **fields):
    defaults = {"response": "It changes the rank of the matrices.", "finish_reason": "stop", "release": RELEASE}
    return InteractionRecorded(interaction_id=name, conversation_id=name, prompt=prompt, **(defaults | fields))


def send(log, *payloads):
    for payload in payloads:
        log.append(topic_of(payload), [encode(Event(data=payload))])


def ends(log):
    return {topic: log.end_offsets(topic) for topic in (LLM_INTERACTIONS, LLM_FEEDBACK)}


def events(log, topic):
    records = [record for partition in range(log.partitions(topic)) for record in log.read(topic, partition, 0)]
    return [decode(record) for record in sorted(records, key=lambda record: record.time)]


def monitor(log, store, *, chat=None, sample=1.0, reference=None, embedder=None):
    embedder = embedder or HashEmbedder()
    return Monitor(
        log,
        store,
        local=LocalJudge(embedder),
        llm=LlmJudge(chat, open_rubric(store)) if chat else None,
        sample=sample,
        embedder=embedder,
        reference=reference,
    )


def usual(count):
    return [interaction(f"usual{n}", REFERENCE[(n * 7) % len(REFERENCE)], tags={"team": "docs"}) for n in range(count)]


def burst(count):
    return [
        interaction(
            f"odd{n}",
            f"Simmer {n} onions with garlic soup",
            response="",
            finish_reason="refused",
            tags={"team": "food"},
        )
        for n in range(count)
    ]


def test_every_interaction_is_stored_and_judged_by_both_judges(log, store):
    send(log, *usual(3), FeedbackGiven(interaction_id="usual0", ratings={"relevance": 2}))
    handled = monitor(log, store, chat=ScriptedChat(lambda _: REPLY)).run_until(ends(log), timeout=60)
    assert handled == 4
    assert lag(log, GROUP, LLM_INTERACTIONS) == 0
    assert store.interactions.count() == 3
    assert len(events(log, LLM_EVALUATIONS)) == 6
    means = {(mean.judge.partition("@")[0], mean.criterion): mean for mean in store.interactions.means()}
    assert means["llm-judge:scripted", "relevance"].mean == 3
    assert means["local-judge", "coherence"].judged == 3
    assert store.interactions.feedback(["usual0"])[0].ratings == {"relevance": 2}


def test_an_off_topic_burst_opens_one_alert_with_evidence_and_slice(log, store):
    reference = make_reference(store.artifacts, REFERENCE, HashEmbedder(), name="instructions")
    send(log, *usual(10))
    one = monitor(log, store, reference=reference)
    one.run_until(ends(log), timeout=60)
    assert store.alerts.list() == []
    send(log, *burst(25))
    one.run_until(ends(log), timeout=60)
    (alert,) = [alert for alert in store.alerts.list("open") if alert.alert_key == DRIFT_KEY]
    assert len(alert.interaction_ids) >= 20
    assert all(name.startswith("odd") for name in alert.interaction_ids)
    assert ("tag:team", "food") in {(one.field, one.value) for one in alert.slices}
    assert any(one.field == "topic" and one.reference_share == 0 for one in alert.slices)
    assert alert.release_id == RELEASE.release_id
    changes = [event.data for event in events(log, OPS_ALERTS) if event.data.alert_key == DRIFT_KEY]
    assert {change.alert_id for change in changes} == {alert.alert_id}
    assert len(changes[0].interaction_ids) <= 15  # opened after at most fifteen prompts of the burst


def test_redelivery_and_a_restart_change_nothing(log, store, settings):
    reference = make_reference(store.artifacts, REFERENCE, HashEmbedder(), name="instructions")
    events_sent = [Event(data=payload) for payload in (*usual(8), *burst(20))]
    first = monitor(log, store, chat=ScriptedChat(lambda _: REPLY), reference=reference)
    first._look_for_reference()
    for event in events_sent[:20]:
        first.handle(event)
    second = monitor(log, store, chat=ScriptedChat(lambda _: REPLY), reference=reference)
    second._look_for_reference()
    for event in events_sent[10:]:
        second.handle(event)
    verdicts = events(log, LLM_EVALUATIONS)
    assert len(verdicts) == len({event.id for event in verdicts}) == 2 * 28
    drift = [alert for alert in store.alerts.list() if alert.alert_key == DRIFT_KEY]
    assert len(drift) == 1
    assert len(set(drift[0].interaction_ids)) == len(drift[0].interaction_ids) >= 15


def test_a_dead_llm_judge_is_unscored_and_stops_nothing(log, store):
    class Dead(ScriptedChat):
        def complete(self, *_, **__):
            raise Unavailable("the language model cannot be reached")

    send(log, *usual(4))
    assert monitor(log, store, chat=Dead([])).run_until(ends(log), timeout=60) == 4
    (mean,) = [m for m in store.interactions.means() if m.judge.startswith("llm") and m.criterion == "relevance"]
    assert (mean.judged, mean.unscored, mean.total) == (0, 4, 4)
    said = [score for one in store.interactions.evaluations(["usual0"]) for score in one.scores]
    assert any(isinstance(score, Unscored) and "cannot be reached" in score.reason for score in said)


def test_a_broken_record_goes_to_the_dead_letters_and_the_rest_is_judged(log, store):
    good = encode(Event(data=interaction("good")))
    log.append(LLM_INTERACTIONS, [replace(good, value=b"not an event"), good])
    monitor(log, store).run_until(ends(log), timeout=60)
    assert store.interactions.count() == 1
    assert sum(log.end_offsets(f"{LLM_INTERACTIONS}.dlq").values()) == 1


def test_sampling_and_forced_judging(log, store):
    send(log, *(interaction(f"i{n}") for n in range(6)), interaction("forced", tags={"judge": "always"}))
    monitor(log, store, chat=ScriptedChat(lambda _: REPLY), sample=0.0).run_until(ends(log), timeout=60)
    judged = [event.data for event in events(log, LLM_EVALUATIONS) if event.data.judge.startswith("llm")]
    assert [one.interaction_id for one in judged] == ["forced"]
    assert judged[0].sampled_with == 1.0


def test_a_person_resolves_and_the_detector_starts_again(log, store):
    from monitoring.alerts import AlertDesk

    reference = make_reference(store.artifacts, REFERENCE, HashEmbedder(), name="instructions")
    one = monitor(log, store, reference=reference)
    send(log, *burst(25))
    one.run_until(ends(log), timeout=60)
    (alert,) = [alert for alert in store.alerts.list("open") if alert.alert_key == DRIFT_KEY]
    AlertDesk(log, store).resolve(alert.alert_id, "expected: cooking week")
    send(log, *usual(3))
    one.run_until(ends(log), timeout=60)
    assert store.alerts.get(alert.alert_id).state == "resolved"
    (detector,) = [row for row in monitor_status(log, store)["detectors"] if row["key"] == DRIFT_KEY]
    assert detector["observed"] == 3
    assert detector["open_alert"] is None


def test_a_new_reference_is_taken_while_running_and_retires_the_old_alert(log, store, settings):
    embedder = HashEmbedder()
    old = make_reference(store.artifacts, REFERENCE, embedder, name="instructions")
    one = open_monitor(settings, log, store, embedder=embedder, llm=False)
    send(log, *burst(25))
    one.run_until(ends(log), timeout=60)
    assert [alert.alert_key for alert in store.alerts.list("open")].count(DRIFT_KEY) == 1
    new = make_reference(store.artifacts, [payload.prompt for payload in burst(60)], embedder, name="wider")
    assert new.id != old.id
    again = open_monitor(settings, log, store, embedder=embedder, llm=False)
    send(log, interaction("later", "Simmer 61 onions with garlic soup"))
    again.run_until(ends(log), timeout=60)
    (alert,) = [alert for alert in store.alerts.list() if alert.alert_key == DRIFT_KEY]
    assert alert.state == "resolved"
    assert "replaced" in alert.note


def test_a_reference_of_another_embedder_is_refused_at_the_start(log, store):
    reference = make_reference(store.artifacts, REFERENCE, HashEmbedder(64), name="instructions")
    with pytest.raises(InputError, match="another embedder"):
        monitor(log, store, reference=reference).run_until(ends(log), timeout=5)


def test_run_stops_when_asked(log, store):
    stop = threading.Event()
    thread = threading.Thread(target=monitor(log, store).run, args=(stop,))
    thread.start()
    send(log, *usual(2))
    deadline = time.monotonic() + 60
    while len(events(log, LLM_EVALUATIONS)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    stop.set()
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert store.interactions.count() == 2


def test_opening_pushes_the_rubric_once_and_status_counts(log, store, settings):
    one = open_monitor(settings, log, store, embedder=HashEmbedder())
    assert store.prompts.labels(RUBRIC_NAME) == {"production": 1}
    open_monitor(settings, log, store, embedder=HashEmbedder())
    assert len(store.prompts.versions(RUBRIC_NAME)) == 1
    send(log, *usual(2))
    before = monitor_status(log, store)
    assert before["lag"][LLM_INTERACTIONS] == 2
    assert before["reference"] is None
    assert one is not None


def test_a_batch_is_stored_before_its_first_event_is_judged(log, store):
    stored_at_first_judgement = []

    class Watching(LocalJudge):
        def judge(self, subjects):
            stored_at_first_judgement.append((len(subjects), store.interactions.count()))
            return super().judge(subjects)

    send(log, *(interaction(f"i{n}", finish_reason="refused" if n == 3 else "stop") for n in range(12)))
    one = monitor(log, store)
    one._local = Watching(HashEmbedder())
    one.run_until(ends(log), timeout=60)
    assert stored_at_first_judgement[0][1] >= stored_at_first_judgement[0][0] > 1
    assert sum(asked for asked, _ in stored_at_first_judgement) == 11
    verdicts = events(log, LLM_EVALUATIONS)
    assert {event.data.interaction_id for event in verdicts} == {f"i{n}" for n in range(12)}
    assert len(verdicts) == 12
    assert one.counters["handled"] == 12


def test_an_interaction_that_cannot_be_judged_now_waits_and_holds_up_nobody_else(log, store):
    class Broken(LocalJudge):
        def judge(self, subjects):
            if any("i5" in subject.prompt for subject in subjects):
                raise RuntimeError("a mistake of ours")
            return super().judge(subjects)

    send(log, *(interaction(f"i{n}", f"What does lora change in i{n}?") for n in range(12)))
    one = monitor(log, store)
    one._local = Broken(HashEmbedder())
    one.run_until(ends(log), timeout=60)
    assert store.interactions.count() == 12
    judged = {event.data.interaction_id for event in events(log, LLM_EVALUATIONS)}
    assert judged == {f"i{n}" for n in range(12)} - {"i5"}
    assert one.counters["waiting"] == 1
    (waiting,) = events(log, retry_topic(LLM_INTERACTIONS, GROUP))
    assert waiting.data.interaction_id == "i5"
