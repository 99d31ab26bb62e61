"""Proof that what is served is what was trained.

On held-out prompts the next-token log-probabilities of Transformers with the PEFT adapter are compared with those of
llama.cpp with the converted GGUF adapter. Each prompt stops inside its answer where the adapter moves the
distribution most (found with Transformers alone, so the choice cannot favour the serving engine). The same check must
fail without the adapter, with the adapter at twice its strength, and with two layers' updates exchanged.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field

from infra.errors import InputError
from infra.identity import Value
from training.examples import Example
from training.gguf_adapter import GGUF, convert, most_different_layers, read_pairs
from training.model import answer_states
from training.packing import group, pack

TOP = 5
SERVED_TOP = 100
DEEPEST = 8
"""Answer tokens a prompt may contain: prompts stay short, and early tokens decide style and content."""


class AdapterProof(Value):
    """Mean |Δ log p| (nats) over the trained model's top tokens, of the served model against the trained one."""

    delta: float = Field(ge=0, description="Served with the adapter.")
    tolerance: float = Field(gt=0, description="Upper bound of `delta` for a match.")
    base_delta: float = Field(ge=0, description="Served without the adapter (scale 0).")
    double_delta: float = Field(ge=0, description="Served at twice the strength (scale 2).")
    swapped_delta: float = Field(ge=0, description="Served with the updates of two layers exchanged.")
    swapped_layers: tuple[int, int] = Field(description="Those layers: the two whose updates differ most.")
    noise: float = Field(ge=0, description="Base in Transformers against base served: quantized arithmetic alone.")
    effect: float = Field(ge=0, description="Base against trained, both in Transformers: what the adapter does.")
    prompts: int = Field(ge=1, description="Held-out prompts compared.")

    @property
    def matches(self) -> bool:
        """Served is what was trained."""
        return self.delta <= self.tolerance

    @property
    def discriminates(self) -> bool:
        """The same check fails for each wrong adapter, so passing it means something."""
        return min(self.base_delta, self.double_delta, self.swapped_delta) > self.tolerance

    @property
    def measurable(self) -> bool:
        """The adapter changes more than the tolerance. False: 'no measurable effect', not promotable."""
        return self.effect > self.tolerance

    def record(self) -> dict[str, Any]:
        """All figures and the three conclusions as JSON values."""
        figures = {name: round(value, 4) if isinstance(value, float) else value for name, value in self}
        conclusions = {name: getattr(self, name) for name in ("matches", "discriminates", "measurable")}
        return figures | {"swapped_layers": list(self.swapped_layers)} | conclusions


class Probe(Value):
    """A prompt and what the trained model and the base say comes next."""

    prompt: str = Field(description="Raw text: the chat prompt and the first tokens of the answer.")
    trained: dict[str, float] = Field(description="The trained model's top tokens to their log-probabilities.")
    base: dict[str, float] = Field(description="The base's log-probabilities of the same tokens.")

    @property
    def effect(self) -> float:
        """Mean |Δ log p| between base and trained."""
        return deviation(self.trained, self.base)


class Served(Protocol):
    """The serving engine: an adapter file, raw prompts and a scale to the likeliest next tokens of each prompt."""

    def __call__(self, adapter: Path, prompts: Sequence[str], top: int, scale: float) -> list[dict[str, float]]: ...


def deviation(expected: Mapping[str, float], seen: Mapping[str, float]) -> float:
    """Mean |Δ log p| over the expected tokens. A token not seen counts with the lowest log-probability seen, which
    it cannot exceed. Raises `InputError` when nothing is expected or seen."""
    if not expected or not seen:
        raise InputError("no tokens to compare", seen=f"{len(expected)} expected, {len(seen)} seen")
    floor = min(seen.values())
    return sum(abs(value - seen.get(token, floor)) for token, value in expected.items()) / len(expected)


def probes(model: Any, tokenizer: Any, examples: Sequence[Example], count: int, capacity: int) -> list[Probe]:
    """The `count` shortest held-out rows as probes, each cut where the adapter changes the next token most."""
    short = sorted(examples, key=lambda example: (example.answer_start, example.tokens))[:count]
    cut = [Example(row.tokens[: row.answer_start + DEEPEST + 1], row.answer_start) for row in short]
    found: list[Probe] = []
    for members in group([len(row.tokens) for row in cut], capacity):
        found += _probes(model, tokenizer, [cut[member] for member in members])
    return found


def prove(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    adapter: Path,
    base: Path,
    served: Served,
    *,
    count: int,
    tolerance: float,
) -> AdapterProof:
    """Compare the trained model with the served `adapter/adapter.gguf` and with three wrong variants.

    `model` is the base with the saved adapter, in float32; `base` is the base's directory (for its config), `examples`
    are held out, `tolerance` is in nats: llama.cpp rounds activations and PyTorch does not, so it depends on the
    base's quantization. Raises `InputError` without examples and what the serving engine raises.
    """
    chosen = probes(model, tokenizer, examples, count, capacity=320)
    if not chosen:
        raise InputError("no held-out prompt to prove the adapter on", fix="build a dataset with held-out rows")
    prompts = [probe.prompt for probe in chosen]
    file = adapter / GGUF

    def compare(adapter_file: Path, scale: float, expected: Callable[[Probe], dict[str, float]]) -> float:
        answers = served(adapter_file, prompts, SERVED_TOP, scale)
        return _mean([deviation(expected(probe), seen) for probe, seen in zip(chosen, answers, strict=True)])

    first, second = most_different_layers(read_pairs(adapter))
    plain = served(file, prompts, SERVED_TOP, 0.0)
    with tempfile.TemporaryDirectory() as scratch:
        swapped = convert(adapter, base, Path(scratch) / "swapped.gguf", {first: second, second: first})
        swapped_delta = compare(swapped, 1.0, lambda probe: probe.trained)
    return AdapterProof(
        delta=compare(file, 1.0, lambda probe: probe.trained),
        tolerance=tolerance,
        base_delta=_mean([deviation(probe.trained, seen) for probe, seen in zip(chosen, plain, strict=True)]),
        double_delta=compare(file, 2.0, lambda probe: probe.trained),
        swapped_delta=swapped_delta,
        swapped_layers=(first, second),
        noise=_mean([deviation(probe.base, seen) for probe, seen in zip(chosen, plain, strict=True)]),
        effect=_mean([probe.effect for probe in chosen]),
        prompts=len(chosen),
    )


def _probes(model: Any, tokenizer: Any, rows: Sequence[Example]) -> list[Probe]:
    packed = pack(rows)
    trained = _logprobs(model, packed)
    with model.disable_adapter():
        base = _logprobs(model, packed)
    found: list[Probe] = []
    for number, row in enumerate(rows):
        places = (packed.rows == number).nonzero()[:, 0].tolist()
        options = [_probe(tokenizer, row, depth, trained[place], base[place]) for depth, place in enumerate(places)]
        usable = [option for option in options if option is not None]
        if usable:
            found.append(max(usable, key=lambda option: option.effect))
    return found


def _logprobs(model: Any, packed: Any) -> Any:
    """Log-probabilities at every counted place, float32, shape (N, vocabulary)."""
    import torch

    with torch.no_grad():
        states = answer_states(model, packed)
        return torch.log_softmax((states @ model.get_base_model().lm_head.weight.T).float(), dim=-1).cpu()


def _probe(tokenizer: Any, row: Example, depth: int, trained: Any, base: Any) -> Probe | None:
    """The probe after `depth` answer tokens; None when the text does not tokenize back, or a top token is no text."""
    ids = list(row.tokens[: row.answer_start + depth])
    prompt = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    if list(tokenizer(prompt, add_special_tokens=False)["input_ids"]) != ids:
        return None
    values, tokens = trained.topk(TOP)
    texts = [tokenizer.decode([token]) for token in tokens.tolist()]
    if len(set(texts)) < TOP or any("\ufffd" in text or not text for text in texts):
        return None
    return Probe(
        prompt=prompt,
        trained=dict(zip(texts, values.tolist(), strict=True)),
        base=dict(zip(texts, base[tokens].tolist(), strict=True)),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
