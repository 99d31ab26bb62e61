"""A prompt version as a YAML or JSON file: name, messages, note."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import Field, ValidationError

from infra.errors import InputError
from infra.identity import Value
from infra.llm.chat import Message


class PromptFile(Value):
    """What `quill prompts push` reads."""

    name: str = Field(description="Name of the prompt.")
    messages: tuple[Message, ...] = Field(min_length=1, description="Jinja templates with their roles, in order.")
    note: str = Field("", description="Why this version was written.")


def read_prompt_file(path: Path) -> PromptFile:
    """Read a prompt file; JSON is YAML too. Raises `InputError` naming the field that does not fit."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError("a prompt file cannot be read", seen=path, rule=str(error).replace("\n", " ")) from error
    try:
        return PromptFile.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(
            f"{path.name}: {place} does not fit",
            seen=first["input"],
            rule=first["msg"],
            fix="give name, messages (a list of role and content) and note",
        ) from error
