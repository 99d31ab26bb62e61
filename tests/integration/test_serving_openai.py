"""A real `quill up` with a real (small) writer: the official client talks to it, other commands work beside it."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from installation import Installation, wait_until

from infra.llm import local
from serving.presence import FILE
from store.opening import open_store
from streams.events import InteractionRecorded

NOTES = Path(__file__).resolve().parents[2] / "examples" / "notes"
QUESTION = "How does LoRA change the weights of a model?"

pytestmark = pytest.mark.small_models


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Iterator[Installation]:
    installation = Installation(tmp_path_factory.mktemp("served"))
    notes = installation.folder / "notes"
    notes.mkdir()
    for name in ("lora", "qlora", "peft-overview", "vector-databases"):
        shutil.copy(NOTES / f"{name}.md", notes)
    installation.start()
    report = json.loads(installation.quill("ingest", str(notes), "--json").stdout)
    assert (report["published"], report["documents"], report["searchable"]) == (4, 4, True)
    yield installation
    installation.end()
    local.stop(installation.settings.models)


@pytest.fixture
def client(here) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{here.url}/v1", api_key="none", max_retries=0, http_client=httpx.Client(trust_env=False)
    )


def stored(here, interaction_id: str) -> InteractionRecorded | None:
    store = open_store(here.settings)
    try:
        return wait_until(lambda: store.interactions.get(interaction_id), 30)
    finally:
        store.close()


def test_the_official_client_gets_a_grounded_completion_that_is_recorded(here, client):
    models = [model.id for model in client.models.list()]
    assert models == ["smollm2-135m-instruct", "production"]
    completion = client.chat.completions.create(
        model="production",
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=48,
        metadata={"conversation_id": "c-official"},
    )
    assert completion.choices[0].message.content
    assert completion.usage.prompt_tokens > 100
    assert 0 < completion.usage.completion_tokens <= 48
    extra = completion.model_extra
    chunks = {chunk["chunk_id"]: chunk["text"] for chunk in extra["chunks"]}
    assert chunks
    assert all(cited["quote"] in chunks[cited["chunk_id"]] for cited in extra["citations"])
    record = stored(here, extra["interaction_id"])
    assert record is not None
    assert record.prompt == QUESTION
    assert record.conversation_id == "c-official"
    assert record.response == completion.choices[0].message.content
    assert record.usage.output_tokens == completion.usage.completion_tokens
    assert [(one.chunk_id, one.quote) for one in record.citations] == [
        (one["chunk_id"], one["quote"]) for one in extra["citations"]
    ]
    assert record.release.release_id == extra["release"]["release_id"]
    assert record.release.index_build is not None


def test_the_official_client_streams(here, client):
    stream = client.chat.completions.create(
        model="smollm2-135m-instruct",
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=32,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert len(chunks) > 5
    assert text
    assert chunks[-1].usage.completion_tokens > 0
    assert chunks[-2].choices[0].finish_reason in {"stop", "length"}
    assert stored(here, chunks[-2].model_extra["interaction_id"]).usage.output_tokens > 0


def test_a_stream_that_is_closed_early_is_recorded_as_cancelled(here, client):
    with client.chat.completions.create(
        model="production", messages=[{"role": "user", "content": QUESTION}], stream=True
    ) as stream:
        first = next(iter(stream))
    record = stored(here, first.id)
    assert record is not None
    assert record.finish_reason == "cancelled"


def test_the_official_client_reads_the_errors(client):
    with pytest.raises(openai.NotFoundError, match="no such model"):
        client.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "x"}])
    with pytest.raises(openai.BadRequestError, match="no question"):
        client.chat.completions.create(model="production", messages=[{"role": "assistant", "content": "x"}])


def test_other_commands_work_while_it_runs(here):
    late = here.folder / "late.md"
    late.write_text("# Ropewalks\n\nA ropewalk is a long straight lane where strands were laid before twisting.\n")
    assert json.loads(here.quill("ingest", str(late), "--json").stdout)["published"] == 1
    hits = json.loads(here.quill("search", "Where were ropes twisted?", "--json", "--limit", "2").stdout)
    assert list(hits[0]) == ["chunk_id", "document_id", "score", "source", "text"]
    assert hits[0]["source"].endswith("late.md")
    assert "ropewalk" in hits[0]["text"]
    answer = json.loads(here.quill("write", QUESTION, "--json").stdout)
    assert sorted(answer) == ["chunks", "citations", "interaction_id", "latency_ms", "release", "text", "usage"]
    assert stored(here, answer["interaction_id"]) is not None
    late.unlink()


def test_every_part_is_well_and_feedback_is_stored(here):
    answer = httpx.post(f"{here.url}/v1/write", json={"question": QUESTION, "max_tokens": 8}, timeout=120).json()
    rating = {"interaction_id": answer["interaction_id"], "ratings": {"relevance": 2}, "reviewer": "ann"}
    before = httpx.get(f"{here.url}/healthz").json()
    assert before["status"] == "ok"
    assert {name: part["state"] for name, part in before["parts"].items()} == dict.fromkeys(
        ("log", "store", "index", "llm", "features", "monitor", "intake"), "ok"
    )
    assert httpx.post(f"{here.url}/v1/feedback", json=rating).status_code == 202
    store = open_store(here.settings)
    try:
        [given] = wait_until(lambda: store.interactions.feedback([answer["interaction_id"]]), 30)
    finally:
        store.close()
    assert (given.reviewer, given.ratings) == ("ann", {"relevance": 2})


def test_a_second_server_and_a_taken_port_are_refused(here, tmp_path):
    assert "runs already" in here.quill("up", "--port", "0", code=2).stderr
    other = Installation(tmp_path)
    port = here.url.rpartition(":")[2]
    stderr = other.quill("up", "--port", port, code=2).stderr
    assert "the port cannot be bound" in stderr
    assert "Traceback" not in stderr


def test_it_ends_on_sigterm_and_leaves_no_announcement(here):
    assert (here.settings.home / FILE).exists()
    assert here.stop() == 0
    assert not (here.settings.home / FILE).exists()
    assert "Traceback" not in here.log_of("server").read_text()


def test_a_killed_server_is_not_asked_and_search_works_without_it(here):
    here.start()
    os.kill(here.server.pid, signal.SIGKILL)
    here.server.wait(10)
    assert (here.settings.home / FILE).exists()
    hits = json.loads(here.quill("search", "What is a vector database?", "--json", "--limit", "1").stdout)
    assert hits[0]["source"].endswith("vector-databases.md")
