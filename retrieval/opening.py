"""Opening the parts of this room from settings."""

from __future__ import annotations

from infra.embedder import Embedder, open_embedder
from infra.llm.opening import open_chat
from infra.settings import Settings
from retrieval.answer import GroundedAnswerer, Recorder
from retrieval.pipeline import FeaturePipeline
from retrieval.search import HybridRetriever
from store.opening import Store
from store.releases import Release
from streams.log import EventLog
from streams.protocols import Answerer, Retriever


def open_pipeline(settings: Settings, log: EventLog, store: Store, embedder: Embedder | None = None) -> FeaturePipeline:
    """The feature pipeline of an installation. Nothing is opened or loaded before it is used."""
    return FeaturePipeline(settings, log, store, embedder or open_embedder(settings.models))


def open_retriever(
    settings: Settings, log: EventLog, store: Store, pipeline: FeaturePipeline | None = None
) -> Retriever:
    """A retriever over the newest index: the live one where `pipeline` owns it, else the published one."""
    pipeline = pipeline or open_pipeline(settings, log, store)
    return HybridRetriever(pipeline, store, pipeline.embedder)


def open_answerer(
    settings: Settings, store: Store, release: Release, *, retriever: Retriever, emitter: Recorder
) -> Answerer:
    """What answers as a release says: its prompt, model and adapter; citations use the retriever's embedder.

    Raises `NotFound` for an unknown prompt or adapter and `CorruptArtifact` for an adapter whose bytes changed.
    """
    adapter = store.artifacts.verify("adapter", release.adapter) / "adapter.gguf" if release.adapter else None
    return GroundedAnswerer(
        retriever,
        open_chat(settings.llm, settings.models, model=release.model, adapter=adapter),
        store.prompts.get(release.prompt),
        release,
        emitter,
        embedder=retriever.embedder if isinstance(retriever, HybridRetriever) else open_embedder(settings.models),
    )
