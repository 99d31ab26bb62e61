"""A thousand canaries sent through every door of a real `quill up`: none is found in anything that is kept.

Each event is found again, with its canaries masked and the rest of its words as they were. The full size runs on a
broker too, with documents to ground answers in and a dataset made of them.
"""

from __future__ import annotations

import gzip
import json
import re
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from canaries import PATTERNS, Canary, EchoUpstream, canaries, found_in_files, found_in_log, records, sentence
from installation import Installation, wait_until

from infra.identity import new_id
from infra.kafka_broker import KafkaBroker
from infra.settings import MaskingSettings, Settings
from store.opening import Store, open_store
from streams.codec import encode
from streams.embedded import EmbeddedLog
from streams.events import LLM_FEEDBACK, LLM_INTAKE, TOPICS, Event, FeedbackGiven, InteractionRecorded
from streams.log import Record
from streams.opening import open_emitter, open_log

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
EACH = 8
"""Canaries of one text: one of every kind."""
APPLICATION_DOORS = ("emit", "wrap", "feedback")
SERVER_DOORS = ("gateway", "otlp", "feedback-api", "write", "chat")
# What an application does by itself: texts come in as JSON lines "door, name, text".
APPLICATION = """
    import json, sys
    import openai, quillstream
    from quillstream import InteractionRecorded, ToolCall, TraceSpan, emit, feedback, wrap
    from infra.llm.chat import Message
    from streams.events import now

    client = wrap(openai.OpenAI(base_url=sys.argv[1], api_key="x", max_retries=0), application="canaries")

    def whole(name, text):
        named = {"a": text, text: "b"}
        step = TraceSpan(span_id="00f067aa0ba902b7", name=text, start=now(), end=now(), attributes=named)
        return InteractionRecorded(
            interaction_id=name, conversation_id=text[:200], session_id=text[:200], application=text[:200], prompt=text,
            messages=(Message(role="system", content=text),), response=text, finish_reason="error", error=text,
            context=(text,), unsupported=(text,), tool_calls=(ToolCall(name="t", arguments=text, result=text),),
            spans=(step,), tags={"a": text, text[:200]: "b"},
        )

    def asked(name, text):
        for stream in (True, False):
            answer = client.chat.completions.create(
                model="echo", user=text, metadata={"name": name}, stream=stream,
                messages=[{"role": "system", "content": text}, {"role": "user", "content": text}],
            )
            list(answer) if stream else answer

    receipts = []
    for line in sys.stdin:
        door, name, text = json.loads(line)
        if door == "emit":
            receipts += [emit(whole(name, text)), emit(whole(name + "x", text + "\\ud800"))]
        elif door == "wrap":
            asked(name, text)
        else:
            receipts += [feedback(name, comment=text, edited_response=text, reviewer=text)]
    assert all(receipt.wait(30) or "encoded" in receipt.reason for receipt in receipts)
"""


Share = list[tuple[str, str, str]]
"""What goes through one door: name, text, and the text as it must be kept."""


def shared_out(some: Sequence[Canary], doors: Sequence[str]) -> dict[str, Share]:
    """Each text has one canary of every kind; each door takes its turn."""
    shares: dict[str, Share] = {door: [] for door in doors}
    for number in range(len(some) // EACH):
        group, door = some[number * EACH : (number + 1) * EACH], doors[number % len(doors)]
        name = f"{door}-canary-{number}"
        start = f"I am {name}; "
        shares[door].append((name, start + sentence(group), start + sentence(group, masked=True)))
    return shares


@pytest.fixture
def upstream() -> Iterator[EchoUpstream]:
    upstream = EchoUpstream()
    yield upstream
    upstream.close()


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def here(
    request: pytest.FixtureRequest, tmp_path: Path, upstream: EchoUpstream, scale: Callable[[int, int], int]
) -> Iterator[Installation]:
    if request.param == "kafka" and not scale(0, 1):
        pytest.skip("part of the full size: make chaos")
    environment = {
        "QUILL_GATEWAY_BASE_URL": upstream.url,
        "QUILL_LLM_ENDPOINT": upstream.url,
        "QUILL_MASKING_PATTERNS": json.dumps(PATTERNS),
        "NO_PROXY": "127.0.0.1",
    }
    if request.param == "kafka":
        broker: KafkaBroker = request.getfixturevalue("own_broker")
        environment |= {"QUILL_LOG_BACKEND": "kafka", "QUILL_LOG_BOOTSTRAP_SERVERS": broker.address}
    installation = Installation(tmp_path, **environment)
    yield installation
    installation.end()


def run_application(here: Installation, upstream: EchoUpstream, shares: dict[str, Share]) -> None:
    lines = [json.dumps((door, name, text)) for door, texts in shares.items() for name, text, _ in texts]
    command = [sys.executable, "-c", textwrap.dedent(APPLICATION), upstream.url]
    text = "\n".join(lines)
    done = subprocess.run(
        command, input=text, env=here.environment, cwd=here.folder, capture_output=True, text=True, timeout=120
    )
    (here.folder / "application.log").write_text(done.stdout + done.stderr)
    assert done.returncode == 0, done.stderr


def post(here: Installation, path: str, body: dict[str, Any], status: int = 200) -> None:
    answer = httpx.post(f"{here.url}{path}", json=body, trust_env=False, timeout=300)
    assert answer.status_code == status, answer.text


def ask_server(here: Installation, shares: dict[str, Share]) -> None:
    """Through every door of `quill up`, with refused requests among them."""
    for name, text, _ in shares["gateway"]:
        messages = [{"role": "system", "content": text}, {"role": "user", "content": text}]
        request = {"model": "echo", "user": text, "metadata": {"name": name, text[:60]: text}, "messages": messages}
        post(here, "/gateway/v1/chat/completions", request)
        post(here, "/gateway/v1/chat/completions", {**request, "stream": True})
        post(here, "/gateway/v1/chat/completions", {**request, "model": "refuse"}, 429)
    for name, text, _ in shares["otlp"]:
        post(here, "/v1/traces", trace(name, text))
    for name, text, _ in shares["feedback-api"]:
        said = {"comment": text, "edited_response": text, "reviewer": text[:250]}
        post(here, "/v1/feedback", {"interaction_id": name, **said}, 202)
    for name, text, _ in shares["write"]:
        post(here, "/v1/write", {"question": text, "interaction_id": name, "max_tokens": 64})
    for _, text, _ in shares["chat"]:
        body = {"messages": [{"role": "user", "content": text}], "user": text}
        post(here, "/v1/chat/completions", body)
        post(here, "/v1/chat/completions", {**body, "n": text}, 422)


def trace(name: str, text: str) -> dict[str, Any]:
    """One traced call as OTLP JSON."""
    said = json.dumps([{"role": "user", "parts": [{"type": "text", "content": text}]}])
    attributes = {
        "gen_ai.operation.name": "chat", "gen_ai.request.model": "m", "gen_ai.input.messages": said,
        "gen_ai.output.messages": said, "gen_ai.conversation.id": text, "session.id": text, "user.id": text, text: text,
        "gen_ai.response.id": name,
    }  # fmt: skip
    span = {
        "traceId": new_id(), "spanId": new_id()[:16], "name": text,
        "startTimeUnixNano": "1700000000000000000", "endTimeUnixNano": "1700000001000000000",
        "status": {"code": 2, "message": text},
        "attributes": [{"key": key, "value": {"stringValue": value}} for key, value in attributes.items()],
    }  # fmt: skip
    return {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}


def produce(here: Installation, share: Share) -> None:
    """To `llm.intake`, as strangers do; one record is no event."""
    log = open_log(here.settings)
    for name, text, _ in share:
        interaction = InteractionRecorded(
            interaction_id=name, conversation_id=text, prompt=text, response=text, finish_reason="stop"
        )
        rating = FeedbackGiven(interaction_id=name, comment=text)
        good = [encode(Event(source="stranger", data=payload)) for payload in (interaction, rating)]
        log.append(LLM_INTAKE, [*good, Record(key=text, value=text.encode())])
    log.close()


def kept_texts(store: Store, shares: dict[str, Share]) -> set[str]:
    """Prompts and comments in the store."""
    names = [name for texts in shares.values() for name, _, _ in texts]
    prompts = {interaction.prompt for _, interaction in store.interactions.list()}
    return prompts | {given.comment for given in store.interactions.feedback(names)}


def topics_of(here: Installation) -> set[str]:
    """Every topic there is, those for strangers apart."""
    if here.settings.log.backend == "kafka":
        folders = [folder.name for folder in (here.folder / "kafka" / "log").iterdir() if folder.is_dir()]
        names = {re.sub(r"-\d+$", "", name) for name in folders if not name.startswith("__")}
    else:
        with sqlite3.connect(here.settings.home / "log.db") as connection:
            names = {topic for (topic,) in connection.execute("SELECT topic FROM partitions")}
    assert set(TOPICS) <= names
    return {name for name in names if not name.startswith(LLM_INTAKE)}


def found(here: Installation, ours: Sequence[Canary], strangers: Sequence[Canary]) -> dict[str, set[str]]:
    """Where canaries lie in files and topics. Those that strangers produced may lie in the topic for strangers."""
    log = open_log(here.settings)
    hits = [
        found_in_files(here.folder, ours),
        found_in_files(here.folder, strangers, apart_from=(LLM_INTAKE, "log.db")),
        found_in_log(log, topics_of(here), [*ours, *strangers]),
    ]
    log.close()
    return {value: places for each in hits for value, places in each.items()}


@pytest.mark.small_models
@pytest.mark.timeout(900)
def test_nothing_that_is_kept_holds_a_canary(
    here: Installation, upstream: EchoUpstream, scale: Callable[[int, int], int]
):
    every = canaries(scale(144, 1000))
    shares = shared_out(every, (*APPLICATION_DOORS, *SERVER_DOORS, "intake"))
    if scale(0, 1):
        here.quill("ingest", str(EXAMPLES / "notes"))
    here.start()
    run_application(here, upstream, {door: shares[door] for door in APPLICATION_DOORS})
    ask_server(here, shares)
    produce(here, shares["intake"])
    expected = {kept for texts in shares.values() for _, _, kept in texts}
    store = open_store(here.settings)
    wait_until(lambda: expected <= kept_texts(store, shares), 180)
    assert sorted(expected - kept_texts(store, shares)) == []
    store.close()
    if scale(0, 1):
        here.quill("dataset", "build", "--max-rows", "8")
    assert here.stop() == 0
    produced = "".join(text for _, text, _ in shares["intake"])
    strangers = [one for one in every if one.value in produced]
    hits = found(here, [one for one in every if one not in strangers], strangers)
    print(f"\n{here.settings.log.backend}: {len(every)} canaries in {len(expected)} texts: {len(hits)} found")
    assert hits == {}
    log = open_log(here.settings)
    assert found_in_log(log, [LLM_INTAKE], strangers).keys() == {one.value for one in strangers}
    log.close()


@pytest.mark.kafka
def test_what_waits_in_the_outbox_holds_no_canary(on_kafka: Settings, own_broker: KafkaBroker, tmp_path: Path):
    settings = on_kafka.model_copy(update={"masking": MaskingSettings(patterns=PATTERNS)})
    some = canaries(200, seed="outbox")
    texts = [sentence(some[start : start + EACH]) for start in range(0, len(some), EACH)]
    log = open_log(settings)
    log.ensure_topics(TOPICS)
    emitter = open_emitter(settings, log, source="canaries")
    own_broker.kill()
    ratings = [FeedbackGiven(interaction_id=text, comment=text) for text in texts]
    assert all(receipt.wait(30) for receipt in [emitter.emit(rating) for rating in ratings])
    waiting = b"".join(file.read_bytes() for file in (settings.home / "outbox").rglob("*") if file.is_file())
    assert waiting.count(b"[BADGE]") >= len(texts)
    assert found_in_files(tmp_path, some) == {}
    own_broker.start()
    assert emitter.flush(60)
    emitter.close()
    assert len(list(records(log, LLM_FEEDBACK))) == len(texts)
    assert found_in_log(log, [LLM_FEEDBACK], some) == found_in_files(tmp_path, some) == {}
    log.close()


def test_the_search_finds_what_is_planted(tmp_path: Path):
    some = canaries(EACH * 6, seed="planted")
    assert len({one.value for one in some}) == len(some)
    plain, database, table, packed, squeezed, logged = (
        some[start : start + EACH] for start in range(0, len(some), EACH)
    )
    (tmp_path / "server.log").write_text(f"é {sentence(plain)}")
    with sqlite3.connect(tmp_path / "records.db") as connection:
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT)")
        filler = "x" * 4000  # so that the page ends somewhere in what follows
        connection.executemany("INSERT INTO t (text) VALUES (?)", [(f"{filler}{one.value}",) for one in database])
    connection.close()
    pyarrow.parquet.write_table(pyarrow.table({"text": [sentence(table)]}), tmp_path / "rows", compression="zstd")
    (tmp_path / "snapshot.gz").write_bytes(gzip.compress(sentence(packed).encode()))
    (tmp_path / "segment").write_bytes(zstandard.ZstdCompressor().compress(sentence(squeezed).encode()))
    log = EmbeddedLog(tmp_path / "log" / "log.db")
    log.append("t", [Record(key=one.value, value=b"", headers=(("h", b""),)) for one in logged[:4]])
    log.append("t", [Record(key="k", value=b"", headers=(("h", one.value.encode()),)) for one in logged[4:]])
    in_files = found_in_files(tmp_path, some, apart_from=("log.db",))
    assert in_files.keys() == {one.value for one in some if one not in logged}
    assert {place for places in in_files.values() for place in places} >= {"rows", "records.db", "snapshot.gz"}
    assert found_in_log(log, ["t"], some) == {one.value: {"t"} for one in logged}
    assert found_in_files(tmp_path, logged).keys() == {one.value for one in logged}
    log.close()
