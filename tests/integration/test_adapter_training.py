"""A real adapter of SmolLM2, from rows to the proof that llama.cpp serves what was trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.artifacts import Artifacts, Manifest
from infra.identity import content_id
from infra.llm.weights import dequantized
from infra.settings import Settings, load_settings
from training.examples import chat_prompt, encode
from training.gguf_adapter import GGUF
from training.lora import train
from training.model import load_tokenizer, load_with_adapter, row_losses
from training.passages import Unfit, answer_of
from training.recipes import recipe_named

pytestmark = pytest.mark.small_models
NOTES = Path(__file__).resolve().parents[2] / "examples" / "notes"
SMALL = "smollm2-135m-instruct"


def rows() -> list[dict[str, str]]:
    """A row per paragraph of the project's notes that can be an answer."""
    found: list[dict[str, str]] = []
    for note in sorted(NOTES.glob("*.md")):
        heading = note.stem.replace("-", " ")
        for block in note.read_text().split("\n\n"):
            if block.startswith("#"):
                heading = block.strip("# ")
            try:
                answer = answer_of(block)
            except Unfit:
                continue
            instruction = f"Explain “{heading}” in a paragraph."
            found.append({"instruction": instruction, "answer": answer, "document_id": note.stem, "chunk_id": heading})
    return found


def dataset(artifacts: Artifacts) -> Manifest:
    """The first documents for training, the last ones held out."""
    documents = sorted({row["document_id"] for row in rows()})
    heldout = set(documents[-6:])

    def fill(directory: Path) -> dict[str, int]:
        sides = {"train": [], "heldout": []}
        for row in rows():
            sides["heldout" if row["document_id"] in heldout else "train"].append(json.dumps(row))
        for name, lines in sides.items():
            (directory / f"{name}.jsonl").write_text("\n".join(lines))
        return {name: len(lines) for name, lines in sides.items()}

    return artifacts.build("dataset", content_id("dataset", "notes"), {}, fill)


@pytest.fixture(scope="module")
def base() -> Path:
    return dequantized(SMALL, load_settings().models)


def test_the_loss_counts_the_answer_and_its_end_and_nothing_else(base: Path):
    tokenizer = load_tokenizer(base)
    checked = 0
    for row in rows()[:40]:
        example = encode(tokenizer, row["instruction"], row["answer"])
        counted = tokenizer.decode(list(example.answer))
        assert counted == row["answer"] + "<|im_end|>"
        prompt = tokenizer.decode(list(example.tokens[: example.answer_start]))
        assert prompt == chat_prompt(tokenizer, row["instruction"])
        checked += 1
    assert checked == 40


def test_packed_and_separate_rows_give_the_same_loss_on_smollm2(base: Path):
    import torch

    model, tokenizer = load_with_adapter(base, recipe_named("tiny"), torch.float32), load_tokenizer(base)
    examples = [encode(tokenizer, row["instruction"], row["answer"]) for row in rows()[:6]]
    packed = row_losses(model, examples, 1024)
    alone = row_losses(model, examples, 1)
    for (one, tokens), (other, _) in zip(packed, alone, strict=True):
        assert one / tokens == pytest.approx(other / tokens, abs=1e-4)


def test_an_adapter_is_trained_converted_proven_and_reused(settings: Settings):
    artifacts = Artifacts(settings.home / "artifacts")
    rows_of = dataset(artifacts)
    told: list[tuple[int, int, str]] = []
    manifest = train(artifacts, rows_of, recipe_named("tiny"), settings.models, lambda *said: told.append(said))
    again = train(artifacts, rows_of, recipe_named("tiny"), settings.models)
    said = manifest.summary
    assert set(manifest.files) == {"adapter_config.json", "adapter_model.safetensors", GGUF}
    assert said["heldout_change"]["high"] < 0
    assert said["heldout_loss_after"] < said["heldout_loss_before"]
    assert said["proof"]["matches"], said["proof"]
    assert said["proof"]["discriminates"], said["proof"]
    assert said["promotable"]
    assert [step for step, total, note in told if note.startswith("loss")] == list(range(1, said["steps"] + 1))
    assert len(said["loss_curve"]) == said["steps"] == 8
    assert again == manifest
    assert list(artifacts.root.glob("adapter/.checkpoint-*.pt")) == []


def test_peft_loads_the_stored_adapter(base: Path, settings: Settings, tmp_path: Path):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from training.lora import save

    model, tokenizer = load_with_adapter(base, recipe_named("tiny"), torch.float32), load_tokenizer(base)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02)
    save(model, tmp_path)
    fresh = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    ids = torch.tensor([tokenizer("A vector database stores")["input_ids"]])
    with torch.no_grad():
        plain = fresh(ids).logits
        stored = PeftModel.from_pretrained(fresh, tmp_path)(ids).logits
        trained = model(ids).logits
    assert torch.allclose(stored, trained, atol=1e-4)
    assert (plain - trained).abs().max() > 1e-2
