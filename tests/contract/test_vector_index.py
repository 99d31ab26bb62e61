"""One behaviour suite for every vector index: Qdrant Edge, and Qdrant through qdrant-client's local mode."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from infra.errors import CorruptArtifact
from retrieval.index.edge import EdgeIndex
from retrieval.index.protocol import IndexPoint, SparseVector, VectorIndex
from retrieval.index.qdrant import QdrantIndex
from retrieval.sparse import AVERAGE_LENGTH, K1, B, encode_document, encode_query

DIMENSIONS = 8
EMPTY = SparseVector([], [])


def axis(*values: float) -> np.ndarray:
    vector = np.zeros(DIMENSIONS, dtype=np.float32)
    vector[: len(values)] = values
    return vector / np.linalg.norm(vector)


def point(chunk_id: str, text: str = "", *, document: str = "d1", dense: np.ndarray | None = None) -> IndexPoint:
    vector = axis(1) if dense is None else dense
    return IndexPoint(chunk_id, document, f"/notes/{document}.md", vector, encode_document(text))


class VectorIndexSuite:
    """What `VectorIndex` promises; a backend gives the fixture `reopen`, which opens the same index again."""

    @pytest.fixture
    def index(self, reopen: Callable[[], VectorIndex]) -> VectorIndex:
        return reopen()

    def test_a_new_index_is_empty_and_finds_nothing(self, index: VectorIndex) -> None:
        assert index.count() == 0
        assert index.search_dense(axis(1), 5) == []
        assert index.search_sparse(encode_query("kafka"), 5) == []

    def test_upsert_adds_and_replaces(self, index: VectorIndex) -> None:
        index.upsert([point("c1", "old words", dense=axis(1)), point("c2", dense=axis(0, 1))])
        index.upsert([point("c1", "new words", dense=axis(0, 0, 1))])

        assert index.count() == 2
        assert index.search_dense(axis(0, 0, 1), 1)[0].chunk_id == "c1"
        assert index.search_sparse(encode_query("old"), 5) == []
        assert [hit.chunk_id for hit in index.search_sparse(encode_query("new"), 5)] == ["c1"]

    def test_delete_removes_from_every_search_and_ignores_unknown_ids(self, index: VectorIndex) -> None:
        index.upsert([point("c1", "kafka"), point("c2", "kafka")])
        index.delete(["c1", "never there"])
        index.delete([])

        assert index.count() == 1
        assert [hit.chunk_id for hit in index.search_dense(axis(1), 5)] == ["c2"]
        assert [hit.chunk_id for hit in index.search_sparse(encode_query("kafka"), 5)] == ["c2"]

    def test_chunk_ids_are_those_of_the_document(self, index: VectorIndex) -> None:
        index.upsert([point(f"a{n}", document="d-a") for n in range(1100)])
        index.upsert([point("b1", document="d-b"), point("ab", document="d")])

        assert index.chunk_ids("d-a") == {f"a{n}" for n in range(1100)}
        assert index.chunk_ids("d") == {"ab"}
        assert index.chunk_ids("unknown") == set()

    def test_dense_search_is_cosine_best_first_within_the_limit(self, index: VectorIndex) -> None:
        index.upsert(
            [
                point("near", dense=axis(1, 0.2), document="x"),
                point("far", dense=axis(0, 0, 1)),
                point("against", dense=axis(-1)),
                point("same", dense=axis(1)),
            ]
        )
        hits = index.search_dense(axis(1), 3)

        assert [hit.chunk_id for hit in hits] == ["same", "near", "far"]
        assert [hit.score for hit in hits] == pytest.approx([1.0, 1 / math.hypot(1, 0.2), 0.0], abs=1e-3)
        assert hits[1].document_id == "x"

    def test_vectors_are_those_of_the_points_that_are_held(self, index: VectorIndex) -> None:
        index.upsert([point("c1", dense=axis(1)), point("c2", dense=axis(0, 1)), point("c3", dense=axis(0, 0, 1))])

        assert {tuple(row) for row in index.vectors(["c1", "c3", "never there"])} == {
            tuple(axis(1)),
            tuple(axis(0, 0, 1)),
        }
        assert len(index.vectors([])) == 0

    def test_a_sample_is_stable_and_does_not_follow_the_order_of_writing(self, index: VectorIndex) -> None:
        assert len(index.sample(5)) == 0
        index.upsert([point(f"early{n}", dense=axis(1)) for n in range(100)])
        index.upsert([point(f"late{n}", dense=axis(0, 1)) for n in range(100)])

        sample = index.sample(60)
        assert sample.shape == (60, DIMENSIONS)
        assert (sample == index.sample(60)).all()
        assert 15 < sample[:, 0].sum() < 45

    def test_sparse_scores_are_bm25(self, index: VectorIndex) -> None:
        texts = {"c1": "kafka kafka broker", "c2": "kafka partition", "c3": "broker partition leader"}
        index.upsert([point(chunk_id, text, dense=axis(1)) for chunk_id, text in texts.items()])

        hits = {hit.chunk_id: hit.score for hit in index.search_sparse(encode_query("kafka leader"), 10)}

        def weight(tf: int, length: int) -> float:
            return tf * (K1 + 1) / (tf + K1 * (1 - B + B * length / AVERAGE_LENGTH))

        def idf(holding: int) -> float:
            return math.log(1 + (3 - holding + 0.5) / (holding + 0.5))

        expected = {"c1": weight(2, 3) * idf(2), "c2": weight(1, 2) * idf(2), "c3": weight(1, 3) * idf(1)}
        assert hits == pytest.approx(expected, rel=1e-3)

    def test_a_rare_term_outweighs_a_common_one(self, index: VectorIndex) -> None:
        index.upsert([point(f"c{n}", "vector search") for n in range(9)])
        index.upsert([point("rare", "quantization search")])

        assert index.search_sparse(encode_query("quantization vector"), 3)[0].chunk_id == "rare"

    def test_sparse_search_gives_no_hit_without_a_common_term(self, index: VectorIndex) -> None:
        index.upsert([point("c1", "kafka")])

        assert index.search_sparse(encode_query("tulips"), 5) == []
        assert index.search_sparse(EMPTY, 5) == []

    def test_what_was_flushed_is_there_after_reopening(self, reopen: Callable[[], VectorIndex]) -> None:
        first = reopen()
        first.upsert([point("c1", "kafka"), point("c2", "kafka")])
        first.delete(["c2"])
        first.flush()
        first.close()
        first.close()

        again = reopen()
        assert again.count() == 1
        assert again.search_sparse(encode_query("kafka"), 5)[0].chunk_id == "c1"

    def test_a_chunk_without_any_term_can_still_be_found_by_meaning(self, index: VectorIndex) -> None:
        index.upsert([point("c1", "the and of")])
        assert index.search_dense(axis(1), 1)[0].chunk_id == "c1"


class TestEdge(VectorIndexSuite):
    @pytest.fixture
    def reopen(self, tmp_path: Path) -> Iterator[Callable[[], VectorIndex]]:
        opened: list[EdgeIndex] = []

        def open_again() -> VectorIndex:
            opened.append(EdgeIndex.open(tmp_path / "shard", lambda: DIMENSIONS))
            return opened[-1]

        yield open_again
        for index in opened:
            index.close()

    def test_searching_while_writing(self, index: VectorIndex) -> None:
        index.upsert([point("anchor", "kafka", dense=axis(0, 1))])
        failures: list[BaseException] = []
        searches = 0
        written = threading.Event()

        def search() -> None:
            nonlocal searches
            try:
                while not written.is_set() or searches == 0:
                    assert index.search_dense(axis(0, 1), 1)[0].chunk_id == "anchor"
                    searches += 1
            except BaseException as error:  # noqa: BLE001 (handed to the test's thread)
                failures.append(error)

        reader = threading.Thread(target=search)
        reader.start()
        for batch in range(20):
            index.upsert([point(f"c{batch}-{n}", "kafka broker") for n in range(50)])
            index.flush()
        written.set()
        reader.join()

        assert failures == []
        assert searches > 0
        assert index.count() == 1001

    def test_a_second_opener_is_told_instead_of_harming_the_first(self, index: VectorIndex, tmp_path: Path) -> None:
        index.upsert([point("c1")])
        with pytest.raises(CorruptArtifact, match="does not open"):
            EdgeIndex.open(tmp_path / "shard", lambda: DIMENSIONS)
        index.flush()
        assert index.count() == 1


@pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant")
class TestQdrantLocal(VectorIndexSuite):
    @pytest.fixture
    def reopen(self, tmp_path: Path) -> Iterator[Callable[[], VectorIndex]]:
        from qdrant_client import QdrantClient

        clients: list[QdrantClient] = []

        def open_again() -> VectorIndex:
            if clients:
                clients[-1].close()
            clients.append(QdrantClient(path=str(tmp_path / "qdrant")))
            return QdrantIndex.open(clients[-1], "notes", lambda: DIMENSIONS)

        yield open_again
        clients[-1].close()
