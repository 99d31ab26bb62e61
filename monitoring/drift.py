"""Drift of prompts away from reference texts, by embedding, with a proved bound on false alarms.

The reference is split by a permutation that its own identity seeds: one half is the bag that prompts are compared
with, the other calibrates. A prompt's score is 1 minus the mean cosine to its `NEIGHBOURS` nearest texts of the bag,
so calibration scores and scores of prompts like the reference are exchangeable, which is what `martingale` needs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infra.artifacts import Artifacts, Manifest
from infra.embedder import Embedder
from infra.errors import InputError
from infra.identity import content_id, short, text_hash
from monitoring import martingale

KIND = "reference"
MIN_TEXTS = 30
NEIGHBOURS = 5


class NotEnoughData(InputError):
    """The reference has too few texts to calibrate a detector."""


def make_reference(
    artifacts: Artifacts,
    texts: Sequence[str],
    embedder: Embedder,
    *,
    name: str,
    on_progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Embed reference texts (equal ones once) into an artifact of kind 'reference'; equal input gives the same one.

    Raises `NotEnoughData` below 30 different texts.
    """
    distinct = list(dict.fromkeys(text for text in texts if text.strip()))
    if len(distinct) < MIN_TEXTS:
        raise NotEnoughData(
            "too few reference texts for drift detection",
            seen=len(distinct),
            rule=f"at least {MIN_TEXTS} different texts",
            fix="ingest more documents, or build a larger dataset",
        )
    inputs = {"name": name, "embedder": embedder.id, "texts": content_id("texts", [text_hash(t) for t in distinct])}

    def fill(directory: Path) -> dict[str, object]:
        vectors = embedder.embed(distinct, on_progress)
        np.save(directory / "embeddings.npy", vectors.astype(np.float32))
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in distinct)
        (directory / "texts.jsonl").write_text("".join(lines), encoding="utf-8")
        return {"name": name, "texts": len(distinct), "dimensions": int(vectors.shape[1]), "embedder": embedder.id}

    return artifacts.build(KIND, content_id(KIND, inputs), inputs, fill)


def newest_reference(artifacts: Artifacts) -> Manifest | None:
    """The reference made last, or None."""
    found = artifacts.list(KIND)
    return found[-1] if found else None


@dataclass(frozen=True)
class Reference:
    """A reference split in its bag and its calibration scores."""

    id: str
    embedder_id: str
    texts: tuple[str, ...]
    bag: np.ndarray
    calibration: tuple[float, ...]

    def score(self, vector: np.ndarray) -> float:
        """How far a prompt lies from the reference: 1 - mean cosine to its nearest texts of the bag, 0 to 2."""
        return float(strangeness(self.bag, vector[None, :])[0])


def load_reference(artifacts: Artifacts, manifest: Manifest) -> Reference:
    """Read and split a reference. Raises `CorruptArtifact` when its files changed, `NotEnoughData` when it is small."""
    directory = artifacts.verify(KIND, manifest.id)
    vectors = np.load(directory / "embeddings.npy", allow_pickle=False)
    lines = (directory / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    if len(vectors) < MIN_TEXTS:
        raise NotEnoughData("the reference is too small", seen=len(vectors), rule=f"at least {MIN_TEXTS} texts")
    bag, calibration = split(vectors, seed=int(short(manifest.id), 16))
    return Reference(
        id=manifest.id,
        embedder_id=str(manifest.inputs["embedder"]),
        texts=tuple(json.loads(line)["text"] for line in lines),
        bag=bag,
        calibration=tuple(float(value) for value in strangeness(bag, calibration)),
    )


def split(vectors: np.ndarray, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(bag, calibration): two halves of the rows in a seeded random order."""
    order = np.random.default_rng(seed).permutation(len(vectors))
    half = len(vectors) // 2
    return vectors[order[:half]], vectors[order[half:]]


def strangeness(bag: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """1 - mean cosine to the `NEIGHBOURS` nearest rows of the bag, for each row of `vectors` (n, d); shape (n,)."""
    nearest = np.sort(vectors @ bag.T, axis=1)[:, -NEIGHBOURS:]
    return np.asarray(1.0 - nearest.mean(axis=1))


def wealth_trace(reference: Reference, prompts: Mapping[str, str], embedder: Embedder) -> list[float]:
    """The detector's wealth after each prompt (interaction id to text, in order), replayed from the calibration."""
    state = martingale.new_run(reference.calibration)
    wealth = []
    for identity, vector in zip(prompts, embedder.embed(list(prompts.values())), strict=True):
        state = martingale.observe(state, identity, reference.score(vector), keep=1, window=1)
        wealth.append(state.wealth)
    return wealth
