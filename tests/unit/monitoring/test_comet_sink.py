"""The Comet archive holds the prompts, responses and scores, and is written without the network."""

from __future__ import annotations

import csv
import io
import json
import socket
import zipfile

import pytest
from pydantic import SecretStr

from infra.errors import Unavailable
from infra.settings import CometSettings
from monitoring.comet import CometSink
from streams.events import AlertChanged, EvaluationRecorded, InteractionRecorded, Unscored, Verdict, now

INTERACTION = InteractionRecorded(
    interaction_id="i1",
    conversation_id="c1",
    prompt="How do vector databases work?",
    response="They return the nearest embeddings.",
    finish_reason="stop",
)
EVALUATION = EvaluationRecorded(
    interaction_id="i1",
    judge="local-judge@1+m",
    scores=(
        Verdict(criterion="relevance", score=4.25, justification="All words, addressed."),
        Unscored(criterion="coherence", reason="too short"),
    ),
)
ALERT = AlertChanged(
    alert_id="a1",
    alert_key="embedding-drift:prompt",
    state="open",
    title="Prompts are unlike the reference",
    detector="d",
    statistic=2000,
    threshold=1000,
    interaction_ids=("i1",),
    opened_at=now(),
)


def test_the_offline_archive_holds_prompt_response_and_score(settings, monkeypatch, capsys):
    def refuse(*address):
        raise AssertionError(f"the network was used: {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    archive = CometSink(settings).log([INTERACTION], [EVALUATION], [ALERT])
    assert archive.startswith(str(settings.home / "comet"))
    with zipfile.ZipFile(archive) as found:
        messages = [json.loads(line) for line in found.read("messages.json").decode().splitlines()]
        uploads = {
            one["payload"]["additional_params"]["fileName"]: found.read(one["payload"]["file_path"]).decode()
            for one in messages
            if one["type"] == "file_upload"
        }
        samples = [one["payload"] for one in messages if one["payload"].get("upload_type") == "text-sample"]
        text = found.read(samples[0]["file_path"]).decode()
    assert INTERACTION.prompt in text
    assert INTERACTION.response in text
    assert samples[0]["metadata"]["local-judge@1+m/relevance"] == 4.25
    rows = list(csv.DictReader(io.StringIO(uploads["evaluations.csv"])))
    assert [row["prompt"] for row in rows] == [INTERACTION.prompt] * 2
    assert [row["score"] for row in rows] == ["4.25", ""]
    assert rows[1]["words"] == "too short"
    assert json.loads(uploads["alerts.json"])[0]["alert_id"] == "a1"
    metrics = {one["payload"]["metric"]["metricName"] for one in messages if one["type"] == "metric_msg"}
    assert "local-judge_relevance_mean" in metrics
    printed = capsys.readouterr()
    assert printed.out + printed.err == ""


def test_nothing_to_log_still_makes_an_archive(settings):
    with zipfile.ZipFile(CometSink(settings).log([], [])) as found:
        assert "messages.json" in found.namelist()


def test_an_unusable_key_says_what_to_do(settings, monkeypatch):
    def no_network(*_, **__):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr("urllib3.util.retry.Retry.sleep", lambda *_: None)
    online = settings.model_copy(update={"comet": CometSettings(api_key=SecretStr("not-a-key"))})
    with pytest.raises(Unavailable, match="COMET_API_KEY"):
        CometSink(online).log([INTERACTION], [])


def test_constructing_the_sink_touches_no_disk(settings):
    CometSink(settings)
    assert not settings.home.exists()
