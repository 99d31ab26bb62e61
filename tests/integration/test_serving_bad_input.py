"""Bad input gets one clear line and exit code 2, and what is stored stays."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from infra.cli import main
from infra.identity import content_id
from infra.settings import load_settings
from store.opening import Store, open_store
from store.releases import Release
from streams.opening import open_log

NOTES = Path(__file__).resolve().parents[2] / "examples" / "notes"
SMALL = "smollm2-135m-instruct"

pytestmark = pytest.mark.small_models


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def grounded(tmp_path_factory) -> Path:
    """A home with one indexed document, made once and copied for each test."""
    home = tmp_path_factory.mktemp("grounded") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home.parent)
        patch.setenv("QUILL_HOME", str(home))
        with pytest.raises(SystemExit) as end:
            main(["ingest", str(NOTES / "lora.md"), "--json"])
    assert not end.value.code
    return home


@pytest.fixture
def home(grounded, tmp_path, monkeypatch) -> Path:
    home = tmp_path / "home"
    shutil.copytree(grounded, home)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUILL_HOME", str(home))
    monkeypatch.setenv("QUILL_LLM_MODEL", SMALL)
    monkeypatch.setenv("QUILL_JUDGE_SAMPLE", "0")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return home


@pytest.fixture
def quill(home, capfd) -> Callable[..., Outcome]:
    def run(*arguments: str) -> Outcome:
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return Outcome(int(end.value.code or 0), out, err)

    return run


@pytest.fixture
def store(home) -> Iterator[Store]:
    store = open_store(load_settings())
    yield store
    store.close()


@pytest.fixture(autouse=True)
def nothing_is_lost(home) -> Iterator[None]:
    """After each test the document that was there is there."""
    yield
    store = open_store(load_settings(environment={"QUILL_HOME": str(home)}))
    try:
        sources = [row.source for row in store.documents.list()]
        assert str(NOTES / "lora.md") in sources
    finally:
        store.close()


def one_line(outcome: Outcome, *named: str) -> None:
    assert outcome.code == 2, outcome
    lines = [line for line in outcome.err.splitlines() if line.startswith("quill: ")]
    assert len(lines) == 1, outcome.err
    for words in named:
        assert words in lines[0]


def bad_documents(folder: Path) -> None:
    (folder / "empty.md").write_bytes(b"")
    (folder / "binary.txt").write_bytes(bytes(range(256)) * 40)
    (folder / "latin.txt").write_bytes("Größe und Maß".encode("latin-1"))
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7 nothing")
    with (folder / "huge.txt").open("wb") as huge:
        huge.truncate(100_000_000)
    (folder / "locked.md").write_text("# Locked\n\nNobody may read this.\n")


def test_unusable_documents_are_rejected_with_reasons_and_the_good_ones_go_in(quill, tmp_path, monkeypatch):
    folder = tmp_path / "mixed"
    folder.mkdir()
    bad_documents(folder)
    (folder / "good.md").write_text("# Ropewalks\n\nA ropewalk is a long lane where strands were laid and twisted.\n")
    read_bytes = Path.read_bytes

    def refuses(path: Path) -> bytes:
        if path.name == "locked.md":
            raise PermissionError(13, "Permission denied")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refuses)  # tests may run as root, whom no mode keeps out
    outcome = quill("ingest", str(folder), "--json")
    assert outcome.code == 0, outcome
    report = json.loads(outcome.out)
    reasons = {Path(one["source"]).name: one["reason"] for one in report["rejected"]}
    assert report["published"] == 1
    assert sorted(reasons) == ["binary.txt", "broken.pdf", "empty.md", "huge.txt", "latin.txt", "locked.md"]
    assert "empty" in reasons["empty.md"]
    assert "binary" in reasons["binary.txt"]
    assert "UTF-8" in reasons["latin.txt"]
    assert "100.0 MB" in reasons["huge.txt"]
    assert "Permission denied" in reasons["locked.md"]
    assert "twisted" in json.loads(quill("search", "ropewalk", "--json", "--limit", "1").out)[0]["text"]


def test_nothing_but_unusable_documents_exits_2(quill, tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "empty.md").write_bytes(b"")
    outcome = quill("ingest", str(folder))
    assert outcome.code == 2
    assert "rejected 1" in outcome.out
    assert "empty.md: it is empty" in outcome.err


def test_a_document_that_became_unusable_is_kept_as_it_was(quill, tmp_path):
    note = tmp_path / "notes" / "ropes.md"
    note.parent.mkdir()
    note.write_text("# Ropes\n\nA ropewalk is a long lane where strands were laid and twisted.\n")
    assert quill("ingest", str(note.parent)).code == 0
    note.write_bytes(b"\0\1\2")
    assert quill("ingest", str(note.parent)).code == 2
    assert "twisted" in json.loads(quill("search", "ropewalk", "--json", "--limit", "1").out)[0]["text"]


def test_what_was_not_waited_for_is_found_by_the_next_search_and_what_is_gone_is_not(quill, tmp_path):
    note = tmp_path / "notes" / "ropes.md"
    note.parent.mkdir()
    note.write_text("# Ropes\n\nA ropewalk is a long lane where strands were laid and twisted.\n")
    assert json.loads(quill("ingest", str(note.parent), "--no-wait", "--json").out)["searchable"] is False
    assert "twisted" in json.loads(quill("search", "ropewalk", "--json", "--limit", "1").out)[0]["text"]
    note.unlink()
    assert json.loads(quill("ingest", str(note.parent), "--no-wait", "--json").out)["deleted"] == 1
    found = json.loads(quill("search", "ropewalk", "--json").out)
    assert [hit for hit in found if "twisted" in hit["text"]] == []


def test_a_path_that_does_not_exist(quill, tmp_path):
    one_line(quill("ingest", str(tmp_path / "nowhere")), "nothing at this path", "nowhere")


@pytest.mark.parametrize("verb", ["search", "write"])
def test_an_installation_without_documents(quill, tmp_path, monkeypatch, verb):
    monkeypatch.setenv("QUILL_HOME", str(tmp_path / "empty"))
    one_line(quill(verb, "What is LoRA?"), "ingest")


@pytest.mark.parametrize("verb", ["search", "write"])
def test_an_empty_question(quill, verb):
    one_line(quill(verb, "  "), "not a question")


def test_an_unknown_model(quill, store, monkeypatch):
    monkeypatch.setenv("QUILL_LLM_MODEL", "qwen-99b")
    one_line(quill("write", "What is LoRA?"), "unknown model", "qwen-99b", SMALL)
    assert store.releases.list() == []


def test_an_unknown_channel(quill):
    one_line(quill("write", "What is LoRA?", "--channel", "canary"), "no release is promoted", "canary")


@pytest.fixture
def refusing_endpoint() -> Iterator[str]:
    """An endpoint that wants a key and does not like any."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps({"error": {"message": "Incorrect API key", "type": "invalid_request_error"}}).encode()
            self.send_response(401)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


def test_a_missing_key(quill, refusing_endpoint, monkeypatch):
    monkeypatch.setenv("QUILL_LLM_ENDPOINT", refusing_endpoint)
    one_line(quill("write", "What is LoRA?"), "refused the API key", refusing_endpoint, "llm.api_key")


def test_an_unreachable_endpoint(quill, monkeypatch):
    monkeypatch.setenv("QUILL_LLM_ENDPOINT", "http://127.0.0.1:1/v1")
    one_line(quill("write", "What is LoRA?"), "cannot be reached", "127.0.0.1:1")


@pytest.mark.parametrize("verb", [["ingest", str(NOTES / "qlora.md")], ["search", "LoRA"], ["write", "LoRA?"]])
def test_an_unreachable_broker(quill, monkeypatch, verb):
    monkeypatch.setenv("QUILL_LOG_BACKEND", "kafka")
    monkeypatch.setenv("QUILL_LOG_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    one_line(quill(*verb), "127.0.0.1:1")


def test_a_corrupt_adapter(quill, store):
    adapter = store.artifacts.build("adapter", content_id("adapter", "test"), {}, with_adapter_file)
    path = store.artifacts.path("adapter", adapter.id) / "adapter.gguf"
    assert quill("write", "What is LoRA?", "--json").code == 0
    release = store.releases.resolve("production").model_copy(update={"adapter": adapter.id})
    store.releases.promote("production", store.releases.put(Release(**dict(release))).id, reason="test", actor="test")
    path.write_bytes(b"bent")
    one_line(quill("write", "What is LoRA?"), "adapter.gguf does not match its manifest")
    assert quill("release", "rollback", "--reason", "corrupt").code == 0
    assert quill("write", "What is LoRA?", "--json").code == 0


def with_adapter_file(folder: Path) -> dict:
    (folder / "adapter.gguf").write_bytes(b"GGUF whatever")
    return {}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("home = [", "quillstream.toml"),
        ("[llm]\nmodle = 'x'\n", "llm.modle"),
        ("[server]\nport = 99999\n", "server.port"),
        ("[log]\nbackend = 'pulsar'\n", "log.backend"),
    ],
)
def test_a_malformed_settings_file(quill, tmp_path, text, named):
    (tmp_path / "quillstream.toml").write_text(text)
    one_line(quill("search", "LoRA"), named)
    (tmp_path / "quillstream.toml").unlink()
    assert quill("search", "LoRA", "--json").code == 0


def test_a_database_of_no_known_kind(quill, monkeypatch):
    monkeypatch.setenv("QUILL_DATABASE_URL", "oracle://x")
    one_line(quill("search", "LoRA"), "database.url")


def test_doctor_reports_what_failed_and_exits_2(quill, monkeypatch):
    monkeypatch.setenv("QUILL_LLM_ENDPOINT", "http://127.0.0.1:1/v1")
    monkeypatch.setenv("QUILL_LLM_API_KEY", "sk-very-secret")
    outcome = quill("doctor", "--json")
    assert outcome.code == 2
    assert "sk-very-secret" not in outcome.out + outcome.err
    report = json.loads(outcome.out)
    checks = {check["name"]: check for check in report["checks"]}
    assert checks["writer"]["state"] == "failed"
    assert checks["writer"]["fix"]
    assert {checks[name]["state"] for name in ("home", "database", "embedder")} == {"ok"}
    origins = {row["setting"]: row["origin"] for row in report["settings"]}
    assert origins["llm.endpoint"] == "QUILL_LLM_ENDPOINT"
    assert origins["server.port"] == "default"


def test_doctor_is_content_with_a_sound_installation(quill):
    outcome = quill("doctor", "--json")
    assert outcome.code == 0, outcome
    states = {check["name"]: check["state"] for check in json.loads(outcome.out)["checks"]}
    assert "failed" not in states.values()
    assert len(states) >= 9


def test_store_and_log_agree_afterwards(quill, home):
    settings = load_settings()
    log = open_log(settings)
    try:
        assert sum(log.end_offsets("content.documents").values()) == 1
    finally:
        log.close()
