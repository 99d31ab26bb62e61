"""The GGUF adapter holds the same numbers under llama.cpp's names and in its row order."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import gguf
import numpy as np
import pytest
from tiny_llama import save_base, tiny_model

from infra.errors import CorruptArtifact, InputError
from training.gguf_adapter import WEIGHTS, Pair, convert, most_different_layers, read_pairs
from training.lora import save

PROJECTIONS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("adapter")
    save(tiny_model(directory / "base", trained=True), directory)
    return directory


def tensors(file: Path) -> dict[str, np.ndarray]:
    return {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(file).tensors}


def test_every_update_is_there_with_its_numbers(adapter: Path, tmp_path: Path):
    found = tensors(convert(adapter, adapter / "base", tmp_path / "a.gguf"))
    pairs = read_pairs(adapter)
    assert len(found) == 2 * len(pairs) == 2 * 2 * 7
    for pair in pairs:
        name = f"blk.{pair.layer}.{PROJECTIONS[pair.module.split('.', 3)[3]]}.weight"
        assert np.array_equal(found[f"{name}.lora_a"], pair.a)
        if not pair.module.endswith(("q_proj", "k_proj")):
            assert np.array_equal(found[f"{name}.lora_b"], pair.b)


def test_metadata_says_what_it_is(adapter: Path, tmp_path: Path):
    fields = gguf.GGUFReader(convert(adapter, adapter / "base", tmp_path / "a.gguf")).fields
    said = {name: field.contents() for name, field in fields.items() if not name.startswith("GGUF.")}
    assert said["general.type"] == "adapter"
    assert said["adapter.type"] == "lora"
    assert said["general.architecture"] == "llama"
    assert said["adapter.lora.alpha"] == 8.0


@pytest.mark.parametrize(("projection", "heads"), [("q_proj", 4), ("k_proj", 2)])
def test_llama_files_interleave_the_halves_of_rotary_pairs(adapter: Path, tmp_path: Path, projection: str, heads: int):
    stored = tensors(convert(adapter, adapter / "base", tmp_path / "a.gguf"))
    pair = next(one for one in read_pairs(adapter) if one.layer == 1 and one.module.endswith(projection))
    b = stored[f"blk.1.{PROJECTIONS['self_attn.' + projection]}.weight.lora_b"]
    size = len(pair.b) // heads
    for head in range(heads):
        for half in range(2):
            for place in range(size // 2):
                row = head * size + 2 * place + half
                assert np.array_equal(b[row], pair.b[head * size + half * size // 2 + place])


def test_qwen_files_keep_the_rows(adapter: Path, tmp_path: Path):
    stored = tensors(convert(adapter, save_base(tmp_path / "qwen", "qwen2"), tmp_path / "a.gguf"))
    pair = next(one for one in read_pairs(adapter) if one.layer == 0 and one.module.endswith("q_proj"))
    assert np.array_equal(stored["blk.0.attn_q.weight.lora_b"], pair.b)


def test_moved_layers_are_exchanged(adapter: Path, tmp_path: Path):
    right = tensors(convert(adapter, adapter / "base", tmp_path / "a.gguf"))
    wrong = tensors(convert(adapter, adapter / "base", tmp_path / "b.gguf", {0: 1, 1: 0}))
    assert np.array_equal(wrong["blk.1.ffn_up.weight.lora_a"], right["blk.0.ffn_up.weight.lora_a"])
    assert np.array_equal(wrong["blk.0.attn_q.weight.lora_b"], right["blk.1.attn_q.weight.lora_b"])
    assert not np.array_equal(wrong["blk.0.ffn_up.weight.lora_a"], right["blk.0.ffn_up.weight.lora_a"])


def test_the_most_different_layers_are_those_of_the_full_products():
    draw = np.random.default_rng(1)
    pairs = [
        Pair(
            module=f"model.layers.{layer}.mlp.{name}",
            layer=layer,
            a=draw.normal(size=(3, 8)).astype(np.float32) * (1 + layer % 3),
            b=draw.normal(size=(6, 3)).astype(np.float32),
        )
        for layer in range(5)
        for name in ("up_proj", "down_proj")
    ]
    full = {(p.layer, p.module[-9:]): p.b @ p.a for p in pairs}
    names = {name for _, name in full}
    brute = max(
        combinations(range(5), 2),
        key=lambda ij: sum(((full[ij[0], n] - full[ij[1], n]) ** 2).sum() for n in names if (ij[0], n) in full),
    )
    assert most_different_layers(pairs) == brute


def test_broken_weights_and_unknown_architectures_are_refused(adapter: Path, tmp_path: Path):
    (tmp_path / WEIGHTS).write_bytes((adapter / WEIGHTS).read_bytes()[:200])
    with pytest.raises(CorruptArtifact, match="cannot be read"):
        read_pairs(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(InputError, match="no GGUF adapter"):
        convert(adapter, tmp_path, tmp_path / "a.gguf")
