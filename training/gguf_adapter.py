"""A PEFT LoRA adapter as a GGUF file that llama.cpp applies to its quantized base.

Tensor names and the file layout come from the `gguf` package. llama.cpp scales an update by
`adapter.lora.alpha / rank`, as PEFT does. In files of the llama architecture the rows of the query and key
projections are stored so that the two halves of each rotary pair lie next to each other; an update of those
matrices needs the same order, and it is the rows of B that carry it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from infra.errors import CorruptArtifact, InputError
from infra.identity import Value

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
GGUF = "adapter.gguf"
_NAME = re.compile(r"base_model\.model\.(model\.layers\.(\d+)\..+)\.lora_(A|B)\.weight$")
_ARCHITECTURES = ("llama", "qwen2")


class Pair(Value):
    """One LoRA update: delta W = alpha / rank · B · A."""

    model_config = Value.model_config | {"arbitrary_types_allowed": True}

    module: str = Field(description="Module of the base, such as 'model.layers.0.self_attn.q_proj'.")
    layer: int = Field(ge=0, description="Number of the transformer block.")
    a: np.ndarray[Any, Any] = Field(description="A, float32, shape (rank, inputs).")
    b: np.ndarray[Any, Any] = Field(description="B, float32, shape (outputs, rank).")


def read_pairs(adapter: Path) -> list[Pair]:
    """The updates in a PEFT adapter directory, ordered by layer and module.

    Raises `CorruptArtifact` when the file does not parse, or has tensors that are not LoRA updates of a block.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(adapter / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise CorruptArtifact(
            "the adapter's weights cannot be read", seen=adapter / WEIGHTS, rule=str(error)
        ) from error
    halves: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
    layers: dict[str, int] = {}
    for name, tensor in tensors.items():
        match = _NAME.match(name)
        if match is None:
            raise CorruptArtifact("an adapter tensor is no LoRA update of a block", seen=name, rule=_NAME.pattern)
        module, layer, side = match.groups()
        halves.setdefault(module, {})[side] = tensor.astype(np.float32)
        layers[module] = int(layer)
    lonely = [module for module, sides in halves.items() if len(sides) != 2]
    if lonely or not halves:
        raise CorruptArtifact("an adapter lacks one half of an update", seen=lonely[:1] or adapter, rule="A and B")
    pairs = [Pair(module=name, layer=layers[name], a=sides["A"], b=sides["B"]) for name, sides in halves.items()]
    return sorted(pairs, key=lambda pair: (pair.layer, pair.module))


def convert(adapter: Path, base: Path, target: Path, moved: Mapping[int, int] | None = None) -> Path:
    """Write the PEFT adapter in directory `adapter` as GGUF file `target`; `base` holds the base's config.json.

    `moved` maps the number of a block to the block that gets its updates instead: the proof uses it to make an
    adapter that must not pass. Raises `InputError` for an architecture whose row order is not known here.
    """
    import gguf

    config = json.loads((base / "config.json").read_text())
    architecture = config["model_type"]
    if architecture not in _ARCHITECTURES:
        raise InputError("no GGUF adapter for this architecture", seen=architecture, rule=", ".join(_ARCHITECTURES))
    alpha = float(json.loads((adapter / CONFIG).read_text())["lora_alpha"])
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, int(config["num_hidden_layers"]))
    writer = gguf.GGUFWriter(target, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for pair in read_pairs(adapter):
        layer = (moved or {}).get(pair.layer, pair.layer)
        name = names.get_name(pair.module.replace(f".{pair.layer}.", f".{layer}.", 1))
        if name is None:
            raise InputError("llama.cpp has no name for this module", seen=pair.module, rule=architecture)
        writer.add_tensor(f"{name}.weight.lora_a", np.ascontiguousarray(pair.a))
        writer.add_tensor(f"{name}.weight.lora_b", np.ascontiguousarray(_rows_as_stored(pair, config)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def most_different_layers(pairs: list[Pair]) -> tuple[int, int]:
    """The two blocks whose updates differ most: the largest sum over modules of ||B_i A_i - B_j A_j||² (Frobenius).

    Computed without the products' full size: <B_i A_i, B_j A_j> = sum((B_iᵀ B_j) * (A_i A_jᵀ)).
    """
    by_layer: dict[int, dict[str, Pair]] = {}
    for pair in pairs:
        by_layer.setdefault(pair.layer, {})[pair.module.split(".", 3)[3]] = pair
    layers = sorted(by_layer)
    products = {(i, j): _inner(by_layer[i], by_layer[j]) for i in layers for j in layers if i <= j}
    distance = {(i, j): products[i, i] + products[j, j] - 2 * value for (i, j), value in products.items() if i < j}
    return max(distance, key=lambda places: (distance[places], places))


def _inner(first: Mapping[str, Pair], second: Mapping[str, Pair]) -> float:
    shared = [(first[name], second[name]) for name in first if name in second]
    return sum(float(((one.b.T @ two.b) * (one.a @ two.a.T)).sum()) for one, two in shared)


def _rows_as_stored(pair: Pair, config: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    """B with its rows in the file's order: of each head, rows (half, n) become (n, half) for rotary pairs."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(pair.module.rsplit(".", 1)[1])
    if config["model_type"] != "llama" or heads is None:
        return pair.b
    rows, rank = pair.b.shape
    return pair.b.reshape(int(config[heads]), 2, -1, rank).swapaxes(1, 2).reshape(rows, rank)
