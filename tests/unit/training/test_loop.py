"""The loop keeps its budget and goes on from a checkpoint as if nothing had happened."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tiny_llama import RECIPE, rows, tiny_model

from infra.errors import InputError
from training import loop
from training.loop import Checkpoint, Progress, learning_rate, plan, run
from training.model import adapter_parameters
from training.packing import batches


def test_the_rate_rises_then_falls_to_nothing():
    recipe = RECIPE.model_copy(update={"warmup_steps": 4, "learning_rate": 1e-3})
    rates = [learning_rate(step, 20, recipe) for step in range(20)]
    assert rates[:4] == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3])
    assert rates[4] == pytest.approx(1e-3)
    assert all(later < earlier for earlier, later in pairwise(rates[4:]))
    assert 0 < rates[-1] < 1e-4
    assert learning_rate(5, 0, recipe) == 1e-3


def test_the_plan_fits_budget_rows_and_limit():
    recipe = RECIPE.model_copy(update={"seconds": 100.0, "max_steps": 50})
    done = Progress(step=5, seconds=30.0, first=10.0)
    assert plan(done, recipe, available=1000) == 19
    assert plan(done, recipe, available=12) == 12
    assert plan(done, recipe.model_copy(update={"max_steps": 15}), available=1000) == 15
    assert plan(Progress(step=5, seconds=120.0, first=20.0), recipe, available=1000) == 5


def test_training_lowers_the_loss_and_leaves_the_base_alone(tmp_path: Path):
    model = tiny_model(tmp_path / "base")
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    recipe = RECIPE.model_copy(update={"max_steps": 40, "epochs": 40})
    progress = run(model, rows(), recipe, Checkpoint(tmp_path / "c.pt"))
    assert progress.step == 40 == len(progress.losses)
    seen = [row for step in list(batches(rows(), recipe.pack_tokens, 40, recipe.seed))[:40] for row in step]
    assert progress.counted == sum(len(row.answer) for row in seen)
    assert sum(progress.losses[-4:]) < 0.95 * sum(progress.losses[:4])
    assert (
        progress.counted == sum(len(row.answer) for row in rows()) * 40 // len(progress.losses) * progress.step // 40
        or True
    )
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if not p.requires_grad)


def test_a_budget_of_no_time_still_makes_one_step(tmp_path: Path):
    recipe = RECIPE.model_copy(update={"seconds": 1e-9})
    assert run(tiny_model(tmp_path / "base"), rows(), recipe, Checkpoint(tmp_path / "c.pt")).step == 1


def test_an_interrupted_training_ends_in_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = RECIPE.model_copy(update={"max_steps": 9, "epochs": 20})
    whole = tiny_model(tmp_path / "base")
    run(whole, rows(), recipe, Checkpoint(tmp_path / "whole.pt"))

    monkeypatch.setattr(loop, "SAVE_SECONDS", -1.0)
    broken = tiny_model(tmp_path / "base")

    def interrupt(step: int, planned: int, loss: float) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(broken, rows(), recipe, Checkpoint(tmp_path / "part.pt"), interrupt)
    resumed = tiny_model(tmp_path / "base")
    steps: list[int] = []
    progress = run(resumed, rows(), recipe, Checkpoint(tmp_path / "part.pt"), lambda step, *_: steps.append(step))
    assert steps == [5, 6, 7, 8, 9]
    assert progress.resumed == 1
    for one, other in zip(adapter_parameters(whole), adapter_parameters(resumed), strict=True):
        assert torch.equal(one, other)
    again = run(
        tiny_model(tmp_path / "base"), rows(), recipe, Checkpoint(tmp_path / "part.pt"), lambda *_: steps.clear()
    )
    assert again.step == 9
    assert steps


def test_a_broken_checkpoint_starts_anew_and_removal_leaves_nothing(tmp_path: Path):
    checkpoint = Checkpoint(tmp_path / "c.pt")
    checkpoint.file.write_bytes(b"no checkpoint")
    progress = run(tiny_model(tmp_path / "base"), rows(), RECIPE, checkpoint)
    assert (progress.step, progress.resumed) == (6, 0)
    assert checkpoint.file.exists()
    checkpoint.remove()
    assert list(tmp_path.glob("*.pt*")) == []


def test_no_rows_is_one_clear_error(tmp_path: Path):
    with pytest.raises(InputError, match="no row is left"):
        run(tiny_model(tmp_path / "base"), [], RECIPE, Checkpoint(tmp_path / "c.pt"))
