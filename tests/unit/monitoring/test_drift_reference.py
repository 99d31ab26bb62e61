"""The drift reference: an artifact, its split, and false alarms and delay over real text vectors."""

from __future__ import annotations

import numpy as np
import pytest

from infra.artifacts import Artifacts
from infra.embedder import HashEmbedder
from infra.errors import CorruptArtifact
from monitoring.drift import NotEnoughData, load_reference, make_reference, newest_reference, split
from monitoring.martingale import new_run, observe

SUBJECTS = (
    "lora",
    "quantization",
    "retrieval",
    "chunking",
    "embeddings",
    "reranking",
    "kafka",
    "drift",
    "hnsw",
    "bm25",
)
ASKS = ("what is", "how does one tune", "why use", "explain the limits of", "compare costs of", "give an example of")


def questions(count, seed=0):
    rng = np.random.default_rng(seed)
    pick = lambda words: words[rng.integers(len(words))]  # noqa: E731
    return [f"{pick(ASKS)} {pick(SUBJECTS)} for {pick(SUBJECTS)} number {rng.integers(10**6)}" for _ in range(count)]


def test_a_reference_is_one_artifact_per_content(tmp_path):
    artifacts = Artifacts(tmp_path)
    texts = questions(40)
    first = make_reference(artifacts, texts, HashEmbedder(), name="instructions")
    again = make_reference(artifacts, [*texts, texts[0]], HashEmbedder(), name="instructions")
    assert again.id == first.id
    assert first.kind == "reference"
    assert set(first.files) == {"embeddings.npy", "texts.jsonl"}
    assert first.summary["texts"] == len(set(texts))
    other = make_reference(artifacts, texts, HashEmbedder(64), name="instructions")
    assert newest_reference(artifacts) == other
    reference = load_reference(artifacts, first)
    assert set(reference.texts) == set(texts)
    assert len(reference.bag) + len(reference.calibration) == len(set(texts))


def test_thirty_different_texts_are_needed(tmp_path):
    with pytest.raises(NotEnoughData, match="at least 30"):
        make_reference(Artifacts(tmp_path), ["same text"] * 100, HashEmbedder(), name="x")
    assert newest_reference(Artifacts(tmp_path)) is None


def test_a_changed_file_is_refused(tmp_path):
    artifacts = Artifacts(tmp_path)
    made = make_reference(artifacts, questions(40), HashEmbedder(), name="x")
    (artifacts.path("reference", made.id) / "texts.jsonl").write_text("{}")
    with pytest.raises(CorruptArtifact):
        load_reference(artifacts, made)


def test_the_split_is_seeded_and_whole():
    rows = np.arange(10)[:, None]
    bag, calibration = split(rows, seed=3)
    assert sorted([*bag[:, 0], *calibration[:, 0]]) == list(range(10))
    assert np.array_equal(bag, split(rows, seed=3)[0])
    assert not np.array_equal(bag, split(rows, seed=4)[0])


def test_prompts_like_the_reference_rarely_alarm_and_a_burst_does_soon(tmp_path):
    """200 permutations of one pool of questions: reference and traffic are exchangeable by construction."""
    pool = HashEmbedder().embed(questions(300))
    odd = HashEmbedder().embed([f"simmer onions garlic soup spoon {number} minutes" for number in range(40)])
    alarms, delays = 0, []
    for seed in range(200):
        order = np.random.default_rng(seed).permutation(len(pool))
        bag, calibration, traffic = pool[order[:100]], pool[order[100:200]], pool[order[200:260]]
        from monitoring.drift import strangeness

        state = new_run(strangeness(bag, calibration).tolist())
        fired = False
        for number, score in enumerate(strangeness(bag, traffic)):
            state = observe(state, f"{seed}-{number}", float(score), keep=50, window=15)
            fired = fired or state.wealth >= 20
        alarms += fired
        if seed < 20:
            for number, score in enumerate(strangeness(bag, odd), start=1):
                state = observe(state, f"odd{seed}-{number}", float(score), keep=50, window=15)
                if state.wealth >= 1000:
                    delays.append(number)
                    break
    assert alarms <= 18  # alpha 0.05 of 200 is 10; 18 has binomial tail < 0.01
    assert len(delays) == 20
    assert max(delays) <= 15
