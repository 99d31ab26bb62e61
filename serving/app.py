"""Wiring of an installation for whoever asks it: the API, `quill up`, `quill search`, `quill write`."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import cached_property, partial
from importlib.metadata import version
from types import TracebackType
from typing import Any, Self

from fastapi import FastAPI

from infra.errors import QuillError, Unavailable
from infra.llm import local
from infra.models import resolve
from infra.settings import Settings
from monitoring.consumer import GROUP, Monitor
from monitoring.local_judge import LocalJudge
from monitoring.opening import GROUPS, open_monitor
from retrieval.opening import open_answerer, open_pipeline, open_retriever
from retrieval.pipeline import FeaturePipeline, OnProgress, Reached
from retrieval.release_default import ensure_release
from serving import faults, feedback_api, gateway_api, metrics_api, openai_api, otlp_api, search_api
from serving.background import Background
from serving.surface import CHANNEL, Health, IndexState, Part
from store.opening import Store, open_store
from store.releases import Release
from streams.emitter import Emitter, Receipt
from streams.events import CONTENT_DOCUMENTS, LLM_INTERACTIONS, OPEN_TOPICS, TOPICS, Payload
from streams.intake import Intake
from streams.log import EventLog, events_in
from streams.masking import open_masker
from streams.opening import open_emitter, open_log
from streams.progress import dead_letters_written, progress
from streams.protocols import Answer, Answerer, AnswerRequest, Retriever, SearchResult

FLUSH_SECONDS = 10.0
STOP_SECONDS = 20.0


class Rooms:
    """The rooms of one installation, each opened at first use, closed together; the `Platform` behind the API.

    `open()` opens everything and starts the consumers (`features`: the index is kept up to date here, `monitor`:
    interactions are stored and judged here, `intake`: `llm.intake` is masked here); without it only what is asked for
    is opened.
    """

    def __init__(
        self, settings: Settings, *, features: bool = False, monitor: bool = False, intake: bool = False
    ) -> None:
        self.settings = settings
        self._wanted = {"features": features, "monitor": monitor, "intake": intake}
        self._consumers: dict[str, Background] = {}
        self._monitor: Monitor | None = None
        self._stop = threading.Event()
        self._answerers: dict[str, Answerer] = {}
        self._lock = threading.RLock()
        self._answering = 0
        self._idle = threading.Condition()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @cached_property
    def log(self) -> EventLog:
        """The event log with its topics."""
        log = open_log(self.settings)
        log.ensure_topics(OPEN_TOPICS)
        return log

    @cached_property
    def store(self) -> Store:
        """The records."""
        return open_store(self.settings, self.log)

    @cached_property
    def pipeline(self) -> FeaturePipeline:
        """The only writer of the index, or the way to ask it."""
        return open_pipeline(self.settings, self.log, self.store)

    @cached_property
    def retriever(self) -> Retriever:
        """Question to chunks."""
        return open_retriever(self.settings, self.log, self.store, self.pipeline)

    @cached_property
    def emitter(self) -> Emitter:
        """The way of prompts and responses to the stream."""
        return open_emitter(self.settings, self.log)

    def open(self) -> None:
        """Open everything, make sure that something answers, start the consumers. Raises what opening raises."""
        with self._lock:
            if self._consumers or self._stop.is_set():
                return
            self.release(CHANNEL)
            _ = self.retriever, self.emitter
            work: dict[str, Callable[[threading.Event], None]] = {
                "features": self.pipeline.run,
                "monitor": self._watch,
                "intake": self._take_in,
            }
            for name, wanted in self._wanted.items():
                if wanted:
                    self._consumers[name] = Background(name, work[name], self._stop)
                    self._consumers[name].start()

    def close(self) -> None:
        """Cut short what is being written (it is recorded as cancelled), stop the consumers, flush what was
        recorded, release everything. Idempotent."""
        self._stop.set()
        with self._idle:
            self._idle.wait_for(lambda: self._answering == 0, STOP_SECONDS)
        for consumer in self._consumers.values():
            consumer.join(STOP_SECONDS)
        emitter = self.__dict__.get("emitter")
        if emitter is not None:
            emitter.flush(FLUSH_SECONDS)
        for name in ("emitter", "pipeline", "store", "log"):
            opened: Any = self.__dict__.pop(name, None)
            if opened is not None:
                opened.close()

    # --- documents ----------------------------------------------------------------------------------------

    def reach(self, targets: Mapping[int, int], on_progress: OnProgress | None = None) -> Reached:
        """Wait until the index has applied `targets`; the work is done here when no other process owns the index."""
        return self.pipeline.reach(targets, on_progress=on_progress)

    def catch_up(self) -> None:
        """Let the index apply what is on the stream now, here when no other process owns it: what was deleted must
        not be found, and what was ingested without waiting must be."""
        self.reach(self.log.end_offsets(CONTENT_DOCUMENTS))

    # --- Platform -----------------------------------------------------------------------------------------

    def search(self, question: str, limit: int) -> SearchResult:
        """See `Platform.search`."""
        return self.retriever.search(question, limit=limit)

    def answer(self, request: AnswerRequest, on_text: Callable[[str], None] | None = None) -> Answer:
        """See `Platform.answer`."""
        release = self.release(request.channel, request.conversation_id)
        with self._in_flight():
            return self._answerer(release).answer(request, partial(self._pass_on, on_text))

    def release(self, channel: str, key: str = "") -> Release:
        """The release that answers on a channel; the first one is made when the default channel has none.

        Raises `NotFound` when nothing is promoted on another channel.
        """
        if channel == CHANNEL and self.store.releases.current(CHANNEL) is None:
            self._first_release()
        return self.store.releases.resolve(channel, key)

    def channels(self) -> Mapping[str, Release]:
        """See `Platform.channels`."""
        served = self.store.releases.channels()
        ordered = sorted(served, key=lambda channel: (channel != CHANNEL, channel))
        return {channel: self.store.releases.get(served[channel]) for channel in ordered}

    def emit(self, payload: Payload, event_id: str | None = None) -> Receipt:
        """See `Platform.emit`."""
        return self.emitter.emit(payload, event_id)

    def index(self) -> IndexState:
        """See `Platform.index`."""
        counts = self.store.documents.counts()
        return IndexState(
            build=self.pipeline.build,
            position=_as_text(self.pipeline.position()),
            end=_as_text(self.log.end_offsets(CONTENT_DOCUMENTS)),
            documents=counts["documents"],
            chunks=counts["chunks"],
        )

    def health(self) -> Health:
        """See `Platform.health`."""
        parts = {
            "log": _part(lambda: {"backend": self.settings.log.backend, **self._interactions()}),
            "store": _part(lambda: dict(self.store.documents.counts())),
            "index": _part(lambda: self.index().model_dump(include={"build", "position", "end"})),
            "llm": _part(self._llm),
        }
        off = Part(state="off")
        parts |= {name: self._consumers[name].part() if name in self._consumers else off for name in self._wanted}
        failed = {name for name, part in parts.items() if part.state == "failed"}
        return Health(
            status="failed" if failed & {"log", "store"} else "degraded" if failed else "ok",
            version=version("quillstream"),
            pid=os.getpid(),
            home=str(self.settings.home),
            parts=parts,
        )

    def _answerer(self, release: Release) -> Answerer:
        with self._lock:
            if release.id not in self._answerers:
                self._answerers[release.id] = open_answerer(
                    self.settings, self.store, release, retriever=self.retriever, emitter=self.emitter
                )
            return self._answerers[release.id]

    def _first_release(self) -> None:
        if not self.settings.llm.endpoint:
            resolve(self.settings.llm.model, self.settings.models)  # an unknown name must not be promoted
        judge = LocalJudge(self.pipeline.embedder).id
        ensure_release(self.settings, self.store, build=self.pipeline.build, judge=judge, actor="quill")

    def figures(self) -> metrics_api.Figures:
        """See `metrics_api.Counted`. Nothing is opened for it but the log."""
        emitter: Emitter | None = self.__dict__.get("emitter")
        outbox = emitter.outbox_status() if emitter is not None else None
        here = metrics_api.Figures(
            emitter=emitter.counters if emitter is not None else {},
            outbox=outbox.model_dump(exclude={"gaps"}) if outbox is not None else {},
            consumers={GROUP: self._monitor.counters} if self._monitor is not None else {},
        )
        try:
            # A server that does not mask may have no right to what is not masked.
            seen = GROUPS if self._wanted["intake"] else {GROUP: GROUPS[GROUP]}
            dead = dead_letters_written(self.log, TOPICS if self._wanted["intake"] else OPEN_TOPICS)
            return replace(here, progress=progress(self.log, seen), dead_letters=dead)
        except Unavailable:
            return replace(here, log_up=False)

    def _watch(self, stop: threading.Event) -> None:
        self._monitor = open_monitor(self.settings, self.log, self.store, embedder=self.pipeline.embedder)
        self._monitor.run(stop)

    def _take_in(self, stop: threading.Event) -> None:
        Intake(self.log, open_masker(self.settings.masking)).run(stop)

    @contextmanager
    def _in_flight(self) -> Iterator[None]:
        with self._idle:
            self._answering += 1
        try:
            yield
        finally:
            with self._idle:
                self._answering -= 1
                self._idle.notify_all()

    def _pass_on(self, on_text: Callable[[str], None] | None, piece: str) -> None:
        if self._stop.is_set():
            raise Unavailable("the server is stopping", fix="ask again when it runs")
        if on_text is not None:
            on_text(piece)

    def _interactions(self) -> dict[str, int]:
        return {"interactions": events_in(self.log, LLM_INTERACTIONS)}

    def _llm(self) -> dict[str, Any]:
        model = self.settings.llm.model
        if self.settings.llm.endpoint:
            return {"model": model, "endpoint": self.settings.llm.endpoint}
        server = local.status(self.settings.models)
        return {"model": model, "server": "running" if server else "starts at the first request"}


def create_app(settings: Settings, *, features: bool = True, monitor: bool = True, intake: bool = True) -> FastAPI:
    """The API of an installation. Opens nothing before the server starts; closes everything when it ends."""
    return app_of(Rooms(settings, features=features, monitor=monitor, intake=intake))


def app_of(rooms: Rooms) -> FastAPI:
    """The API over rooms that may be open already; the app opens what is not and closes all of it."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        rooms.open()
        try:
            yield
        finally:
            rooms.close()

    app = FastAPI(
        title="Quillstream",
        version=version("quillstream"),
        summary="Text grounded in your documents, with checked citations; every answer is recorded and judged.",
        lifespan=lifespan,
    )
    faults.install(app)
    for routes in _routers(rooms):
        app.include_router(routes)
    return app


def _routers(rooms: Rooms) -> Iterable[Any]:
    gateway = gateway_api.router(rooms, gateway_api.upstream_of(rooms.settings))
    intake = feedback_api.router(rooms), otlp_api.router(rooms), gateway
    return openai_api.router(rooms), search_api.router(rooms), metrics_api.router(rooms), *intake


def _part(look: Callable[[], dict[str, Any]]) -> Part:
    try:
        return Part(state="ok", detail=look())
    except QuillError as error:
        return Part(state="failed", detail={"problem": str(error)})


def _as_text(offsets: Mapping[int, int]) -> dict[str, int]:
    return {str(partition): offset for partition, offset in sorted(offsets.items())}
