"""BM25 vectors: terms, weights, stable places."""

from __future__ import annotations

import threading

import pytest

from retrieval.sparse import AVERAGE_LENGTH, K1, B, encode_document, encode_query, stem, terms


def test_terms_are_stems_without_stop_words() -> None:
    assert terms("How do the Consumers' partitions work?") == ["consum", "partit", "work"]
    assert terms("It's Kafka’s log_file v1.2") == ["kafka", "log", "file", "v1", "2"]
    assert terms("the and of") == []


def test_weights_follow_the_formula() -> None:
    vector = encode_document("kafka kafka broker")
    norm = K1 * (1 - B + B * 3 / AVERAGE_LENGTH)
    expected = {2 * (K1 + 1) / (2 + norm), 1 * (K1 + 1) / (1 + norm)}
    assert sorted(vector.values) == pytest.approx(sorted(expected))
    assert vector.indices == sorted(set(vector.indices))
    assert all(0 <= index < 2**32 for index in vector.indices)


def test_a_query_weighs_each_term_by_its_count_and_meets_the_document() -> None:
    query = encode_query("Kafka, kafka and partitions")
    assert sorted(query.values) == [1.0, 2.0]
    assert set(query.indices) == set(encode_document("partition of kafka").indices)


def test_places_never_change() -> None:
    assert encode_query("kafka").indices == [1766622254]


def test_stemming_is_safe_between_threads() -> None:
    words = [
        f"{base}{ending}"
        for base in ("partition", "connect", "index", "embedd")
        for ending in ("s", "ing", "ed", "ions")
    ]
    expected = {word: stem(word) for word in words}
    wrong: list[str] = []

    def work() -> None:
        for _ in range(200):
            stem.cache_clear()
            wrong.extend(word for word in words if stem(word) != expected[word])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
