"""Weights for Transformers: a catalogue GGUF dequantized once, and the name of an adapter."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infra.artifacts import MANIFEST, Artifacts, read_manifest
from infra.errors import CorruptArtifact, InputError, NotFound, QuillError
from infra.identity import content_id, file_hash, short
from infra.locking import exclusive
from infra.models import ResolvedModel, resolve
from infra.settings import ModelSettings, load_settings, quiet_third_parties

KIND = "dequantized"
DTYPE = "float16"
"""Against the exact values, float16 moves a top-5 log-probability by 0.0007 on average (Qwen 0.5B), bfloat16 by
0.0066, at the same size; the weights (largest 211) are far from float16's limit."""

STEPS = 3


def dequantized(name: str, models: ModelSettings, on_progress: Callable[[str, int, int], None] | None = None) -> Path:
    """A directory that Transformers reads: float16 safetensors, config and tokenizer, made once from the GGUF.

    It lies in `<models.cache>/dequantized/` with a manifest. On two cores the 0.5B takes about a minute, 4 GiB of
    memory and 1 GB of disk. `on_progress` gets (name, steps done, steps in all), after the download's bytes.
    Raises what `infra.models.resolve` raises, `InputError` for a model that is not GGUF and `CorruptArtifact` when
    Transformers cannot read the file.
    """
    found = resolve(name, models, on_progress)
    if found.path.is_dir():
        raise InputError("only a GGUF model can be dequantized", seen=name)
    artifacts = Artifacts(models.cache)
    inputs = {"name": found.name, "sha256": found.sha256, "dtype": DTYPE}
    identity = content_id(KIND, {"sha256": found.sha256, "dtype": DTYPE})
    directory = artifacts.path(KIND, identity)
    if artifacts.find(KIND, identity) is None:
        with exclusive(directory.with_suffix(".lock")):
            artifacts.build(KIND, identity, inputs, lambda staging: _convert(found, staging, on_progress))
    return directory


def adapter_digits(adapter: Path) -> str:
    """Twelve hex digits that name an adapter: of its artifact's id, or of the file's hash when it stands alone.

    `adapter` is a GGUF LoRA file or a PEFT directory. Raises `NotFound` when it does not exist.
    """
    directory = adapter if adapter.is_dir() else adapter.parent
    file = adapter / "adapter_model.safetensors" if adapter.is_dir() else adapter
    if not file.is_file():
        raise NotFound("no adapter at this path", seen=adapter, rule=f"{file.name} exists", fix="train it again")
    if (directory / MANIFEST).exists():
        return short(read_manifest(directory).id)
    return short(file_hash(file))


def _convert(
    found: ResolvedModel, staging: Path, on_progress: Callable[[str, int, int], None] | None
) -> dict[str, Any]:
    def step(done: int) -> None:
        if on_progress is not None:
            on_progress(found.name, done, STEPS)

    quiet_transformers()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    place, file = found.path.parent, found.path.name
    plain = GgufConfig(dequantize=True)
    step(0)
    try:
        AutoTokenizer.from_pretrained(place, gguf_file=file).save_pretrained(staging)
        step(1)
        model = AutoModelForCausalLM.from_pretrained(
            place, gguf_file=file, dtype=torch.float16, quantization_config=plain
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        fix = "name another model, or delete the file and fetch it again"
        raise CorruptArtifact(
            "Transformers cannot read this GGUF", seen=found.path, rule=str(error), fix=fix
        ) from error
    step(2)
    _forget_quantization(model)
    if not all(bool(weight.isfinite().all()) for weight in model.parameters()):
        raise CorruptArtifact("these weights do not fit float16", seen=found.path, rule="every weight is finite")
    model.save_pretrained(staging)
    step(STEPS)
    return {"parameters": model.num_parameters(), "dtype": DTYPE}


def quiet_transformers() -> None:
    """Import Transformers without its progress bars and advice; its errors still show."""
    quiet_third_parties()
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _forget_quantization(model: Any) -> None:
    """What is saved are plain weights; the marks of the GGUF loader would make the next loader look for a GGUF."""
    model.hf_quantizer = None
    for mark in ("quantization_config", "_pre_quantization_dtype"):
        if mark in vars(model.config):
            delattr(model.config, mark)


def main(arguments: list[str] | None = None) -> int:
    """`python -m infra.llm.weights [NAME…]`: dequantize ahead of time; by default the base of adapters."""
    parser = argparse.ArgumentParser(description="Dequantize models for training.")
    parser.add_argument("names", nargs="*", help="catalogue names; default: the setting models.adapter_base")
    models = load_settings().models
    try:
        for name in parser.parse_args(arguments).names or [models.adapter_base]:
            sys.stdout.write(f"{name}  {dequantized(name, models)}\n")
    except QuillError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
