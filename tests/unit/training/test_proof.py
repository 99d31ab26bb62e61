"""The proof passes for what was trained and fails for what was not."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from tiny_llama import Words, rows, tiny_model

from infra.errors import InputError
from training.gguf_adapter import GGUF, convert
from training.lora import conclusions, save
from training.proof import AdapterProof, deviation, probes, prove


class ServedByTorch:
    """A serving engine that computes with the model itself; `wrong` is the scale it applies instead of 1."""

    def __init__(self, model: Any, wrong: float = 1.0) -> None:
        self.model, self.wrong, self.asked = model, wrong, 0

    def __call__(self, adapter: Path, prompts: Sequence[str], top: int, scale: float) -> list[dict[str, float]]:
        assert adapter.exists()
        self.asked += len(prompts)
        if adapter.name != GGUF:
            return [{"w1": -0.1, "w2": -5.0} for _ in prompts]
        with self._scaled(scale * self.wrong):
            return [self._next(prompt) for prompt in prompts]

    def _next(self, prompt: str) -> dict[str, float]:
        with torch.no_grad():
            logits = self.model(torch.tensor([Words()(prompt)["input_ids"]])).logits[0, -1]
        return {f"w{token}": float(value) for token, value in enumerate(torch.log_softmax(logits, -1))}

    def _scaled(self, factor: float) -> Any:
        layers = [module for module in self.model.modules() if isinstance(module, LoraLayer)]

        @contextmanager
        def block():
            before = [layer.scaling["default"] for layer in layers]
            for layer, value in zip(layers, before, strict=True):
                layer.scaling["default"] = value * factor
            yield
            for layer, value in zip(layers, before, strict=True):
                layer.scaling["default"] = value

        return block()


@pytest.fixture
def adapter(tmp_path: Path) -> tuple[Any, Path]:
    model = tiny_model(tmp_path / "base", trained=True)
    model.get_base_model().lm_head.weight.data *= 20  # a random head is nearly indifferent between tokens
    save(model, tmp_path)
    convert(tmp_path, tmp_path / "base", tmp_path / GGUF)
    return model, tmp_path


def test_what_was_trained_passes_and_each_wrong_variant_fails(adapter: tuple[Any, Path]):
    model, directory = adapter
    served = ServedByTorch(model)
    proof = prove(model, Words(), rows(), directory, directory / "base", served, count=5, tolerance=0.12)
    assert proof.delta < 1e-4
    assert proof.noise < 1e-4
    assert min(proof.base_delta, proof.double_delta, proof.swapped_delta) > proof.tolerance
    assert proof.effect == pytest.approx(proof.base_delta, abs=1e-4)
    assert (proof.matches, proof.discriminates, proof.measurable) == (True, True, True)
    assert served.asked == 4 * proof.prompts == 20
    assert conclusions(proof)["promotable"] is True


def test_an_engine_that_applies_half_the_adapter_is_caught(adapter: tuple[Any, Path]):
    model, directory = adapter
    proof = prove(
        model, Words(), rows(), directory, directory / "base", ServedByTorch(model, wrong=0.5), count=5, tolerance=0.12
    )
    assert not proof.matches
    assert conclusions(proof)["verdict"] == "served differs from trained"


def test_an_adapter_without_effect_is_called_that(tmp_path: Path):
    model = tiny_model(tmp_path / "base")
    save(model, tmp_path)
    convert(tmp_path, tmp_path / "base", tmp_path / GGUF)
    proof = prove(model, Words(), rows(), tmp_path, tmp_path / "base", ServedByTorch(model), count=5, tolerance=0.12)
    said = conclusions(proof)
    assert (said["verdict"], said["measurable"], said["promotable"]) == ("no measurable effect", False, False)


def test_probes_stop_where_the_adapter_moves_the_next_token_most(adapter: tuple[Any, Path]):
    model, _ = adapter
    found = probes(model, Words(), rows(), 4, capacity=64)
    assert len(found) == 4
    served = ServedByTorch(model)
    for probe, row in zip(found, sorted(rows(), key=lambda row: (row.answer_start, row.tokens)), strict=False):
        length = len(probe.prompt.split())
        assert row.answer_start <= length <= row.answer_start + 8
        assert len(probe.trained) == 5
        exact = served._next(probe.prompt)
        assert all(exact[token] == pytest.approx(value, abs=1e-4) for token, value in probe.trained.items())


def test_deviation_counts_unseen_tokens_at_the_floor_and_refuses_nothing():
    assert deviation({"a": -1.0, "b": -2.0}, {"a": -1.5, "c": -4.0}) == pytest.approx((0.5 + 2.0) / 2)
    with pytest.raises(InputError):
        deviation({}, {"a": -1.0})


def test_no_heldout_prompt_is_one_clear_error(adapter: tuple[Any, Path]):
    model, directory = adapter
    with pytest.raises(InputError, match="no held-out prompt"):
        prove(model, Words(), [], directory, directory / "base", ServedByTorch(model), count=5, tolerance=0.12)


def test_a_check_that_wrong_adapters_pass_proves_nothing():
    proof = AdapterProof(
        delta=0.05,
        tolerance=0.12,
        base_delta=3.0,
        double_delta=0.9,
        swapped_delta=0.1,
        swapped_layers=(1, 2),
        noise=0.1,
        effect=3.0,
        prompts=20,
    )
    assert conclusions(proof)["verdict"] == "the check cannot tell this adapter from a wrong one"
    assert proof.record()["swapped_layers"] == [1, 2]
