"""`train`: dataset and recipe to an adapter artifact with its losses and its proof.

The artifact holds the adapter twice: as PEFT safetensors for PyTorch and as GGUF for llama.cpp. A training that was
interrupted leaves a checkpoint beside the artifact, and the next call goes on from it.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.artifacts import Artifacts, Manifest
from infra.identity import content_id, short
from infra.locking import exclusive
from infra.settings import ModelSettings
from training.examples import Example, encode_rows
from training.gguf_adapter import CONFIG, GGUF, WEIGHTS, convert
from training.loop import Checkpoint, Progress, run
from training.model import load_tokenizer, load_trained, load_with_adapter, row_losses
from training.paired import Difference, difference
from training.proof import DEEPEST, TOP, AdapterProof, Served, prove
from training.recipes import LoraRecipe

if TYPE_CHECKING:
    from collections.abc import Iterator

LAYOUT = 1
"""Raised when the meaning of an adapter artifact changes, so that older ones are made again."""

OnProgress = Callable[[int, int, str], None]
"""Done, in all, note: steps while training (the note is the loss), 0 of 0 with the stage's name otherwise."""


def train(
    artifacts: Artifacts,
    dataset: Manifest,
    recipe: LoraRecipe,
    models: ModelSettings,
    on_progress: OnProgress | None = None,
    *,
    served: Served | None = None,
) -> Manifest:
    """The adapter that `recipe` makes of `dataset`: the stored one, or a new one (kind "adapter").

    `served` is the engine that the proof asks; default: the machine's llama.cpp server. Needs about 5 GB of memory
    for the 0.5B base on a CPU. Raises what resolving the base raises, `InputError` for a dataset without usable
    rows, `CorruptArtifact` when the dataset's files differ from its manifest.
    """
    from infra.models import resolve

    tell = on_progress or _quiet
    base = resolve(recipe.base, models, lambda name, done, total: tell(done, total, f"download of {name}"))
    inputs = {
        "dataset": dataset.id,
        "recipe": recipe.model_dump(),
        "base": {"name": recipe.base, "sha256": base.sha256},
        "proof": {"top": TOP, "deepest": DEEPEST},
        "layout": LAYOUT,
    }
    identity = content_id("adapter", inputs)
    checkpoint = Checkpoint(artifacts.path("adapter", identity).parent / f".checkpoint-{short(identity, 16)}.pt")
    inputs |= {"libraries": {name: version(name) for name in ("torch", "transformers", "peft", "gguf")}}
    job = _Job(recipe, models, checkpoint, tell, served or _engine(models, recipe.base))
    with exclusive(checkpoint.file.with_suffix(".lock")):
        rows = artifacts.verify("dataset", dataset.id)
        manifest = artifacts.build("adapter", identity, inputs, lambda directory: job.fill(directory, rows))
        checkpoint.remove()
    return manifest


class _Job:
    """One training, stage by stage, with the seconds of each."""

    def __init__(
        self, recipe: LoraRecipe, models: ModelSettings, checkpoint: Checkpoint, tell: OnProgress, served: Served
    ) -> None:
        self._recipe, self._models, self._checkpoint = recipe, models, checkpoint
        self._tell, self._served = tell, served
        self._seconds: dict[str, float] = {}

    def fill(self, directory: Path, dataset: Path) -> dict[str, Any]:
        """Train, measure, write and prove; the summary of the manifest."""
        from infra.llm.weights import dequantized

        recipe = self._recipe
        with self._stage("base"):
            base = dequantized(
                recipe.base, self._models, lambda name, done, total: self._tell(done, total, f"base {name}")
            )
            model, tokenizer = load_with_adapter(base, recipe), load_tokenizer(base)
            train_rows = encode_rows(tokenizer, _rows(dataset / "train.jsonl"), recipe.pack_tokens)
            heldout = encode_rows(tokenizer, _rows(dataset / "heldout.jsonl"), recipe.pack_tokens)
        with self._stage("training"):
            model.train()
            progress = run(model, train_rows, recipe, self._checkpoint, self._on_step)
            model.eval()
        with self._stage("held-out loss"):
            losses = heldout_losses(model, heldout[: recipe.heldout_rows], recipe.pack_tokens)
        with self._stage("conversion"):
            save(model, directory)
            convert(directory, base, directory / GGUF)
            del model
        with self._stage("proof"):
            proof = prove(
                load_trained(base, directory),
                tokenizer,
                heldout,
                directory,
                base,
                self._served,
                count=recipe.proof_prompts,
                tolerance=recipe.proof_tolerance,
            )
        return {**losses, **self._figures(progress, len(train_rows)), **conclusions(proof)}

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self._tell(0, 0, name)
        started = time.monotonic()
        yield
        self._seconds[name] = round(time.monotonic() - started, 1)

    def _on_step(self, step: int, planned: int, loss: float) -> None:
        self._tell(step, planned, f"loss {loss:.3f}")

    def _figures(self, progress: Progress, rows: int) -> dict[str, Any]:
        return {
            "base": self._recipe.base,
            "rank": self._recipe.rank,
            "scale": self._recipe.alpha / self._recipe.rank,
            "rows": rows,
            "steps": progress.step,
            "tokens": progress.tokens,
            "answer_tokens": progress.counted,
            "tokens_per_second": round(progress.tokens / max(progress.seconds, 1e-9), 1),
            "resumed": progress.resumed,
            "seconds": self._seconds,
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "loss_curve": [[step, round(loss, 4)] for step, loss in enumerate(progress.losses, start=1)],
        }


def heldout_losses(model: Any, examples: Sequence[Example], capacity: int) -> dict[str, Any]:
    """Token-weighted mean loss on held-out rows without and with the adapter, and the paired interval of after minus
    before over rows (bootstrap weighted by tokens); nats per answer token."""
    after = row_losses(model, examples, capacity)
    with model.disable_adapter():
        before = row_losses(model, examples, capacity)
    counted = [tokens for _, tokens in after]
    gaps = [(late - early) / tokens for (late, tokens), (early, _) in zip(after, before, strict=True)]
    change: Difference = difference(gaps, [float(tokens) for tokens in counted])
    return {
        "heldout_loss_before": round(sum(loss for loss, _ in before) / sum(counted), 4),
        "heldout_loss_after": round(sum(loss for loss, _ in after) / sum(counted), 4),
        "heldout_change": change.model_dump(),
        "heldout_rows": len(examples),
        "heldout_tokens": sum(counted),
    }


def conclusions(proof: AdapterProof) -> dict[str, Any]:
    """The proof and what follows from it: only an adapter that is served as trained and does something may be
    promoted."""
    if not proof.measurable:
        verdict = "no measurable effect"
    elif not proof.matches:
        verdict = "served differs from trained"
    elif not proof.discriminates:
        verdict = "the check cannot tell this adapter from a wrong one"
    else:
        verdict = "served is what was trained"
    return {
        "proof": proof.record(),
        "measurable": proof.measurable,
        "promotable": verdict == "served is what was trained",
        "verdict": verdict,
    }


def save(model: Any, directory: Path) -> None:
    """Write adapter_model.safetensors (float32) and adapter_config.json, which PEFT loads."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    save_file({name: tensor.float().contiguous().cpu() for name, tensor in state.items()}, directory / WEIGHTS)
    config = json.loads(json.dumps(model.peft_config["default"].to_dict(), default=sorted))
    config["inference_mode"] = True
    (directory / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))


def _engine(models: ModelSettings, base: str) -> Served:
    def ask(adapter: Path, prompts: Sequence[str], top: int, scale: float) -> list[dict[str, float]]:
        from infra.llm.local import next_token_logprobs

        return next_token_logprobs(models, base, adapter, prompts, top, scale=scale)

    return ask


def _rows(file: Path) -> list[Mapping[str, str]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _quiet(done: int, total: int, note: str) -> None:
    """Nobody listens."""
