"""Prompt templates: sandboxed Jinja whose variables are known before a model is asked, and the diff of two."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache

from jinja2 import StrictUndefined, Template, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from infra.errors import InputError
from infra.llm.chat import Message


def find_variables(messages: Sequence[Message]) -> tuple[str, ...]:
    """Names that the templates need, sorted.

    Raises `InputError` for a syntax error or a lone surrogate, and for `include`, `import` or `extends`: a prompt
    version stands alone, or its content would not be immutable.
    """
    names: set[str] = set()
    for place, message in enumerate(messages, start=1):
        try:
            message.content.encode()
            tree = _environment().parse(message.content)
            names |= meta.find_undeclared_variables(tree)
        except UnicodeEncodeError as error:
            raise InputError(f"message {place} is not Unicode text", rule=error.reason) from error
        except TemplateError as error:
            raise InputError(f"message {place} is not a Jinja template", rule=str(error).strip()) from error
        if any(True for _ in meta.find_referenced_templates(tree)):
            raise InputError(
                f"message {place} refers to another template", fix="write the text into this prompt instead"
            )
    return tuple(sorted(names))


def render(name: str, messages: Sequence[Message], needed: Sequence[str], given: Mapping[str, object]) -> list[Message]:
    """The messages with their variables filled in.

    Values are inserted as they are: template syntax inside a value is text. Raises `InputError` naming each
    missing or unknown variable, and when a template fails on the values it got.
    """
    missing, unknown = sorted(set(needed) - set(given)), sorted(set(given) - set(needed))
    if missing or unknown:
        words = [f"missing: {', '.join(missing)}"] * bool(missing) + [f"unknown: {', '.join(unknown)}"] * bool(unknown)
        raise InputError(
            f"prompt {name} does not fit its variables", seen="; ".join(words), rule="needs " + _listed(needed)
        )
    try:
        return [Message(role=message.role, content=_template(message.content).render(given)) for message in messages]
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise InputError(f"prompt {name} cannot be rendered", rule=str(error)) from error


def word_diff(old: Sequence[Message], new: Sequence[Message]) -> str:
    """What changed, word by word: `[-gone-]` and `{+new+}`, one block per message that differs, empty when none does.

    Messages are compared by place; a changed role is shown in the block's first line.
    """
    blocks: list[str] = []
    for place in range(max(len(old), len(new))):
        before = old[place] if place < len(old) else None
        after = new[place] if place < len(new) else None
        if before != after:
            roles = _marked([before.role] if before else [], [after.role] if after else [])
            text = _marked(_words(before.content if before else ""), _words(after.content if after else ""))
            blocks.append(f"message {place + 1} ({roles})\n{text}\n")
    return "\n".join(blocks)


def _marked(before: Sequence[str], after: Sequence[str]) -> str:
    parts: list[str] = []
    matcher = difflib.SequenceMatcher(a=before, b=after, autojunk=False)
    for tag, a_start, a_end, b_start, b_end in matcher.get_opcodes():
        gone, new = "".join(before[a_start:a_end]), "".join(after[b_start:b_end])
        if tag == "equal":
            parts.append(gone)
            continue
        parts += [f"[-{gone}-]"] * bool(gone) + [f"{{+{new}+}}"] * bool(new)
    return "".join(parts)


def _words(text: str) -> list[str]:
    return re.findall(r"\s+|\S+", text)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "no variables"


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    return ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)


@lru_cache(maxsize=256)
def _template(source: str) -> Template:
    return _environment().from_string(source)
