"""Measuring search on a collection in BEIR's layout: the metrics, the reader, and the whole with a small collection."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from infra.embedder import HashEmbedder
from infra.errors import InputError, NotFound
from infra.settings import load_settings
from retrieval.beir import Beir
from retrieval.evaluation import evaluate, interval, measured, ndcg, recall, reciprocal_rank

JUDGED = {"a": 2, "b": 1, "c": 0}
SUBJECTS = ["kafka partitions", "adapter matrices", "vector neighbours", "drift alarms", "prompt versions"]


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """Five subjects, four documents on each; the question of a subject names it, its documents are relevant."""
    folder = tmp_path / "collection"
    (folder / "qrels").mkdir(parents=True)
    documents = [
        {"_id": f"{number}-{copy}", "title": f"Note {number}{copy}", "text": f"This is note {copy} about {subject}."}
        for number, subject in enumerate(SUBJECTS)
        for copy in range(4)
    ]
    (folder / "corpus.jsonl").write_text("\n".join(json.dumps(row) for row in documents))
    queries = [{"_id": str(number), "text": f"What about {subject}?"} for number, subject in enumerate(SUBJECTS)]
    (folder / "queries.jsonl").write_text("\n".join(json.dumps(row) for row in queries))
    lines = [f"{row['_id'][0]}\t{row['_id']}\t1" for row in documents if row["_id"][0] != "4"]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]))
    return folder


def test_metrics_by_hand() -> None:
    best = 2 / math.log2(2) + 1 / math.log2(3)
    assert ndcg(["x", "a", "b"], JUDGED) == pytest.approx((2 / math.log2(3) + 1 / math.log2(4)) / best)
    assert ndcg(["a", "b", "c"], JUDGED) == 1
    assert ndcg([], JUDGED) == 0
    assert recall(["x", "a"], JUDGED) == 0.5
    assert reciprocal_rank(["c", "x", "b"], JUDGED) == pytest.approx(1 / 3)
    assert reciprocal_rank(["c"] * 10 + ["a"], JUDGED) == 0


def test_an_interval_holds_its_mean_and_narrows_with_more_queries() -> None:
    few, many = interval([0.0, 1.0] * 5), interval([0.0, 1.0] * 500)
    assert few.low < few.value == 0.5 < few.high
    assert many.high - many.low < (few.high - few.low) / 3


def test_queries_without_a_relevant_document_do_not_count() -> None:
    found = measured({"dense": [["a"], ["a"], ["a"]]}, ["1", "2", "3"], {"1": {"a": 1}, "2": {"a": 0}})
    assert found["dense"]["ndcg@10"].value == 1
    with pytest.raises(InputError, match="no query has a relevant document"):
        measured({"dense": [["a"]]}, ["1"], {"9": {"a": 1}})


def test_every_mode_is_measured_and_the_index_is_made_once(collection: Path, tmp_path: Path) -> None:
    settings = load_settings(environment={}, overrides={"home": str(tmp_path / "home")})
    told: list[str] = []
    first = evaluate(
        settings, collection, embedder=HashEmbedder(), on_progress=lambda what, done, total: told.append(what)
    )
    again = evaluate(settings, collection, embedder=HashEmbedder())

    assert list(first.modes) == ["bm25", "dense", "hybrid", "hybrid+rerank", "default"]
    assert first.modes["bm25"]["ndcg@10"].value == 1
    assert first.modes["default"]["recall@10"].value == 1
    assert all(0 <= one.low <= one.value <= one.high <= 1 for mode in first.modes.values() for one in mode.values())
    assert (first.queries, first.documents, first.chunks) == (4, 20, 20)
    assert again == first
    assert {"index", "questions"} <= set(told)


def test_what_is_no_collection_is_said_plainly(collection: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="BEIR"):
        Beir(tmp_path).queries()
    with pytest.raises(NotFound, match="BEIR"):
        Beir(collection).judgements("dev")
    (collection / "queries.jsonl").write_text('{"_id": "1", "text": "a"}\nnot json\n')
    with pytest.raises(InputError, match="line 2 of"):
        Beir(collection).queries()
    (collection / "queries.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(InputError, match="no _id"):
        Beir(collection).queries()
    (collection / "qrels" / "test.tsv").write_text("1\tdoc\tmuch\n1\tdoc\tmore\n")
    with pytest.raises(InputError, match="line 2 of"):
        Beir(collection).judgements("test")
