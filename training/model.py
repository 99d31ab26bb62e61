"""The base model with a LoRA adapter in PyTorch: loading, losses, gradients."""

from __future__ import annotations

import ctypes
import platform
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.examples import Example
from training.packing import Pack, group, pack
from training.recipes import LoraRecipe

M_MMAP_THRESHOLD = -3  # malloc.h
HEAD_ROWS = 64
"""Answer positions whose logits exist at once: 64 × 151,936 float32 are 39 MB for Qwen's vocabulary."""


def give_freed_memory_back() -> None:
    """Let glibc map every block from 2 MiB on by itself, so that freed activations return to the system.

    Its own threshold grows to 32 MiB and the heap fragments: 0.5 GB more after two steps of the 0.5B. Elsewhere than
    on glibc nothing happens.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2 * 1024 * 1024)


def device_and_dtype() -> tuple[str, Any]:
    """CUDA with bfloat16 where there is a GPU; on a CPU bfloat16 only with bf16 matrix units (AMX or AVX-512 BF16),
    because without them it is slower than float32."""
    import torch

    if torch.cuda.is_available():
        return "cuda", torch.bfloat16
    units = torch.cpu.get_capabilities()
    fast = units.get("amx_bf16") or units.get("avx512_bf16")
    return "cpu", torch.bfloat16 if fast else torch.float32


def load_tokenizer(directory: Path) -> Any:
    """The base's tokenizer with its chat template."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


def load_with_adapter(directory: Path, recipe: LoraRecipe, dtype: Any = None) -> Any:
    """The frozen base with a fresh LoRA adapter on every linear layer but the head; B starts at zero.

    `dtype` is that of the base's weights; None is the fastest one here.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    give_freed_memory_back()
    logging.disable_progress_bar()
    device, fastest = device_and_dtype()
    base = AutoModelForCausalLM.from_pretrained(directory, dtype="auto", attn_implementation="sdpa").to(device)
    for parameter in base.parameters():
        parameter.data = parameter.data.to(dtype or fastest)
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(), warnings.catch_warnings(action="ignore", category=FutureWarning):
        torch.manual_seed(recipe.seed)
        model = get_peft_model(base, config)
    model.peft_config["default"].base_model_name_or_path = recipe.base
    return model


def load_trained(directory: Path, adapter: Path) -> Any:
    """The base with a saved adapter in float32, to be measured: of an adapter trained in bfloat16 the proof saw 0.052
    nats in float32 and 0.075 in bfloat16, whose own rounding it would otherwise hold against the serving engine."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    device, _ = device_and_dtype()
    base = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="sdpa")
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        return PeftModel.from_pretrained(base.to(device), adapter).eval()


def adapter_parameters(model: Any) -> list[Any]:
    """The parameters that are trained: the LoRA matrices, in the order of the model."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def answer_states(model: Any, packed: Pack) -> Any:
    """Hidden states that predict the counted tokens, shape (N, hidden)."""
    inner = model.get_base_model()
    device = inner.device
    out = inner.model(
        input_ids=packed.tokens.to(device),
        position_ids=packed.positions.to(device),
        attention_mask=packed.mask.to(device, inner.dtype),
        use_cache=False,
    )
    return out.last_hidden_state[0, packed.sources.to(device)]


def losses_and_gradient(model: Any, states: Any, targets: Any) -> tuple[Any, Any]:
    """Cross-entropy of each counted token (float32, shape (N,)) and its gradient with respect to the states.

    The head is frozen, so the gradient softmax(logits) - onehot, taken through the head, needs no graph and only
    `HEAD_ROWS` rows of logits at a time.
    """
    import torch

    weight = model.get_base_model().lm_head.weight
    losses: list[Any] = []
    gradients: list[Any] = []
    with torch.no_grad():
        for some, wanted in zip(states.split(HEAD_ROWS), targets.to(states.device).split(HEAD_ROWS), strict=True):
            log = torch.log_softmax((some @ weight.T).float(), dim=-1)
            losses.append(-log.gather(1, wanted[:, None])[:, 0])
            slope = log.exp_()
            slope[torch.arange(len(wanted), device=slope.device), wanted] -= 1
            gradients.append(slope.to(weight.dtype) @ weight)
    return torch.cat(losses), torch.cat(gradients)


def backward(model: Any, examples: Sequence[Example]) -> float:
    """Add the gradient of the token-mean loss of one packed sequence to the adapter; the loss in nats per token."""
    packed = pack(examples)
    states = answer_states(model, packed)
    losses, gradient = losses_and_gradient(model, states.detach(), packed.targets)
    states.backward(gradient / len(losses))
    return float(losses.mean())


def row_losses(model: Any, examples: Sequence[Example], capacity: int) -> list[tuple[float, int]]:
    """(Sum of the loss in nats, counted tokens) of each row, same order, without gradients."""
    import torch

    weight = model.get_base_model().lm_head.weight
    found: list[tuple[float, int]] = [(0.0, 0)] * len(examples)
    for members in group([len(example.tokens) for example in examples], capacity):
        packed = pack([examples[member] for member in members])
        with torch.no_grad():
            states = answer_states(model, packed)
            parts = zip(states.split(HEAD_ROWS), packed.targets.to(states.device).split(HEAD_ROWS), strict=True)
            losses = [
                torch.nn.functional.cross_entropy((some @ weight.T).float(), to, reduction="none") for some, to in parts
            ]
        flat = torch.cat(losses).cpu()
        for row, member in enumerate(members):
            own = flat[packed.rows == row]
            found[member] = (float(own.sum()), len(own))
    return found
