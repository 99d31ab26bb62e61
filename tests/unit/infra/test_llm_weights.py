"""Names of adapters, and what dequantizing refuses."""

from __future__ import annotations

import hashlib

import pytest

from infra.artifacts import Artifacts
from infra.errors import InputError, NotFound
from infra.identity import content_id, short
from infra.llm.weights import adapter_digits, dequantized
from infra.settings import ModelSettings


def test_an_adapter_is_named_by_its_artifact_or_else_by_its_bytes(tmp_path):
    def fill(directory):
        (directory / "adapter.gguf").write_bytes(b"adapter")
        (directory / "adapter_model.safetensors").write_bytes(b"weights")
        return {}

    artifacts = Artifacts(tmp_path / "artifacts")
    identity = content_id("adapter", "recipe")
    artifacts.build("adapter", identity, {}, fill)
    made = artifacts.path("adapter", identity)
    assert adapter_digits(made) == adapter_digits(made / "adapter.gguf") == short(identity)
    alone = tmp_path / "alone.gguf"
    alone.write_bytes(b"adapter")
    assert adapter_digits(alone) == hashlib.sha256(b"adapter").hexdigest()[:12]
    with pytest.raises(NotFound, match="adapter_model"):
        adapter_digits(tmp_path)


def test_an_embedder_cannot_be_dequantized(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(InputError, match="only a GGUF"):
        dequantized(str(tmp_path), ModelSettings(cache=tmp_path / "cache"))
