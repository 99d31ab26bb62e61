"""A random two-layer Llama with a LoRA adapter, and a tokenizer of whole words: everything but the weights is real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.examples import Example
from training.model import load_with_adapter
from training.recipes import LoraRecipe

RECIPE = LoraRecipe(base="tiny", rank=4, alpha=8, learning_rate=5e-3, pack_tokens=64, max_steps=6, seconds=1e6)


def save_base(directory: Path, model_type: str = "llama") -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
    }
    torch.manual_seed(3)
    model = LlamaForCausalLM(LlamaConfig(**sizes)) if model_type == "llama" else Qwen2ForCausalLM(Qwen2Config(**sizes))
    model.save_pretrained(directory)
    return directory


def tiny_model(directory: Path, *, trained: bool = False) -> Any:
    """The base with a fresh adapter; `trained` fills B with noise so that the adapter does something."""
    import torch

    model = load_with_adapter(save_base(directory), RECIPE, torch.float32)
    if trained:
        torch.manual_seed(5)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.3)
    return model


def rows(count: int = 9) -> list[Example]:
    """Rows of 6 to 22 tokens with answers of 4 to 14 tokens."""
    found = []
    for number in range(count):
        length = 6 + 2 * number
        tokens = tuple((7 * number + 5 * place) % 90 + 3 for place in range(length))
        found.append(Example(tokens, length - 4 - number))
    return found


class Words:
    """A tokenizer: each word `w<id>` is one token; text that is no such word becomes token 0."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [int(word[1:]) if word[:1] == "w" else 0 for word in text.split()]}

    def decode(self, ids: list[int], **settings: bool) -> str:
        return " ".join(f"w{token}" for token in ids)
