"""Wiring: the rooms below assembled from settings, for assets, sensors and the demo.

Every method here is one call into a room plus the arguments it needs; what it returns is a manifest's summary
with the id of what was made, ready to be shown as asset metadata.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import PrivateAttr

from dagster_project import contenders, promotion
from dagster_project.corpus import read_corpus
from dagster_project.progress import report
from dagster_project.tail import News, new_records
from infra.artifacts import Manifest
from infra.embedder import Embedder, open_embedder
from infra.errors import QuillError
from infra.settings import Settings, load_settings
from monitoring.local_judge import LocalJudge
from retrieval.ingest import publish
from retrieval.opening import open_pipeline, open_retriever
from retrieval.pipeline import FeaturePipeline
from store.opening import Store, open_store
from streams.emitter import Emitter
from streams.events import CONTENT_DOCUMENTS, OPEN_TOPICS, OPS_ALERTS, AlertChanged
from streams.log import EventLog
from streams.opening import open_emitter, open_log
from streams.protocols import Retriever

Metadata = Mapping[str, Any]
Check = tuple[bool, dict[str, Any]]
CHANNEL = "production"


class Wiring:
    """The rooms of one installation, opened on first use."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

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
        return open_pipeline(self.settings, self.log, self.store, self.embedder)

    @cached_property
    def emitter(self) -> Emitter:
        """The way of prompts and responses to the stream."""
        return open_emitter(self.settings, self.log)

    @cached_property
    def embedder(self) -> Embedder:
        """The embedder, loaded once for retrieval and judging."""
        return open_embedder(self.settings.models)

    @cached_property
    def retriever(self) -> Retriever:
        """Question to chunks."""
        return open_retriever(self.settings, self.log, self.store, self.pipeline)

    @cached_property
    def local_judge(self) -> LocalJudge:
        """The judge that scores everything."""
        return LocalJudge(self.embedder)

    def close(self) -> None:
        """Flush and release what was opened, in reverse order."""
        for name in ("emitter", "pipeline", "store", "log"):
            opened = self.__dict__.pop(name, None)
            if opened is not None:
                opened.close()

    # --- assets -------------------------------------------------------------------------------------------

    def publish_documents(self, corpus: str) -> Metadata:
        """Read a corpus (empty: the built-in one) and publish what is new, changed or gone."""
        documents, scope = read_corpus(corpus)
        outcome = publish(documents, self.log, self.store, scope=scope, on_progress=_count_documents)
        return {
            "published": outcome.published,
            "unchanged": outcome.unchanged,
            "deleted": outcome.deleted,
            "rejected": len(outcome.rejected),
            "rejections": [f"{one.source}: {one.reason}" for one in outcome.rejected][:20],
        }

    def reach_features(self) -> Metadata:
        """Ask the index owner to reach the end of `content.documents` as it is now."""
        targets = self.log.end_offsets(CONTENT_DOCUMENTS)
        reached = self.pipeline.reach(targets, on_progress=_progress("features"))
        return {"id": reached.build, **self.store.documents.counts(), "position": dict(_keys_as_text(reached.position))}

    def build_dataset(self, max_rows: int) -> Metadata:
        """Instruct rows from the chunks; with an external endpoint the LLM writes the instructions."""
        from infra.llm.opening import open_chat
        from training.dataset import build

        writer = open_chat(self.settings.llm, self.settings.models) if self.settings.llm.endpoint else None
        manifest = build(self.store, writer=writer, max_rows=max_rows, on_progress=_progress("instruct_dataset"))
        return described(manifest)

    def train_adapter(self, dataset_id: str, recipe: str) -> Metadata:
        """Train the adapter of a dataset and prove that what is served is what was trained."""
        from training.lora import train
        from training.recipes import recipe_named

        return described(
            train(
                self.store.artifacts,
                self.store.artifacts.get("dataset", dataset_id),
                recipe_named(recipe, self.settings.models.adapter_base),
                self.settings.models,
                on_progress=_progress("adapter"),
            )
        )

    def evaluate(self, adapter_id: str, *, requests: Sequence[str], max_tokens: int, alert_id: str) -> Metadata:
        """Compare contenders for a release, or report on the release and slice of an alert."""
        if alert_id:
            from monitoring.evaluation import report as evaluation_report

            return described(evaluation_report(self.store, alert_id=alert_id))
        return described(
            contenders.compare_all(
                self, adapter_id, requests, max_tokens=max_tokens, on_progress=_progress("evaluation_report")
            )
        )

    def promote(self, comparison_id: str) -> Metadata:
        """Promote the comparison's winner to production, or keep the default when it is undecided."""
        return promotion.promote_winner(self, self.store.artifacts.get("comparison", comparison_id), channel=CHANNEL)

    # --- checks -------------------------------------------------------------------------------------------

    def check_documents(self) -> Check:
        """Some document is known to the log."""
        known = sum(self.log.end_offsets(CONTENT_DOCUMENTS).values())
        return known > 0, {"records": known}

    def check_index(self) -> Check:
        """The index holds as many points as the feature store has chunks."""
        chunks = self.store.documents.counts()["chunks"]
        with self.pipeline.read() as (index, _position):
            points = index.count()
        return chunks == points, {"chunks": chunks, "points": points}

    def check_dataset(self, dataset_id: str) -> Check:
        """Train and held-out share no document."""
        from training.dataset import documents_on_both_sides

        shared = documents_on_both_sides(self.store.artifacts, dataset_id)
        return not shared, {"shared_documents": sorted(shared)}

    def check_adapter(self, adapter_id: str) -> Check:
        """The serving proof holds and discriminates."""
        proof = dict(self.store.artifacts.get("adapter", adapter_id).summary["proof"])
        return bool(proof["matches"] and proof["discriminates"]), proof

    def check_release(self) -> Check:
        """Production resolves to a release whose parts exist."""
        try:
            current = self.store.releases.resolve(CHANNEL)
            self.store.prompts.get(current.prompt)
            if current.adapter:
                self.store.artifacts.verify("adapter", current.adapter)
        except QuillError as error:
            return False, {"problem": str(error)}
        return True, {"release": current.id, "model": current.model, "adapter": current.adapter or ""}

    # --- sensors ------------------------------------------------------------------------------------------

    def new_documents(self, cursor: str) -> News:
        """Whether `content.documents` grew since a cursor."""
        return new_records(self.log, CONTENT_DOCUMENTS, cursor, lambda event: event.id)

    def new_alerts(self, cursor: str) -> News:
        """Ids of alerts that were open in the records since a cursor."""
        return new_records(self.log, OPS_ALERTS, cursor, lambda event: _open_alert(event.data))


_shared: ContextVar[Wiring | None] = ContextVar("quillstream_wiring", default=None)


@contextmanager
def sharing(wiring: Wiring) -> Iterator[None]:
    """Runs inside the block, in this thread, work on this wiring and leave closing it to its owner."""
    token = _shared.set(wiring)
    try:
        yield
    finally:
        _shared.reset(token)


class QuillResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The installation that assets and sensors work on; settings resolve when a run starts."""

    overrides: dict[str, str] = {}  # noqa: RUF012 - a pydantic field, copied per instance
    _wiring: Wiring | None = PrivateAttr(default=None)

    @contextmanager
    def yield_for_execution(
        self,
        context: dg.InitResourceContext,  # noqa: ARG002 - Dagster's signature
    ) -> Iterator["QuillResource"]:
        """Close what the run opened when it ends, however it ends."""
        try:
            yield self
        finally:
            if self._wiring is not None:
                self._wiring.close()
                self._wiring = None

    def wiring(self) -> Wiring:
        """The rooms of this installation."""
        shared = _shared.get()
        if shared is not None:
            return shared
        if self._wiring is None:
            self._wiring = Wiring(load_settings(overrides=self.overrides))
        return self._wiring


def described(manifest: Manifest) -> dict[str, Any]:
    """A manifest as asset metadata: kind, id, and the summary."""
    return {"kind": manifest.kind, "id": manifest.id, **manifest.summary}


def _count_documents(read: int) -> None:
    report("documents", read)


def _progress(stage: str) -> Callable[..., None]:
    return partial(_forward, stage)


def _forward(stage: str, done: int, total: int, note: object = "") -> None:
    report(stage, done, total, str(note))


def _keys_as_text(offsets: Mapping[int, int]) -> Iterator[tuple[str, int]]:
    return ((str(partition), offset) for partition, offset in sorted(offsets.items()))


def _open_alert(payload: object) -> str:
    return payload.alert_id if isinstance(payload, AlertChanged) and payload.state == "open" else ""


def home_of(settings: Settings) -> Path:
    """Where Dagster keeps its runs for this installation."""
    return settings.home / "dagster"
