"""The feature pipeline over the real log, store and index: edits, deletions, kills, several processes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from qdrant_client import QdrantClient

from infra.embedder import HashEmbedder
from infra.errors import NotFound, Unavailable
from infra.identity import short, text_hash
from infra.settings import Settings, load_settings
from retrieval.chunking import ChunkSettings
from retrieval.index.edge import EdgeIndex
from retrieval.index.qdrant import ServerHome
from retrieval.ingest import IngestReport, publish
from retrieval.pipeline import FeaturePipeline, covers
from retrieval.search import HybridRetriever
from retrieval.sources import read_path
from store.opening import Store, open_store
from streams.codec import encode
from streams.embedded import EmbeddedLog
from streams.events import CONTENT_DOCUMENTS, DocumentUpserted, Event, now
from streams.log import EventLog, Record

WORDS = (
    "Kafka keeps records in partitions and consumers read them by offset at their own pace.",
    "Low rank adapters train two small matrices beside each frozen weight of the base model.",
    "Qdrant walks a layered graph of neighbours to find vectors that are close to the query.",
)

SHORT = ChunkSettings(merge_below=0)  # each short section of these notes is a chunk of its own


class Installation:
    """One installation under a folder, with a folder of notes to ingest."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.notes = root / "notes"
        self.notes.mkdir()
        self.settings: Settings = load_settings(
            file=root / "none.toml", environment={}, overrides={"home": root / "home"}
        )
        self.log: EventLog = EmbeddedLog(self.settings.home / "log.db")
        self.store: Store = open_store(self.settings, self.log)
        self.embedder = HashEmbedder()
        self._pipelines: list[FeaturePipeline] = []

    def pipeline(self) -> FeaturePipeline:
        self._pipelines.append(FeaturePipeline(self.settings, self.log, self.store, self.embedder, chunking=SHORT))
        return self._pipelines[-1]

    def write(self, name: str, *paragraphs: str) -> None:
        sections = "\n\n".join(f"## Part {number}\n\n{text}" for number, text in enumerate(paragraphs, start=1))
        (self.notes / name).write_text(f"# {Path(name).stem.title()}\n\n{sections}\n")

    def write_many(self, count: int) -> None:
        for number in range(count):
            self.write(f"note{number:03}.md", *(f"{text} This is note {number}." for text in WORDS))

    def publish(self) -> IngestReport:
        return publish(read_path(self.notes), self.log, self.store, scope=str(self.notes.resolve()))

    def found(self, question: str, limit: int = 8) -> list[str]:
        result = HybridRetriever(self.pipeline(), self.store, self.embedder).search(question, limit=limit)
        return [chunk.text for chunk in result.chunks]

    def indexed(self, pipeline: FeaturePipeline) -> set[str]:
        with pipeline.read() as (index, _):
            return {
                chunk_id for row in self.store.documents.list() for chunk_id in index.chunk_ids(row.document_id)
            } | ({"superfluous"} if index.count() != self.store.documents.counts()["chunks"] else set())

    def stored(self) -> set[str]:
        return {chunk.chunk_id for chunk in self.store.documents.all_chunks()}

    def close(self) -> None:
        for pipeline in self._pipelines:
            pipeline.close()
        self.store.close()
        self.log.close()


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Installation]:
    installation = Installation(tmp_path)
    yield installation
    installation.close()


def test_constructing_a_pipeline_touches_nothing(here: Installation) -> None:
    here.pipeline()
    assert not (here.settings.home / "index").exists()


def test_what_was_ingested_is_found(here: Installation) -> None:
    here.write("kafka.md", WORDS[0])
    here.write("lora.md", WORDS[1])
    report = here.publish()
    reached = here.pipeline().reach(report.targets)

    assert (report.published, report.unchanged, report.rejected) == (2, 0, [])
    assert (reached.documents, reached.chunks, reached.applied, reached.embedded) == (2, 2, 2, 2)
    assert reached.owner
    assert here.found("How do consumers read kafka partitions by offset?") == [WORDS[0]]


@pytest.mark.parametrize("at_once", [True, False])
def test_the_later_event_of_a_document_wins_whichever_comes_first_on_the_log(here: Installation, at_once: bool) -> None:
    for number, minute in enumerate((5, 3)):
        text = WORDS[number]
        data = DocumentUpserted(document_id="d", source="/d", title="D", text=text, content_hash=text_hash(text))
        event = Event(id=f"e{number}", source="test", time=now() + timedelta(minutes=minute), data=data)
        here.log.append(CONTENT_DOCUMENTS, [encode(event)])
        if number or not at_once:
            here.pipeline().reach(here.log.end_offsets(CONTENT_DOCUMENTS))
    assert [chunk.text for chunk in here.store.documents.all_chunks()] == [WORDS[0]]
    assert here.indexed(here.pipeline()) == here.stored()


def test_searching_before_anything_was_ingested_says_what_to_do(here: Installation) -> None:
    with pytest.raises(NotFound, match="quill ingest"):
        here.found("anything")


def test_ingesting_again_does_nothing(here: Installation) -> None:
    here.write_many(3)
    here.pipeline().reach(here.publish().targets)
    again = here.publish()
    reached = here.pipeline().reach(again.targets)

    assert (again.published, again.unchanged) == (0, 3)
    assert not reached.owner
    assert reached.applied == 0


def test_an_edit_replaces_the_changed_chunk_and_keeps_the_others(here: Installation) -> None:
    here.write("note.md", *WORDS)
    here.pipeline().reach(here.publish().targets)
    before = here.stored()
    here.write(
        "note.md", WORDS[0], "Tulips bloom in spring when the soil of the garden is warm enough for them.", WORDS[2]
    )
    reached = here.pipeline().reach(here.publish().targets)

    assert reached.embedded == 1
    assert len(before & here.stored()) == 2
    assert here.found("two small matrices beside each frozen weight adapters") == []
    assert here.found("when do tulips bloom in the garden")[0].startswith("Tulips")
    assert here.indexed(here.pipeline()) == here.stored()


def test_a_deleted_file_is_gone_from_search_and_store(here: Installation) -> None:
    here.write("kafka.md", WORDS[0])
    here.write("lora.md", WORDS[1])
    here.pipeline().reach(here.publish().targets)
    (here.notes / "kafka.md").unlink()
    report = here.publish()
    here.pipeline().reach(report.targets)

    assert report.deleted == 1
    assert here.found("How do consumers read kafka partitions by offset?") == []
    assert here.store.documents.counts()["documents"] == 1
    assert here.indexed(here.pipeline()) == here.stored()


def test_a_file_that_cannot_be_read_any_more_is_rejected_but_not_deleted(here: Installation) -> None:
    here.write("kafka.md", WORDS[0])
    here.pipeline().reach(here.publish().targets)
    (here.notes / "kafka.md").write_bytes(b"caf\xe9")
    report = here.publish()
    here.pipeline().reach(report.targets)

    assert report.deleted == 0
    assert "byte 0xe9 at offset 3" in report.rejected[0].reason
    assert here.found("How do consumers read kafka partitions by offset?") == [WORDS[0]]


def test_a_subfolder_ingested_by_itself_leaves_its_neighbours(here: Installation) -> None:
    (here.notes / "sub").mkdir()
    here.write("kafka.md", WORDS[0])
    here.write("sub/lora.md", WORDS[1])
    here.pipeline().reach(here.publish().targets)
    sub = here.notes / "sub"
    (sub / "lora.md").unlink()
    report = publish(read_path(sub), here.log, here.store, scope=str(sub.resolve()))

    assert report.deleted == 1
    assert here.publish().deleted == 1, "not applied yet, so the folder above sees it gone too"


def test_bad_records_go_to_the_dead_letters_and_stop_nothing(here: Installation) -> None:
    here.log.ensure_topics([CONTENT_DOCUMENTS])
    here.log.append(CONTENT_DOCUMENTS, [Record(key="x", value=b"{not json"), Record(key="y", value=b"{}")])
    here.write("kafka.md", WORDS[0])
    reached = here.pipeline().reach(here.publish().targets)

    dead = [
        record
        for partition in range(here.log.partitions(f"{CONTENT_DOCUMENTS}.dlq"))
        for record in here.log.read(f"{CONTENT_DOCUMENTS}.dlq", partition, 0)
    ]
    assert (reached.dead, reached.applied) == (2, 1)
    assert {record.value for record in dead} == {b"{not json", b"{}"}
    assert all(dict(record.headers)["dlq_error"] for record in dead)
    assert here.found("How do consumers read kafka partitions by offset?") == [WORDS[0]]


def test_a_lost_index_is_rebuilt_from_the_log_without_embedding_again(here: Installation) -> None:
    here.write_many(4)
    report = here.publish()
    here.pipeline().reach(report.targets)
    (here.notes / "note000.md").unlink()
    report = here.publish()
    here.pipeline().reach(report.targets)
    shutil.rmtree(here.settings.home / "index")
    reached = here.pipeline().reach(report.targets)

    assert reached.owner
    assert reached.embedded == 0
    assert reached.documents == 3
    assert here.indexed(here.pipeline()) == here.stored()
    assert len(here.stored()) == 9


def test_a_failure_between_store_and_index_is_made_good(here: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    here.write_many(2)
    targets = here.publish().targets

    def full(self: EdgeIndex, points: Sequence[object]) -> None:
        raise Unavailable("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(EdgeIndex, "upsert", full)
        with pytest.raises(Unavailable, match="disk is full"):
            here.pipeline().reach(targets)
    assert len(here.stored()) > 0, "the store was ahead of the index"
    reached = here.pipeline().reach(targets)

    assert reached.chunks == 6
    assert here.indexed(here.pipeline()) == here.stored()


@pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant")
def test_the_same_pipeline_writes_to_a_qdrant_collection(here: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    client = QdrantClient(":memory:")
    monkeypatch.setattr(ServerHome, "_connected", lambda self: client)
    here.settings = load_settings(
        file=here.root / "none.toml",
        environment={},
        overrides={"home": here.settings.home, "index.url": "http://127.0.0.1:6333"},
    )
    here.write("kafka.md", WORDS[0])
    here.write("lora.md", WORDS[1])
    reached = here.pipeline().reach(here.publish().targets)
    assert reached.owner
    assert here.found("How do consumers read kafka partitions by offset?") == [WORDS[0]]
    (here.notes / "kafka.md").unlink()
    here.pipeline().reach(here.publish().targets)

    assert here.found("How do consumers read kafka partitions by offset?") == []
    assert client.count(f"quillstream-{short(reached.build)}").count == 1
    assert not list((here.settings.home / "index").glob("*/published"))


# --- several processes ------------------------------------------------------------------------------------

CHILD = """
import sys, threading, time
from pathlib import Path
from infra.embedder import HashEmbedder
from infra.settings import load_settings
from retrieval.chunking import ChunkSettings
from retrieval.pipeline import FeaturePipeline
from retrieval.search import HybridRetriever
from store.opening import open_store
from streams.embedded import EmbeddedLog
from streams.events import CONTENT_DOCUMENTS

class SlowEmbedder(HashEmbedder):
    def embed(self, texts, on_progress=None):
        time.sleep(float(sys.argv[3]) * len(texts))
        return super().embed(texts, on_progress)

settings = load_settings(file=Path("none.toml"), environment={}, overrides={"home": sys.argv[1]})
log = EmbeddedLog(settings.home / "log.db")
store = open_store(settings, log)
embedder = SlowEmbedder()
pipeline = FeaturePipeline(settings, log, store, embedder, chunking=ChunkSettings(merge_below=0))

def reach():
    pipeline.reach(log.end_offsets(CONTENT_DOCUMENTS), on_progress=lambda *done: print(*done, flush=True))

def run():
    stop = threading.Event()
    thread = threading.Thread(target=pipeline.run, args=(stop,))
    thread.start()
    print("running", flush=True)
    sys.stdin.readline()
    stop.set()
    thread.join()

def search():
    retriever = HybridRetriever(pipeline, store, embedder)
    seen, searches = set(), 0
    print("searching", flush=True)
    while Path(sys.argv[1], "go on").exists():
        result = retriever.search("How do consumers read kafka partitions by offset?")
        assert result.chunks, "an older snapshot already held the answer"
        seen.add(tuple(sorted(result.index_position.items())))
        searches += 1
    print("snapshots", len(seen), "searches", searches, flush=True)

{"reach": reach, "run": run, "search": search}[sys.argv[2]]()
"""


@pytest.fixture
def child(here: Installation) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a process of this installation; each one is ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(what: str, seconds_per_chunk: float = 0.0) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CHILD, str(here.settings.home), what, str(seconds_per_chunk)]
        started.append(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    text = process.stdout.readline()
    assert text or process.poll() is None or process.stderr is None, process.stderr.read()
    return text.strip()


def test_a_killed_owner_leaves_work_that_another_process_completes(
    here: Installation, child: Callable[..., subprocess.Popen[str]]
) -> None:
    here.write_many(40)
    report = here.publish()
    owner = child("reach", 0.02)
    while int((line(owner).split() or ["0"])[0]) < 16:
        pass
    time.sleep(0.1)  # into the next batch
    owner.kill()
    owner.wait()
    begun = here.store.documents.counts()["documents"]
    reached = here.pipeline().reach(report.targets)

    assert begun > 0
    assert reached.owner
    assert 0 < reached.applied < 40, "what the killed owner had finished was not done again"
    assert (reached.documents, reached.chunks) == (40, 120)
    assert here.indexed(here.pipeline()) == here.stored()


def test_reach_waits_for_the_owner_and_takes_over_when_it_dies(
    here: Installation, child: Callable[..., subprocess.Popen[str]]
) -> None:
    here.write_many(30)
    report = here.publish()
    owner = child("reach", 0.05)
    line(owner)
    results: list[bool] = []
    waiting = threading.Thread(target=lambda: results.append(here.pipeline().reach(report.targets).owner))
    waiting.start()
    time.sleep(0.3)
    assert waiting.is_alive()
    owner.kill()
    waiting.join()

    assert results == [True]
    assert here.indexed(here.pipeline()) == here.stored()


def test_while_a_server_owns_the_index_others_ask_it_and_read_along(
    here: Installation, child: Callable[..., subprocess.Popen[str]]
) -> None:
    server = child("run")
    line(server)
    here.write("kafka.md", WORDS[0])
    targets = here.publish().targets
    reached = here.pipeline().reach(targets, timeout=60)
    if reached.owner:  # the child had not taken the lock yet; from now on it has
        here.write("lora.md", WORDS[1])
        time.sleep(1)
        reached = here.pipeline().reach(here.publish().targets, timeout=60)

    assert not reached.owner
    assert here.found("How do consumers read kafka partitions by offset?") == [WORDS[0]]
    _, errors = server.communicate("stop\n", timeout=60)
    assert (server.returncode, errors) == (0, "")


def test_two_readers_and_a_writer_do_not_disturb_each_other(
    here: Installation, child: Callable[..., subprocess.Popen[str]]
) -> None:
    here.write("kafka.md", WORDS[0])
    pipeline = here.pipeline()
    pipeline.reach(here.publish().targets)
    (here.settings.home / "go on").touch()
    readers = [child("search"), child("search")]
    assert [line(reader) for reader in readers] == ["searching", "searching"]
    for number in range(12):
        here.write(f"more{number}.md", *(f"{text} Number {number}." for text in WORDS[1:]))
        pipeline.reach(here.publish().targets)
    (here.settings.home / "go on").unlink()
    outputs = [reader.communicate(timeout=60) for reader in readers]

    assert [(reader.returncode, errors) for reader, (_, errors) in zip(readers, outputs, strict=True)] == [(0, "")] * 2
    for text, _ in outputs:
        _, snapshots, _, searches = text.split()
        assert int(snapshots) > 1
        assert int(searches) > 5
    kept = [folder.name for folder in next((here.settings.home / "index").iterdir()).glob("published/[0-9]*")]
    assert len(kept) == 2


def test_in_its_owner_a_search_sees_the_live_index(here: Installation) -> None:
    here.write("kafka.md", WORDS[0])
    pipeline = here.pipeline()
    stop = threading.Event()
    thread = threading.Thread(target=pipeline.run, args=(stop,))
    thread.start()
    try:
        targets = here.publish().targets
        while not covers(pipeline.position(), targets):
            time.sleep(0.01)
        with pipeline.read() as (index, position):
            assert isinstance(index, EdgeIndex)
            assert covers(position, targets)
            assert index.count() == 1
    finally:
        stop.set()
        thread.join()
    assert here.found("How do consumers read kafka partitions by offset?") == [WORDS[0]]


def test_reach_gives_up_in_time_and_keeps_what_was_done(here: Installation) -> None:
    here.write("kafka.md", WORDS[0])
    targets = here.publish().targets
    beyond = {partition: offset + 1 for partition, offset in targets.items()}
    with pytest.raises(Unavailable, match="did not reach"):
        here.pipeline().reach(beyond, timeout=0.5)

    assert here.found("How do consumers read kafka partitions by offset?") == [WORDS[0]]
