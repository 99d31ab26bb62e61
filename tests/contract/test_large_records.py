"""Values too long for a record come through on both logs; one whose artifact is gone is put aside with that reason."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from kafka import KafkaAdminClient

from infra.errors import InputError
from infra.identity import new_id
from infra.kafka_broker import KafkaBroker
from infra.settings import LogSettings, Settings
from retrieval.ingest import publish
from retrieval.sources import SourceDocument
from store.opening import open_store
from streams.codec import decode, encode
from streams.consumer import Consumer
from streams.dead_letters import dead_letter_topic, dead_letters, read_letter, replay
from streams.events import CONTENT_DOCUMENTS, LLM_INTAKE, LLM_INTERACTIONS, DocumentUpserted, Event
from streams.large_records import MAX_VALUE_BYTES, is_claim
from streams.log import MAX_RECORD_BYTES, EventLog, Record, StoredRecord, lag
from streams.opening import open_log

DLQ = dead_letter_topic(CONTENT_DOCUMENTS)
Open = Callable[[], EventLog]


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def here(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """An installation with an empty log."""
    if request.param == "embedded":
        yield Settings(home=tmp_path / "home")
        return
    broker: KafkaBroker = request.getfixturevalue("kafka_broker")
    with closing(KafkaAdminClient(bootstrap_servers=broker.address)) as admin:
        for _ in range(2):
            admin.delete_topics([each for each in (CONTENT_DOCUMENTS, DLQ) if each in admin.list_topics()])
            if _ == 0:
                yield Settings(
                    home=tmp_path / "home", log=LogSettings(backend="kafka", bootstrap_servers=broker.address)
                )


@pytest.fixture
def log(here: Settings) -> Iterator[EventLog]:
    log = open_log(here)
    yield log
    log.close()


def everything(log: EventLog, topic: str) -> list[StoredRecord]:
    found: list[StoredRecord] = []
    for partition, end in log.end_offsets(topic).items():
        position = 0
        while position < end and (batch := log.read(topic, partition, position)):
            found += batch
            position = batch[-1].offset + 1
    return found


def raw(here: Settings, topic: str, tmp_path: Path) -> list[StoredRecord]:
    """The records as the log has them: opened where no artifact lies."""
    elsewhere = here.log.model_copy(update={"claims": str(tmp_path / "nowhere")})
    with closing(open_log(here.model_copy(update={"log": elsewhere}))) as log:
        return everything(log, topic)


def noise(size: int, seed: str) -> bytes:
    return random.Random(seed).randbytes(size)


def test_a_document_of_40_mb_is_ingested(here: Settings, log: EventLog, tmp_path: Path):
    text = noise(20_000_000, "document").hex()
    small = SourceDocument(source="small.txt", title="small", text="A short one.")
    large = SourceDocument(source="large.txt", title="large", text=text)
    with closing(open_store(here)) as store:
        report = publish([small, large], log, store, scope="test")
    assert (report.published, report.rejected) == (2, [])
    seen: list[DocumentUpserted] = []

    def handle(event: Event, record: StoredRecord) -> None:
        assert isinstance(event.data, DocumentUpserted)
        seen.append(event.data)

    consumer = Consumer(log, new_id(), {CONTENT_DOCUMENTS: handle})
    assert consumer.run_until({CONTENT_DOCUMENTS: report.targets}, 60) == 2
    assert {each.title: each.text for each in seen} == {"small": "A short one.", "large": text}
    in_log = {each.key: each for each in raw(here, CONTENT_DOCUMENTS, tmp_path)}
    assert is_claim(in_log[large.document_id])
    assert len(in_log[large.document_id].value) < 200
    assert not is_claim(in_log[small.document_id])


def test_a_dead_letter_of_17_mb_keeps_its_bytes_and_is_replayed(log: EventLog):
    poison = noise(17_000_000, "letter")
    log.append(CONTENT_DOCUMENTS, [Record("k", poison, (("x", b"1"),))])
    consumer = Consumer(log, new_id(), {CONTENT_DOCUMENTS: lambda event, record: None})
    consumer.run_until({CONTENT_DOCUMENTS: log.end_offsets(CONTENT_DOCUMENTS)}, 60)
    (letter,) = dead_letters(log, CONTENT_DOCUMENTS)
    assert letter.size == len(poison)
    assert letter.error.startswith("UndecodableEvent: the header ce_id is missing")
    assert read_letter(log, letter).value == poison
    replay(log, letter)
    assert [(each.value, each.headers) for each in everything(log, CONTENT_DOCUMENTS)] == [(poison, (("x", b"1"),))] * 2


def test_without_its_artifact_a_record_is_put_aside_until_it_is_back(here: Settings, log: EventLog, tmp_path: Path):
    data = DocumentUpserted(
        document_id="d", source="d.txt", title="d", text="x" * MAX_RECORD_BYTES, content_hash="sha256:0"
    )
    record = encode(Event(data=data))
    log.append(CONTENT_DOCUMENTS, [record])
    folder = here.home / "artifacts"
    shutil.move(folder, tmp_path / "away")
    seen: list[str] = []
    consumer = Consumer(log, new_id(), {CONTENT_DOCUMENTS: lambda event, record: seen.append(event.id)})
    consumer.run_until({CONTENT_DOCUMENTS: log.end_offsets(CONTENT_DOCUMENTS)}, 60)
    (letter,) = dead_letters(log, CONTENT_DOCUMENTS)
    assert "too long for a record, and the artifact that holds it is not here" in letter.error
    assert seen == []
    shutil.move(tmp_path / "away", folder)
    replay(log, letter)
    consumer.run_until({CONTENT_DOCUMENTS: log.end_offsets(CONTENT_DOCUMENTS)}, 60)
    assert seen == [decode(record).id]
    value = next(folder.glob("record/*/value"))
    value.write_bytes(b"y" + value.read_bytes()[1:])
    assert {is_claim(each) for each in everything(log, CONTENT_DOCUMENTS)} == {True}


def test_outputs_may_be_long_too_and_polls_bring_what_memory_takes(log: EventLog, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("streams.large_records.HELD_BYTES", 40_000_000)
    source, group = f"t.{new_id()}", new_id()
    log.append(source, [Record("k", b"go")])
    with log.join(group, [source]) as reader:
        while not (batch := reader.poll(timeout=1.0)):
            pass
        outputs = [(DLQ, Record("k", noise(17_000_000, str(index)), ())) for index in range(4)]
        reader.publish(outputs, {(source, batch[0].partition): batch[0].offset + 1})
    sizes: list[int] = []
    values: list[bytes] = []
    with log.join(group, [DLQ]) as reader:
        while len(values) < 4:
            if batch := reader.poll(timeout=1.0):
                sizes.append(len(batch))
                values += [each.value for each in batch]
                reader.commit({(each.topic, each.partition): each.offset + 1 for each in batch})
    assert values == [record.value for _, record in outputs]
    assert max(sizes) == 2
    assert lag(log, group, source) == 0


@pytest.mark.parametrize("topic", [LLM_INTERACTIONS, f"{LLM_INTAKE}.dlq", f"{LLM_INTAKE}.g.retry"])
def test_other_topics_keep_the_limit_of_a_record(tmp_path: Path, topic: str):
    log = open_log(Settings(home=tmp_path))
    with pytest.raises(InputError, match="too long"):
        log.append(topic, [Record("k", bytes(MAX_RECORD_BYTES + (64 << 10)))])
    with pytest.raises(InputError, match=f"at most {MAX_VALUE_BYTES} bytes"):
        log.append(CONTENT_DOCUMENTS, [Record("k", bytes(MAX_VALUE_BYTES + 1))])
    assert not (tmp_path / "artifacts").exists()
    log.close()


def test_forged_claims_lead_nowhere(tmp_path: Path):
    log = open_log(Settings(home=tmp_path))
    (tmp_path / "artifacts" / "record").mkdir(parents=True)
    (tmp_path / "value").write_bytes(b"secret")
    marks = (("content-type", b"application/vnd.quillstream.claim+json"),)
    for value in (b'{"artifact": "sha256:../../.."}', b'{"artifact": 1}', b"[]", b"\xff", b""):
        log.append(CONTENT_DOCUMENTS, [Record("k", value, marks)])
    assert [each.headers for each in everything(log, CONTENT_DOCUMENTS)] == [marks] * 5
    log.close()
