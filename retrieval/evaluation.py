"""How well each way of searching finds what people judged relevant, on a collection of the user's own.

The collection becomes an installation of its own below `<home>/evaluations`, filled by the feature pipeline as any
other, so that `default` is what `quill search` does. All rankings are made before the judgements are opened.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import Field

from infra.embedder import Embedder, open_embedder
from infra.errors import InputError
from infra.identity import Value, content_id, short
from infra.settings import IndexSettings, LogSettings, Settings
from retrieval.beir import Beir
from retrieval.ingest import publish
from retrieval.pipeline import FeaturePipeline
from retrieval.ranking import MODES, Ranking, background
from retrieval.search import HybridRetriever, subject_of
from retrieval.sources import document_id
from retrieval.sparse import encode_query
from store.opening import open_store
from streams.opening import open_log

CUT = 10
"""Documents of a ranking that count."""
CHUNKS = 40
"""Chunks asked for, so that `CUT` different documents are among them."""
RESAMPLES = 2000
SEED = 20240229
REACH_SECONDS = 24 * 3600.0

OnProgress = Callable[[str, int, int], None]
"""What is done, how much of it, of how much."""


class Interval(Value):
    """A mean over queries with its 95 % bootstrap interval (percentiles over resampled queries)."""

    value: float = Field(description="Mean over the judged queries, 0 to 1.")
    low: float = Field(description="Lower end.")
    high: float = Field(description="Upper end.")


class RetrievalReport(Value):
    """What was measured, on what."""

    modes: dict[str, dict[str, Interval]] = Field(description="Mode to metric (ndcg@10, recall@10, mrr@10).")
    queries: int = Field(description="Queries with at least one relevant document; the means go over these.")
    documents: int = Field(description="Documents of the corpus.")
    chunks: int = Field(description="Chunks they became.")
    index_build: str = Field(description="Index build id `sha256:…`.")
    collection: str = Field(description="`sha256:…` of the queries and of the corpus as it was indexed.")
    split: str = Field(description="Judgements that were used.")


def evaluate(
    settings: Settings,
    folder: Path,
    split: str = "test",
    *,
    embedder: Embedder | None = None,
    on_progress: OnProgress | None = None,
) -> RetrievalReport:
    """Measure every mode on a collection in BEIR's layout. What is indexed already is not indexed again.

    Raises `NotFound` and `InputError` for a folder that is no such collection.
    """
    tell = on_progress or _quiet
    beir = Beir(folder.expanduser().absolute())
    queries = beir.queries()
    home = settings.home / "evaluations" / short(content_id("beir", [str(beir.folder)]))
    own = settings.model_copy(
        update={"home": home, "log": LogSettings(), "index": IndexSettings(), "database": type(settings.database)()}
    )
    log = open_log(own)
    store = open_store(own)
    pipeline = FeaturePipeline(own, log, store, embedder or open_embedder(settings.models))
    try:
        report = publish(beir.documents(), log, store, scope=str(beir.folder))
        reached = pipeline.reach(
            report.targets, timeout=REACH_SECONDS, on_progress=lambda done, total, _: tell("index", done, total)
        )
        retriever = HybridRetriever(pipeline, store, pipeline.embedder)
        rankings = _rankings(pipeline, retriever, list(queries.values()), tell)
        held = sorted((row.source, row.content_hash) for row in store.documents.list())
    finally:
        pipeline.close()
        store.close()
        log.close()
    judged = beir.judgements(split)
    return RetrievalReport(
        modes=measured(rankings, list(queries), _by_document_id(beir, judged)),
        queries=sum(1 for query in queries if _relevant(judged.get(query, {}))),
        documents=reached.documents,
        chunks=reached.chunks,
        index_build=reached.build,
        collection=content_id("beir", [sorted(queries.items()), held]),
        split=split,
    )


def measured(
    rankings: Mapping[str, Sequence[Sequence[str]]], queries: Sequence[str], judged: Mapping[str, Mapping[str, int]]
) -> dict[str, dict[str, Interval]]:
    """Mode to metrics, from the ranked documents of each query. Raises `InputError` when no query was judged."""
    places = [place for place, query in enumerate(queries) if _relevant(judged.get(query, {}))]
    if not places:
        raise InputError("no query has a relevant document", seen=f"{len(queries)} queries, {len(judged)} judged")
    found: dict[str, dict[str, Interval]] = {}
    for mode, ranked in rankings.items():
        scores = {
            name: [score(ranked[place], judged[queries[place]]) for place in places]
            for name, score in (("ndcg", ndcg), ("recall", recall), ("mrr", reciprocal_rank))
        }
        found[mode] = {f"{name}@{CUT}": interval(values) for name, values in scores.items()}
    return found


def ndcg(ranked: Sequence[str], judged: Mapping[str, int]) -> float:
    """Normalised discounted cumulative gain at `CUT`, gains as judged (Järvelin and Kekäläinen 2002, log2)."""
    gains = [max(0, judged.get(document, 0)) for document in ranked[:CUT]]
    best = sorted((gain for gain in judged.values() if gain > 0), reverse=True)[:CUT]
    return _discounted(gains) / _discounted(best)


def recall(ranked: Sequence[str], judged: Mapping[str, int]) -> float:
    """Share of the relevant documents among the first `CUT`."""
    relevant = _relevant(judged)
    return len(relevant & set(ranked[:CUT])) / len(relevant)


def reciprocal_rank(ranked: Sequence[str], judged: Mapping[str, int]) -> float:
    """1 / place of the first relevant document among the first `CUT`, else 0."""
    relevant = _relevant(judged)
    return next((1 / place for place, document in enumerate(ranked[:CUT], start=1) if document in relevant), 0.0)


def interval(values: Sequence[float]) -> Interval:
    """Mean and bootstrap interval of one value per query."""
    import numpy as np

    array = np.asarray(values)
    chosen = np.random.default_rng(SEED).integers(0, len(array), (RESAMPLES, len(array)))
    low, high = np.percentile(array[chosen].mean(axis=1), [2.5, 97.5])
    return Interval(value=float(array.mean()), low=float(low), high=float(high))


def _rankings(
    pipeline: FeaturePipeline, retriever: HybridRetriever, questions: Sequence[str], tell: OnProgress
) -> dict[str, list[list[str]]]:
    """Mode to the ranked document ids of each question."""
    subjects = [subject_of(question) for question in questions]
    vectors = pipeline.embedder.embed(subjects)
    found: dict[str, list[list[str]]] = {mode: [] for mode in (*MODES, "default")}
    with pipeline.read() as (index, _):
        ranking = Ranking(index, background(index))
        for number, (subject, vector) in enumerate(zip(subjects, vectors, strict=True), start=1):
            for mode in MODES:
                hits = ranking.rank(vector, encode_query(subject), mode).hits
                found[mode].append(_documents(hit.document_id for hit in hits))
            tell("questions", number, 2 * len(questions))
    for number, question in enumerate(questions, start=len(questions) + 1):
        chunks = retriever.search(question, limit=CHUNKS).chunks
        found["default"].append(_documents(chunk.document_id for chunk in chunks))
        tell("questions", number, 2 * len(questions))
    return found


def _documents(ids: Iterable[str]) -> list[str]:
    """The first `CUT` different ids."""
    return list(dict.fromkeys(ids))[:CUT]


def _quiet(what: str, done: int, total: int) -> None:
    """Nobody listens."""


def _by_document_id(beir: Beir, judged: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    return {
        query: {document_id(beir.source(document)): gain for document, gain in gains.items()}
        for query, gains in judged.items()
    }


def _relevant(judged: Mapping[str, int]) -> set[str]:
    return {document for document, gain in judged.items() if gain > 0}


def _discounted(gains: Sequence[int]) -> float:
    return sum(gain / math.log2(place + 1) for place, gain in enumerate(gains, start=1))
