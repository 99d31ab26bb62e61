"""Prompt files: YAML and JSON are read, and what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.errors import InputError
from infra.llm.chat import Message
from store.prompt_file import read_prompt_file

YAML = """
name: post
note: shorter
messages:
  - role: system
    content: |
      You write posts.
  - {role: user, content: "About {{ topic }}"}
"""


def test_yaml_and_json_read_alike(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(YAML)
    read = read_prompt_file(tmp_path / "a.yaml")
    (tmp_path / "a.json").write_text(json.dumps(read.model_dump(mode="json")))
    assert read_prompt_file(tmp_path / "a.json") == read
    assert read.messages[1] == Message(role="user", content="About {{ topic }}")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("name: post\nmessages: []", "messages"),
        ("name: post\nmessages: [{role: boss, content: x}]", "messages.0.role"),
        ("messages: [{role: user, content: x}]", "name"),
        ("name: post\nmessages: [{role: user, content: x}]\ncolour: red", "colour"),
        ("just words", "the file"),
        ("a: [unclosed", "cannot be read"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(InputError, match=named):
        read_prompt_file(tmp_path / "p.yaml")


def test_a_missing_or_binary_file_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("none.yaml", "b.yaml"):
        with pytest.raises(InputError, match="cannot be read"):
            read_prompt_file(tmp_path / name)
