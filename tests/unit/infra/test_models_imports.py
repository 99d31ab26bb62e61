"""Importing the model modules is cheap, and constructing their objects touches nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pydantic import SecretStr

from infra.embedder import open_embedder
from infra.llm.endpoint import Connection
from infra.llm.opening import open_chat
from infra.llm.transformers import TransformersChat
from infra.settings import LlmSettings, ModelSettings

MODULES = "infra.models infra.embedder infra.llm.opening infra.llm.transformers infra.llm.weights infra.llm.llamacpp"
HEAVY = "torch transformers peft sentence_transformers openai xllamacpp huggingface_hub numpy tokenizers"


SCRIPT = """
import importlib, sys
ours, heavy = (argument.split() for argument in sys.argv[1:])
for name in ours:
    importlib.import_module(name)
print(len([name for name in ours if name in sys.modules]), [name for name in heavy if name in sys.modules])
"""


def test_no_heavy_library_is_imported():
    command = [sys.executable, "-c", SCRIPT, MODULES, HEAVY]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "6 []"


def test_constructors_do_no_io(tmp_path: Path):
    models = ModelSettings(cache=tmp_path / "cache")
    open_embedder(models)
    open_chat(LlmSettings(), models)
    TransformersChat(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_a_connection_hides_its_key():
    assert "secret" not in repr(Connection(base_url="http://127.0.0.1/v1", api_key=SecretStr("secret")))
