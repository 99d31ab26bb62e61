"""The evaluation report of a release and of an alert."""

from __future__ import annotations

import json

import pytest

from infra.errors import InputError, NotFound
from monitoring.evaluation import report
from store.opening import open_store
from store.releases import Release
from streams.events import AlertChanged, EvaluationRecorded, Event, InteractionRecorded, Slice, Unscored, Verdict, now

RELEASE = Release(prompt="grounded-post@1", model="qwen", judge="local-judge@1")


@pytest.fixture
def store(settings):
    opened = open_store(settings)
    opened.releases.put(RELEASE)
    yield opened
    opened.close()


def add(store, name, prompt, score, finish="stop"):
    interaction = InteractionRecorded(
        interaction_id=name,
        conversation_id=name,
        prompt=prompt,
        response="" if finish == "refused" else f"Answer to {name}.",
        finish_reason=finish,
        release=RELEASE.ref({}),
    )
    store.interactions.put(Event(data=interaction))
    said = (
        Unscored(criterion="relevance", reason="refused")
        if score is None
        else Verdict(criterion="relevance", score=score, justification="So.")
    )
    store.interactions.put(Event(data=EvaluationRecorded(interaction_id=name, judge="local-judge@1", scores=(said,))))


def drift_alert(ids, **fields):
    defaults = {
        "alert_id": "a1",
        "alert_key": "embedding-drift:prompt",
        "state": "open",
        "title": "Prompts are unlike the reference",
        "detector": "d",
        "statistic": 4000.0,
        "threshold": 1000.0,
        "release_id": RELEASE.id,
        "interaction_ids": tuple(ids),
        "slices": (Slice(field="topic", value="soup", share=1.0, reference_share=0.0),),
        "opened_at": now(),
    }
    return AlertChanged(**(defaults | fields))


def body(store, manifest):
    return json.loads((store.artifacts.verify("report", manifest.id) / "report.json").read_text())


def test_an_alert_is_compared_with_the_rest_of_its_release(store):
    for number in range(6):
        add(store, f"usual{number}", "What is LoRA?", 4.0 + number / 10)
    for number in range(4):
        add(store, f"odd{number}", "How long does soup simmer?", 1.0 + number / 10)
    add(store, "odd4", "Which soup is best?", None, finish="refused")
    alert = drift_alert([f"odd{number}" for number in range(3)])
    store.alerts.put(alert, event_id="e1")
    manifest = report(store, alert_id="a1")
    found = body(store, manifest)
    assert found["whole"]["interactions"] == 11
    assert found["affected"]["interactions"] == 5  # the evidence and what else lies in its slice
    assert found["rest"]["interactions"] == 6
    assert found["affected"]["finish_reasons"] == {"stop": 4, "refused": 1}
    affected, rest = found["affected"]["means"][0], found["rest"]["means"][0]
    assert affected["mean"] == pytest.approx(1.15)
    assert (affected["judged"], affected["total"]) == (4, 5)
    assert rest["mean"] == pytest.approx(4.25)
    assert rest["low"] < 4.25 < rest["high"]
    assert [one["interaction_id"] for one in found["worst"]][:2] == ["odd0", "odd1"]
    assert {one["interaction_id"] for one in found["evidence"]} == {"odd0", "odd1", "odd2"}
    assert found["release"]["model"] == "qwen"
    assert found["slice"] == "topic=soup"
    assert manifest.summary["affected"] == 5


def test_the_same_alert_makes_one_report_and_a_changed_one_another(store):
    add(store, "odd0", "Soup?", 1.5)
    add(store, "odd1", "Soup!", 1.5)
    store.alerts.put(drift_alert(["odd0"]), event_id="e1")
    first = report(store, alert_id="a1")
    assert report(store, alert_id="a1").id == first.id
    store.alerts.put(drift_alert(["odd0", "odd1"]), event_id="e2")
    assert report(store, alert_id="a").id != first.id
    assert len(store.artifacts.list("report")) == 2


def test_a_release_report_follows_its_interactions(store):
    add(store, "i0", "What is LoRA?", 4.0)
    first = report(store, release_id=RELEASE.id)
    assert report(store, release_id=RELEASE.id).id == first.id
    add(store, "i1", "What is PEFT?", None)
    second = report(store, release_id=RELEASE.id)
    assert second.id != first.id
    found = body(store, second)
    assert found["affected"] is None
    assert found["whole"]["means"][0]["judged"] == 1
    assert found["whole"]["means"][0]["total"] == 2


def test_nothing_to_report_is_said(store):
    with pytest.raises(InputError, match="no interaction"):
        report(store)
    with pytest.raises(NotFound, match="quill alerts list"):
        report(store, alert_id="none")
