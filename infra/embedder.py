"""Texts to vectors: MiniLM through sentence-transformers, and a hashing embedder that needs no weights."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from infra.errors import CorruptArtifact
from infra.identity import short
from infra.models import resolve
from infra.settings import ModelSettings, quiet_third_parties

if TYPE_CHECKING:
    import numpy as np

    Vectors = np.ndarray[Any, np.dtype[np.float32]]

BATCH = 32
MAX_TOKENS = 256
"""MiniLM was trained on at most 128 word pieces and published with 256; longer texts are cut there."""

WORD = re.compile(r"\w+")

OnProgress = Callable[[int, int], None]
"""Texts embedded so far, texts in all."""


class Embedder(Protocol):
    """Texts to L2-normalised vectors."""

    @property
    def id(self) -> str:
        """`name@<12 hex digits>`: changes whenever the vectors of a text could."""
        ...

    @property
    def dimensions(self) -> int:
        """Length of a vector, d."""
        ...

    @property
    def max_tokens(self) -> int:
        """Tokens of a text that are read; the rest is ignored."""
        ...

    def embed(self, texts: Sequence[str], on_progress: OnProgress | None = None) -> Vectors:
        """Vectors of the texts in their order, float32, shape (n, d), norm 1 (0 for a text without any word)."""
        ...

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        """Character spans (start, end) of the text's tokens, in order, without special tokens and without a limit."""
        ...


def open_embedder(models: ModelSettings) -> Embedder:
    """The embedder that the settings name. Weights are fetched and loaded at the first use, not here."""
    return SentenceEmbedder(models)


class SentenceEmbedder:
    """A sentence-transformers model. Loading raises what `infra.models.resolve` raises, or `CorruptArtifact`."""

    def __init__(self, models: ModelSettings) -> None:
        self._models = models
        self._lock = threading.Lock()
        self._loaded: Any = None
        self._tokenizer: Any = None

    @property
    def id(self) -> str:
        """Name and hash of the weights."""
        found = resolve(self._models.embedder, self._models)
        return f"{found.name}@{short(found.sha256)}"

    @property
    def dimensions(self) -> int:
        """Length of a vector (384 for MiniLM)."""
        return int(self._model().get_embedding_dimension())

    @property
    def max_tokens(self) -> int:
        """Tokens that are read, the two special ones not counted."""
        return int(self._model().max_seq_length) - 2

    def embed(self, texts: Sequence[str], on_progress: OnProgress | None = None) -> Vectors:
        """See `Embedder.embed`. Texts are batched by length, so that short ones do not pay for long ones."""
        import numpy as np

        model = self._model()
        vectors = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]), reverse=True)
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            vectors[batch] = model.encode(
                [texts[place] for place in batch],
                batch_size=BATCH,
                normalize_embeddings=True,
                show_progress_bar=False,
            )
            if on_progress is not None:
                on_progress(min(start + BATCH, len(order)), len(order))
        return vectors

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        """See `Embedder.token_spans`."""
        offsets: list[tuple[int, int]] = self._tokens().encode(text, add_special_tokens=False).offsets
        return offsets

    def _tokens(self) -> Any:
        """The tokenizer by itself: without the model's length limit, and without loading torch."""
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = _load_tokenizer(resolve(self._models.embedder, self._models).path)
            return self._tokenizer

    def _model(self) -> Any:
        with self._lock:
            if self._loaded is None:
                self._loaded = _load_model(resolve(self._models.embedder, self._models).path)
            return self._loaded


def _load_model(directory: Path) -> Any:
    quiet_third_parties()
    from safetensors import SafetensorError
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(str(directory), local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _unusable(directory, str(error)) from error
    model.max_seq_length = min(model.max_seq_length or MAX_TOKENS, MAX_TOKENS)
    return model


def _load_tokenizer(directory: Path) -> Any:
    from tokenizers import Tokenizer

    file = directory / "tokenizer.json"
    if not file.is_file():
        raise _unusable(directory, "it has no tokenizer.json")
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _unusable(directory: Path, reason: str) -> CorruptArtifact:
    fix = "delete this directory and run it again"
    return CorruptArtifact("the embedder cannot be loaded", seen=directory, rule=reason, fix=fix)


class HashEmbedder:
    """Bag of words, hashed: each word adds ±1 to one of d places (Weinberger et al. 2009, feature hashing).

    Deterministic, quick and without weights; texts that share words are close, meaning is beyond it.
    """

    def __init__(self, dimensions: int = 256, max_tokens: int = 254) -> None:
        self._dimensions = dimensions
        self._max_tokens = max_tokens

    @property
    def id(self) -> str:
        """The kind and its parameters."""
        digest = hashlib.sha256(f"{self._dimensions}:{self._max_tokens}".encode()).hexdigest()
        return f"hash-words-{self._dimensions}@{short(digest)}"

    @property
    def dimensions(self) -> int:
        """As given."""
        return self._dimensions

    @property
    def max_tokens(self) -> int:
        """As given."""
        return self._max_tokens

    def embed(self, texts: Sequence[str], on_progress: OnProgress | None = None) -> Vectors:
        """See `Embedder.embed`."""
        import numpy as np

        vectors = np.zeros((len(texts), self._dimensions), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in WORD.findall(text.lower())[: self._max_tokens]:
                digest = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest())
                vectors[row, (digest >> 1) % self._dimensions] += 1.0 if digest & 1 else -1.0
            norm = float(np.linalg.norm(vectors[row]))
            if norm:
                vectors[row] /= norm
            if on_progress is not None:
                on_progress(row + 1, len(texts))
        return vectors

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        """Spans of the words."""
        return [match.span() for match in WORD.finditer(text)]
