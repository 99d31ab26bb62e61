"""The verbs of the monitoring room: shapes that other programs rely on, and light imports."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from infra.embedder import HashEmbedder
from infra.errors import Conflict, NotFound
from monitoring.commands import register
from store.opening import open_store
from streams.events import AlertChanged, now

ALERT = AlertChanged(
    alert_id="abc123",
    alert_key="embedding-drift:prompt",
    state="open",
    title="Prompts are unlike the reference",
    detector="d",
    statistic=2000,
    threshold=1000,
    interaction_ids=("i1", "i2"),
    opened_at=now(),
)


@pytest.fixture
def quill(settings, monkeypatch):
    monkeypatch.setattr("monitoring.commands.load_settings", lambda: settings)
    monkeypatch.setattr("infra.embedder.open_embedder", lambda models: HashEmbedder())
    app = typer.Typer()
    register(app)

    def run(*arguments, text=None):
        result = CliRunner().invoke(app, arguments, input=text)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.output

    return run


def test_judge_answers_each_line_in_order(quill):
    lines = [
        {
            "prompt": "What is LoRA?",
            "response": "LoRA trains two small matrices.",
            "context": ["LoRA trains matrices."],
        },
        {"prompt": "What is LoRA?", "response": ""},
        {"prompt": "What is LoRA?", "response": "It is a radio.", "context": "LoRA trains matrices.", "id": 7},
        {"prompt": "What is LoRA?"},
    ]
    text = "\n".join([*map(json.dumps, lines), "not json", "[1]"]) + "\n\n"
    answers = [json.loads(line) for line in quill("judge", "--json", text=text).splitlines()]
    assert len(answers) == 6
    assert set(answers[0]) == {"relevance", "coherence", "conciseness", "faithfulness"}
    assert set(answers[0]["relevance"]) == {"score", "justification"}
    assert answers[1]["unscored"] == "empty response"
    assert answers[2]["faithfulness"]["score"] < answers[0]["faithfulness"]["score"]
    assert "response" in answers[3]["unscored"]
    assert "not a JSON object" in answers[4]["unscored"]
    assert "unscored" in answers[5]


def test_more_lines_than_a_batch_keep_their_order(quill):
    texts = [f"Answer number {number} is here." for number in range(40)]
    text = "\n".join(json.dumps({"prompt": f"Answer number {n}?", "response": one}) for n, one in enumerate(texts))
    answers = quill("judge", "--json", text=text).splitlines()
    assert len(answers) == 40
    assert all("number" not in json.loads(line)["relevance"]["justification"] for line in answers)


def test_alerts_are_listed_shown_and_resolved(quill, settings):
    assert json.loads(quill("alerts", "list", "--json")) == []
    store = open_store(settings)
    store.alerts.put(ALERT, event_id="e1")
    listed = json.loads(quill("alerts", "list", "--state", "open", "--json"))
    assert [one["alert_id"] for one in listed] == ["abc123"]
    assert listed[0]["interaction_ids"] == ["i1", "i2"]
    assert json.loads(quill("alerts", "show", "abc", "--json"))["title"] == ALERT.title
    assert "abc123" in quill("alerts", "show", "abc123")
    quill("alerts", "resolve", "abc", "--note", "expected")
    assert store.alerts.get("abc123").state == "resolved"
    assert json.loads(quill("alerts", "list", "--state", "open", "--json")) == []
    with pytest.raises(Conflict, match="resolved already"):
        quill("alerts", "resolve", "abc123")
    with pytest.raises(NotFound, match="quill alerts list"):
        quill("alerts", "show", "zzz")
    store.close()


def test_status_of_an_empty_installation(quill):
    found = json.loads(quill("monitor", "status", "--json"))
    assert found["interactions"] == 0
    assert found["reference"] is None
    assert [one["key"] for one in found["detectors"]] == ["refusal-rate:response"]
    assert "interactions 0" in quill("monitor", "status")


def test_run_once_ends_when_the_stream_is_handled(quill):
    assert "handled 0 records" in quill("monitor", "run", "--once", "--no-llm")


def test_registering_and_listing_import_nothing_heavy():
    code = (
        "import sys, typer; from monitoring.commands import register; register(typer.Typer());"
        "import monitoring.alerts, monitoring.opening;"
        "heavy = {'torch', 'transformers', 'sentence_transformers', 'comet_ml', 'sklearn', 'dagster', 'peft'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
