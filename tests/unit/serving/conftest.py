"""A platform that answers from memory: the routes' stand-in for an installation."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from infra.errors import NotFound
from infra.identity import new_id
from infra.llm.chat import Decoding
from serving import faults, feedback_api, openai_api, search_api
from serving.surface import Health, IndexState, Part
from store.releases import Release
from streams.emitter import Receipt
from streams.events import Citation, Payload, Usage
from streams.protocols import Answer, AnswerRequest, RetrievedChunk, SearchResult

CHUNK = RetrievedChunk(
    chunk_id="sha256:c1",
    document_id="lora-1",
    source="notes/lora.md",
    title="LoRA",
    text="LoRA trains two small matrices.",
    score=0.5,
)


class MemoryPlatform:
    """One chunk, one release, and pieces of text that a test may hold back."""

    def __init__(self) -> None:
        self.pieces = ["LoRA trains ", "two small matrices."]
        self.output_tokens = 6
        self.problem: Exception | None = None
        self.problem_after = 0
        self.requests: list[AnswerRequest] = []
        self.emitted: list[Payload] = []
        self.refusal = ""
        self.cancelled = threading.Event()
        self.before_piece: Callable[[int], None] = lambda number: None
        self.home = "/nowhere"
        self.release = Release(prompt="grounded-post@1", model="tiny", decoding=Decoding(max_tokens=220))
        self.served = {"production": self.release}

    def search(self, question: str, limit: int) -> SearchResult:
        chunks = (CHUNK,) if "lora" in question.lower() else ()
        return SearchResult(chunks=chunks[:limit], index_build="sha256:b", index_position={"0": 3})

    def answer(self, request: AnswerRequest, on_text: Callable[[str], None] | None = None) -> Answer:
        self.requests.append(request)
        if request.channel not in self.served:
            raise NotFound("no release is promoted", seen=request.channel)
        for number, piece in enumerate(self.pieces):
            if self.problem is not None and number == self.problem_after:
                raise self.problem
            self.before_piece(number)
            if on_text is not None:
                self._say(on_text, piece)
        text = "".join(self.pieces)
        cited = Citation(
            marker=1, chunk_id=CHUNK.chunk_id, source=CHUNK.source, quote=CHUNK.text, sentence=text, support=0.9
        )
        return Answer(
            interaction_id=request.interaction_id or "made-here",
            text=text + " [1]",
            citations=(cited,),
            unsupported=(),
            chunks=(CHUNK,),
            refused=False,
            release=self.release.ref({0: 3}),
            usage=Usage(input_tokens=40, output_tokens=self.output_tokens),
            latency_ms=12.34,
        )

    def _say(self, on_text: Callable[[str], None], piece: str) -> None:
        try:
            on_text(piece)
        except Exception:
            self.cancelled.set()
            raise

    def channels(self) -> Mapping[str, Release]:
        return self.served

    def emit(self, payload: Payload, event_id: str | None = None) -> Receipt:
        receipt = Receipt(event_id or new_id())
        receipt.settle(self.refusal)
        if not self.refusal:
            self.emitted.append(payload)
        return receipt

    def health(self) -> Health:
        state = "failed" if self.problem else "ok"
        part = Part(state=state)
        return Health(status=state, version="0", pid=os.getpid(), home=self.home, parts={"log": part})

    def index(self) -> IndexState:
        return IndexState(build="sha256:b", position={"0": 3}, end={"0": 4}, documents=1, chunks=1)


@pytest.fixture
def platform() -> MemoryPlatform:
    return MemoryPlatform()


@pytest.fixture
def app(platform: MemoryPlatform) -> FastAPI:
    app = FastAPI()
    faults.install(app)
    app.include_router(openai_api.router(platform))
    app.include_router(search_api.router(platform))
    app.include_router(feedback_api.router(platform))
    return app


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client


@pytest.fixture
def live(app: FastAPI) -> Iterator[SimpleNamespace]:
    """The same app behind a real socket: for clients that hang up."""
    import socket

    import uvicorn

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=2))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield SimpleNamespace(url=f"http://127.0.0.1:{listener.getsockname()[1]}")
        server.should_exit = True
        thread.join(10)
