"""The prompt store against a model in memory: Hypothesis chooses the steps, every answer must be the model's."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule
from postgres_fixture import postgres_server
from state_machines import CountedMachine, empty, in_memory, refuses, run

from infra.errors import Conflict, InputError, NotFound
from infra.llm.chat import Message
from infra.settings import DatabaseSettings, Settings
from store.opening import Store, open_store
from store.prompts import PromptVersion

__all__ = ["postgres_server"]

NAMES = ("post", "a/b.c-d_e")
LABELS = ("production", "staging", "Ünn", "x")
BAD_NAMES = ("", "a@b", "-x", "é", "a\n", "po\x00st")
TEXTS = st.sampled_from(["one", "two {{ topic }}", "{{ a }} {{ b }}", "ü😀\x00", "{% if a %}{{ b }}{% endif %}"])
BAD_TEXTS = ("{{ open", "\ud800", "{% include 'x' %}")
MESSAGES = st.lists(st.builds(Message, role=st.sampled_from(["system", "user"]), content=TEXTS), min_size=1, max_size=3)
WORDS = st.sampled_from(["", "ada", "bob", "ü\x00", "\ud800"])
NUMBERS = st.integers(1, 5) | st.sampled_from([-1, 0, 99, 2**31, 2**63])


def stored(text: str) -> str:
    """A note or a person as the databases keep it."""
    return text.replace("\0", "\ufffd").replace("\ud800", "?")


@dataclass
class Prompt:
    """A prompt of the model."""

    versions: list[tuple[list[Message], str]] = field(default_factory=list)
    """Messages and note of each version."""
    approved: dict[int, str] = field(default_factory=dict)
    labels: dict[str, list[int]] = field(default_factory=dict)
    """Label to what it pointed to and was not rolled back from, oldest first."""


class PromptMachine(CountedMachine):
    """Steps through two openings of one prompt store, as two processes have them."""

    stores: ClassVar[Sequence[Store]]

    def __init__(self) -> None:
        super().__init__()
        self.prompts: dict[str, Prompt] = {}
        self.audited: list[tuple[str, str, str]] = []

    @initialize()
    def start(self) -> None:
        self.count("examples")
        empty(self.stores[0])
        for text in ("one", "two {{ topic }}", "three"):
            self.push(opened=0, name="post", messages=[Message(role="user", content=text)], note="", actor="ada")

    @rule(opened=st.integers(0, 1), name=st.sampled_from(NAMES), messages=MESSAGES, note=WORDS, actor=WORDS)
    def push(self, opened: int, name: str, messages: list[Message], note: str, actor: str) -> None:
        self.count("push")
        prompt = self.prompts.setdefault(name, Prompt())
        known = [number for number, each in enumerate(prompt.versions, start=1) if each[0] == messages]
        version = self.stores[opened].prompts.push(name, messages, note, actor=actor)
        if not known:
            prompt.versions.append((messages, stored(note)))
            self.audited.append((stored(actor), "prompt.pushed", f"{name}@{len(prompt.versions)}"))
        self.check(version, name, known[0] if known else len(prompt.versions))

    @rule(name=st.sampled_from(BAD_NAMES), text=st.sampled_from(BAD_TEXTS), message=TEXTS)
    def push_what_is_refused(self, name: str, text: str, message: str) -> None:
        self.count("refused")
        store = self.stores[0].prompts
        refuses(InputError, lambda: store.push(name, [Message(role="user", content=message)]))
        refuses(InputError, lambda: store.push("post", [Message(role="user", content=text)]))
        refuses(InputError, lambda: store.push("post", []))
        refuses(InputError, lambda: store.label("post", name, 1))

    @rule(opened=st.integers(0, 1), name=st.sampled_from(NAMES), number=NUMBERS, pointer=st.sampled_from(["", *LABELS]))
    def get(self, opened: int, name: str, number: int, pointer: str) -> None:
        self.count("get")
        prompt = self.prompts.get(name, Prompt())
        store = self.stores[opened].prompts
        if 1 <= number <= len(prompt.versions):
            self.check(store.get(f"{name}@{number}"), name, number)
        else:
            refuses(NotFound, lambda: store.get(f"{name}@{number}"))
        pointed = prompt.labels.get(pointer or "production", [])
        if pointed:
            self.check(store.get(f"{name}@{pointer}".rstrip("@")), name, pointed[-1])
        elif not pointer and prompt.versions:
            self.check(store.get(name), name, len(prompt.versions))
        else:
            refuses(NotFound, lambda: store.get(f"{name}@{pointer}"))

    @rule(opened=st.integers(0, 1), name=st.sampled_from(NAMES), number=NUMBERS, label=st.sampled_from(LABELS))
    def label(self, opened: int, name: str, number: int, label: str) -> None:
        self.count("label")
        prompt = self.prompts.get(name, Prompt())
        attempt = lambda: self.stores[opened].prompts.label(name, label, number, actor="ada")  # noqa: E731
        if not label.isascii():
            refuses(InputError, attempt)
        elif not 1 <= number <= len(prompt.versions):
            refuses(NotFound, attempt)
        else:
            attempt()
            past = prompt.labels.setdefault(label, [])
            if past[-1:] != [number]:
                past.append(number)
                self.audited.append(("ada", "prompt.labelled", f"{name}@{label}"))

    @rule(opened=st.integers(0, 1), name=st.sampled_from(NAMES), label=st.sampled_from(LABELS))
    def rollback(self, opened: int, name: str, label: str) -> None:
        self.count("rollback")
        past = self.prompts.get(name, Prompt()).labels.get(label, [])
        attempt = lambda: self.stores[opened].prompts.rollback(name, label, actor="bob")  # noqa: E731
        if len(past) < 2:
            refuses(Conflict if past else NotFound, attempt)
        else:
            past.pop()
            self.check(attempt(), name, past[-1])
            self.audited.append(("bob", "prompt.rolled_back", f"{name}@{label}"))

    @rule(opened=st.integers(0, 1), name=st.sampled_from(NAMES), number=NUMBERS, by=WORDS)
    def approve(self, opened: int, name: str, number: int, by: str) -> None:
        self.count("approve")
        prompt = self.prompts.get(name, Prompt())
        attempt = lambda: self.stores[opened].prompts.approve(name, number, by)  # noqa: E731
        if not 1 <= number <= len(prompt.versions):
            refuses(NotFound, attempt)
            return
        approval = attempt()
        if number not in prompt.approved:
            prompt.approved[number] = stored(by)
            self.audited.append((stored(by), "prompt.approved", f"{name}@{number}"))
        assert approval.by == prompt.approved[number]
        assert approval == self.stores[1 - opened].prompts.approvals(name)[number]

    @rule(name=st.sampled_from(NAMES), old=NUMBERS, new=NUMBERS)
    def diff(self, name: str, old: int, new: int) -> None:
        self.count("diff")
        versions = self.prompts.get(name, Prompt()).versions
        attempt = lambda: self.stores[0].prompts.diff(name, old, new)  # noqa: E731
        if 1 <= old <= len(versions) and 1 <= new <= len(versions):
            assert (attempt() == "") == (old == new)
        else:
            refuses(NotFound, attempt)

    @invariant()
    def listings_are_the_models(self) -> None:
        store = self.stores[1].prompts
        known = {name: prompt for name, prompt in sorted(self.prompts.items()) if prompt.versions}
        summaries = store.list()
        assert [each.name for each in summaries] == list(known)
        for summary, (name, prompt) in zip(summaries, known.items(), strict=True):
            labels = {label: past[-1] for label, past in prompt.labels.items()}
            assert (summary.versions, summary.labels) == (len(prompt.versions), labels)
            assert summary.approved == tuple(sorted(prompt.approved))
            assert store.labels(name) == labels
            assert {number: each.by for number, each in store.approvals(name).items()} == prompt.approved
            for number, version in enumerate(store.versions(name), start=1):
                self.check(version, name, number)

    def teardown(self) -> None:
        entries = self.stores[0].audit.list(limit=10_000)
        assert [(each.actor, each.action, each.subject) for each in reversed(entries)] == self.audited

    def check(self, version: PromptVersion, name: str, number: int) -> None:
        messages, note = self.prompts[name].versions[number - 1]
        assert (version.ref, list(version.messages), version.note) == (f"{name}@{number}", messages, note)


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_the_prompt_store_does_what_the_model_does(
    database: str, scale: Callable[[int, int], int], request: pytest.FixtureRequest
):
    url = "" if database == "sqlite" else request.getfixturevalue("postgres_server").new_database()
    with tempfile.TemporaryDirectory(prefix="quill-prompts-", dir=in_memory()) as home:
        settings = Settings(home=Path(home), database=DatabaseSettings(url=url))
        PromptMachine.stores = [open_store(settings), open_store(settings)]
        counts = run(PromptMachine, scale(60, 2000) if database == "sqlite" else scale(10, 200), scale(40, 60))
        for store in PromptMachine.stores:
            store.close()
    assert all(counts[step] for step in ("push", "get", "label", "rollback", "approve", "diff"))
