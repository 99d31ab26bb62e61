"""Every embedder behaves alike: MiniLM and the hashing fake."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from weights_fixture import cached_models

from infra.embedder import Embedder, HashEmbedder, SentenceEmbedder

DOG = "The dog chased the cat across the garden."
DOG_AGAIN = "Across the garden the dog chased a cat."
BONDS = "Interest rates on government bonds fell sharply in March."


class EmbedderContract:
    @pytest.fixture
    def embedder(self) -> Embedder:
        raise AssertionError("each backend brings its own")

    def test_vectors_are_float32_rows_of_norm_one(self, embedder: Embedder) -> None:
        vectors = embedder.embed([DOG, DOG_AGAIN, BONDS])
        assert vectors.shape == (3, embedder.dimensions)
        assert vectors.dtype == np.float32
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)

    def test_no_texts_give_no_rows(self, embedder: Embedder) -> None:
        assert embedder.embed([]).shape == (0, embedder.dimensions)

    def test_order_is_kept_whatever_the_lengths(self, embedder: Embedder) -> None:
        texts = [DOG * 9, "bonds", BONDS, "cat " * 60, DOG]
        together = embedder.embed(texts)
        alone = np.vstack([embedder.embed([text]) for text in texts])
        assert np.allclose(together, alone, atol=1e-4)

    def test_the_same_text_gives_the_same_vector(self, embedder: Embedder) -> None:
        assert np.array_equal(embedder.embed([DOG]), embedder.embed([DOG]))

    def test_alike_texts_are_closer_than_unlike_ones(self, embedder: Embedder) -> None:
        dog, again, bonds = embedder.embed([DOG, DOG_AGAIN, BONDS])
        assert dog @ again > dog @ bonds + 0.3

    def test_progress_counts_every_text(self, embedder: Embedder) -> None:
        seen: list[tuple[int, int]] = []
        embedder.embed([f"text {number}" for number in range(40)], lambda *step: seen.append(step))
        assert seen[-1] == (40, 40)
        assert seen == sorted(seen)

    def test_token_spans_cover_the_words_in_order_without_a_limit(self, embedder: Embedder) -> None:
        text = "Vector databases, déjà vu. " * 200
        spans = embedder.token_spans(text)
        assert len(spans) >= 800 > embedder.max_tokens
        assert all(start < end for start, end in spans)
        assert all(one[1] <= two[0] for one, two in pairwise(spans))
        covered = "".join(text[start:end] for start, end in spans)
        assert [letter for letter in text if letter.isalnum()] == [letter for letter in covered if letter.isalnum()]

    def test_the_id_names_the_embedder_and_a_hash(self, embedder: Embedder) -> None:
        name, _, digest = embedder.id.partition("@")
        assert name
        assert len(digest) == 12
        assert int(digest, 16) >= 0


class TestHashEmbedder(EmbedderContract):
    @pytest.fixture
    def embedder(self) -> Embedder:
        return HashEmbedder()

    def test_parameters_are_part_of_the_identity(self) -> None:
        assert HashEmbedder(64).id != HashEmbedder(128).id


@pytest.mark.small_models
class TestSentenceEmbedder(EmbedderContract):
    @pytest.fixture(scope="class")
    def embedder(self) -> Embedder:
        return SentenceEmbedder(cached_models())

    def test_it_is_minilm(self, embedder: Embedder) -> None:
        assert embedder.id == "all-minilm-l6-v2@53aa51172d14"
        assert (embedder.dimensions, embedder.max_tokens) == (384, 254)

    def test_meaning_counts_where_no_word_is_shared(self, embedder: Embedder) -> None:
        question, answer, other = embedder.embed(
            ["How do I train a puppy?", "Teaching young dogs obedience", "Configuring a Kafka broker"]
        )
        assert question @ answer > question @ other + 0.2
