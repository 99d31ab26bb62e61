"""The training loop: planned steps inside a budget of seconds, and a checkpoint from which it goes on."""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from infra.errors import InputError
from infra.identity import Value, new_id
from training.examples import Example
from training.model import adapter_parameters, backward
from training.packing import batches
from training.recipes import LoraRecipe

SAVE_SECONDS = 30.0

OnStep = Callable[[int, int, float], None]
"""Step, planned steps (0 until they are known), loss of the step in nats per token."""


class Progress(Value):
    """Where a training stands."""

    step: int = Field(0, ge=0, description="Optimizer steps done.")
    planned: int = Field(0, ge=0, description="Steps in all; 0 until the warm-up has shown how long a step takes.")
    tokens: int = Field(0, ge=0, description="Tokens seen, prompts included.")
    counted: int = Field(0, ge=0, description="Tokens the loss counted.")
    seconds: float = Field(0.0, ge=0, description="Seconds of training steps, all runs together.")
    first: float = Field(0.0, ge=0, description="Seconds of the first step, which also warms caches up.")
    losses: tuple[float, ...] = Field((), description="Loss of each step, nats per counted token.")
    resumed: int = Field(0, ge=0, description="How often training went on from a checkpoint.")
    done: bool = Field(False, description="No further step will be made.")


class Checkpoint:
    """One file with adapter, optimizer and progress, replaced as a whole; it lies beside the artifact."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def save(self, model: Any, optimizer: Any, progress: Progress) -> None:
        """Replace the checkpoint; a reader sees the old one or the new one."""
        import torch

        self.file.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.file.with_name(f".{self.file.name}.{new_id()}")
        weights = [parameter.detach().cpu() for parameter in adapter_parameters(model)]
        torch.save({"adapter": weights, "optimizer": optimizer.state_dict(), "progress": progress.model_dump()}, fresh)
        fresh.replace(self.file)

    def load(self, model: Any, optimizer: Any) -> Progress:
        """Put the saved state into model and optimizer; a fresh `Progress` when there is none.

        A file that does not parse (a power cut) is removed and training begins anew.
        """
        import torch

        if not self.file.exists():
            return Progress()
        try:
            saved = torch.load(self.file, weights_only=True, map_location="cpu")
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError):
            self.remove()
            return Progress()
        with torch.no_grad():
            for parameter, value in zip(adapter_parameters(model), saved["adapter"], strict=True):
                parameter.copy_(value)
        optimizer.load_state_dict(saved["optimizer"])
        progress = Progress.model_validate(saved["progress"])
        return progress.model_copy(update={"resumed": progress.resumed + 1})

    def remove(self) -> None:
        """Forget it, with what an interrupted save left."""
        for file in self.file.parent.glob(f"*{self.file.name}*"):
            file.unlink(missing_ok=True)


def learning_rate(step: int, planned: int, recipe: LoraRecipe) -> float:
    """Linear warm-up over `warmup_steps`, then linear decay that reaches zero one step after the last (0-based)."""
    warm = (step + 1) / recipe.warmup_steps
    left = (planned - step) / max(1, planned - recipe.warmup_steps) if planned else 1.0
    return recipe.learning_rate * max(0.0, min(1.0, warm, left))


def plan(progress: Progress, recipe: LoraRecipe, available: int) -> int:
    """Steps that fit: those the rows give, `max_steps`, and what the budget holds at the speed seen after the first."""
    later = progress.step - 1
    per_step = (progress.seconds - progress.first) / later if later else progress.seconds
    affordable = progress.step + math.floor((recipe.seconds - progress.seconds) / per_step)
    return max(progress.step, min(available, recipe.max_steps, affordable))


def run(
    model: Any,
    examples: Sequence[Example],
    recipe: LoraRecipe,
    checkpoint: Checkpoint,
    on_step: OnStep | None = None,
) -> Progress:
    """Train the adapter of `model` in place, going on from the checkpoint when there is one.

    Ends at the planned step, or earlier when `recipe.seconds` are used up. Raises `InputError` without rows or
    when the loss is not a number.
    """
    import torch

    if not examples:
        raise InputError("no row is left to train on", rule=f"rows of at most {recipe.pack_tokens} tokens")
    optimizer = torch.optim.AdamW(
        adapter_parameters(model), lr=recipe.learning_rate, betas=(0.9, 0.999), weight_decay=recipe.weight_decay
    )
    progress = checkpoint.load(model, optimizer)
    steps = list(batches(examples, recipe.pack_tokens, recipe.epochs, recipe.seed))
    saved = time.monotonic()
    while not progress.done:
        if progress.step >= recipe.warmup_steps and not progress.planned:
            progress = progress.model_copy(update={"planned": plan(progress, recipe, len(steps))})
        progress = _finished(progress, recipe, len(steps))
        if progress.done:
            break
        progress = _step(model, optimizer, steps[progress.step], recipe, progress)
        if on_step is not None:
            on_step(progress.step, progress.planned, progress.losses[-1])
        if time.monotonic() - saved > SAVE_SECONDS:
            checkpoint.save(model, optimizer, progress)
            saved = time.monotonic()
    checkpoint.save(model, optimizer, progress)
    return progress


def _finished(progress: Progress, recipe: LoraRecipe, available: int) -> Progress:
    last = progress.planned or min(available, recipe.max_steps)
    over = progress.step >= last or (progress.step > 0 and progress.seconds >= recipe.seconds)
    return progress.model_copy(update={"done": over})


def _step(model: Any, optimizer: Any, rows: list[Example], recipe: LoraRecipe, progress: Progress) -> Progress:
    import torch

    started = time.monotonic()
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(progress.step, progress.planned, recipe)
    loss = backward(model, rows)
    if not math.isfinite(loss):
        raise InputError(
            "the training loss is not a number", seen=f"step {progress.step + 1}", fix="lower learning_rate"
        )
    torch.nn.utils.clip_grad_norm_(adapter_parameters(model), recipe.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    spent = time.monotonic() - started
    return progress.model_copy(
        update={
            "step": progress.step + 1,
            "tokens": progress.tokens + sum(len(row.tokens) for row in rows),
            "counted": progress.counted + sum(len(row.answer) for row in rows),
            "seconds": progress.seconds + spent,
            "first": progress.first or spent,
            "losses": (*progress.losses, loss),
        }
    )
