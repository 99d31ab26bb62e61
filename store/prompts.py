"""The prompt store: immutable numbered versions, labels that point to them, approval, rollback, diff."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pydantic import Field
from sqlalchemy import Connection, Engine, func, select, update

from infra.database import insert_into, lock, reading
from infra.errors import Conflict, InputError, NotFound
from infra.identity import Value, content_id
from infra.llm.chat import Message
from store import audit, templates
from store.tables import plain_text, prompt_label_history, prompt_labels, prompt_versions
from streams.events import now

DEFAULT_LABEL = "production"
_MAX_NUMBER = 2**31 - 1
"""Of the column; a version past it does not exist, and the databases refuse to look for it."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")


class PromptVersion(Value):
    """One immutable version of a prompt."""

    name: str = Field(description="Name of the prompt.")
    number: int = Field(ge=1, description="1, 2, 3 … within the name.")
    messages: tuple[Message, ...] = Field(min_length=1, description="Jinja templates, in order.")
    variables: tuple[str, ...] = Field((), description="Names that `render` needs, sorted.")
    note: str = Field("", description="Why this version was written.")

    @property
    def ref(self) -> str:
        """`name@number`."""
        return f"{self.name}@{self.number}"

    def render(self, **variables: object) -> list[Message]:
        """The messages with their variables filled in. Raises `InputError` naming a missing or unknown variable."""
        return templates.render(self.ref, self.messages, self.variables, variables)


class Approval(Value):
    """Who approved a version, and when."""

    by: str = Field(description="Who.")
    at: datetime = Field(description="When, UTC.")


class PromptSummary(Value):
    """A prompt in a listing."""

    name: str = Field(description="Name of the prompt.")
    versions: int = Field(ge=1, description="Number of versions; also the newest one's number.")
    labels: dict[str, int] = Field(description="Label to version number.")
    approved: tuple[int, ...] = Field(description="Numbers of approved versions, ascending.")
    updated_at: datetime = Field(description="When the newest version was pushed, UTC.")


class PromptStore:
    """Prompts by name. Approval is a recorded sign-off; it does not restrict what a label may point to."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def push(
        self, name: str, messages: Sequence[Message], note: str = "", *, actor: str = "quillstream"
    ) -> PromptVersion:
        """Add a version with the next number; messages equal to an existing version's return that version.

        Raises `InputError` for a bad name, no messages, or a template that does not parse.
        """
        _match(_NAME, name, "prompt name")
        if not messages:
            raise InputError("a prompt needs at least one message", seen=name)
        note, actor = plain_text(note), plain_text(actor)
        variables = templates.find_variables(messages)
        digest = content_id("prompt", [message.model_dump() for message in messages])
        with self._engine.begin() as connection:
            lock(connection, f"prompt {name}")
            versions = prompt_versions.c
            same = select(prompt_versions).where(versions.name == name, versions.content_hash == digest)
            row = connection.execute(same).first()
            if row is not None:
                return _version(row)
            newest = select(func.max(versions.number)).where(versions.name == name)
            number = (connection.execute(newest).scalar() or 0) + 1
            version = PromptVersion(name=name, number=number, messages=tuple(messages), variables=variables, note=note)
            _insert_version(connection, version, digest, actor)
        return version

    def get(self, ref: str) -> PromptVersion:
        """The version for `name@3`, `name@label`, or `name` (label `production`, else the newest).

        Raises `NotFound` with what exists.
        """
        name, _, pointer = ref.partition("@")
        with reading(self._engine) as connection:
            return _get(connection, name, _number(connection, name, pointer))

    def label(self, name: str, label: str, number: int, *, actor: str = "quillstream") -> None:
        """Point a label at a version. Pointing it where it points already changes nothing.

        Raises `NotFound` for a version that does not exist, `InputError` for a bad label.
        """
        _match(_LABEL, label, "label")
        with self._engine.begin() as connection:
            lock(connection, f"prompt {name}")
            _get(connection, name, number)
            if _labels(connection, name).get(label) != number:
                _point(connection, name, label, number, action="set", actor=actor)

    def rollback(self, name: str, label: str, *, actor: str = "quillstream") -> PromptVersion:
        """Point a label back to the version before; again, to the one before that.

        Raises `NotFound` for an unknown label and `Conflict` when there is no version before.
        """
        with self._engine.begin() as connection:
            lock(connection, f"prompt {name}")
            if label not in _labels(connection, name):
                raise NotFound(f"prompt {name} has no label {label!r}", fix=f"quill prompts show {name}")
            past = _past(connection, name, label)
            if len(past) < 2:
                raise Conflict(
                    f"label {label!r} of {name} has pointed to one version only",
                    seen=f"{name}@{past[-1]}",
                    fix=f"quill prompts label {name}@NUMBER {label}",
                )
            _point(connection, name, label, past[-2], action="rolled_back", actor=actor)
            return _get(connection, name, past[-2])

    def approve(self, name: str, number: int, by: str) -> Approval:
        """Record that someone approves a version; the first approval stays. Raises `NotFound`."""
        with self._engine.begin() as connection:
            lock(connection, f"prompt {name}")
            _get(connection, name, number)
            approval = _approvals(connection, name).get(number)
            if approval is None:
                approval = Approval(by=plain_text(by), at=now())
                row = (prompt_versions.c.name == name) & (prompt_versions.c.number == number)
                values = {"approved_by": approval.by, "approved_at": approval.at}
                connection.execute(update(prompt_versions).where(row).values(**values))
                audit.record(connection, "prompt.approved", f"{name}@{number}", actor=by, time=approval.at, detail={})
        return approval

    def approvals(self, name: str) -> dict[int, Approval]:
        """Version number to its approval, approved versions only."""
        with reading(self._engine) as connection:
            return _approvals(connection, name)

    def labels(self, name: str) -> dict[str, int]:
        """Label to version number; empty for an unknown prompt."""
        with reading(self._engine) as connection:
            return _labels(connection, name)

    def diff(self, name: str, a: int | str, b: int | str) -> str:
        """What changed from version (or label) `a` to `b`, word by word: `[-gone-]`, `{+new+}`; empty when equal."""
        old, new = self.get(f"{name}@{a}"), self.get(f"{name}@{b}")
        return templates.word_diff(old.messages, new.messages)

    def versions(self, name: str) -> list[PromptVersion]:
        """All versions, oldest first. Raises `NotFound` for an unknown prompt."""
        query = select(prompt_versions).where(prompt_versions.c.name == name).order_by(prompt_versions.c.number)
        with reading(self._engine) as connection:
            found = [_version(row) for row in connection.execute(query)]
            return found or [_get(connection, name, None)]

    def list(self) -> list[PromptSummary]:
        """All prompts by name."""
        columns = prompt_versions.c
        query = select(columns.name, func.max(columns.number), func.max(columns.created_at)).group_by(columns.name)
        with reading(self._engine) as connection:
            found = [
                PromptSummary(
                    name=name,
                    versions=newest,
                    labels=_labels(connection, name),
                    approved=tuple(_approvals(connection, name)),
                    updated_at=updated_at,
                )
                for name, newest, updated_at in connection.execute(query).all()
            ]
        return sorted(found, key=lambda summary: summary.name)


def _insert_version(connection: Connection, version: PromptVersion, digest: str, actor: str) -> None:
    time = now()
    connection.execute(
        prompt_versions.insert().values(
            name=version.name,
            number=version.number,
            content_hash=digest,
            payload=version.model_dump_json(),
            created_at=time,
        )
    )
    detail = {"note": version.note, "content_hash": digest}
    audit.record(connection, "prompt.pushed", version.ref, actor=actor, time=time, detail=detail)


def _number(connection: Connection, name: str, pointer: str) -> int | None:
    labels = _labels(connection, name)
    if pointer.isdecimal():
        return int(pointer) if len(pointer) <= len(str(_MAX_NUMBER)) else _MAX_NUMBER
    if pointer and pointer not in labels:
        raise NotFound(
            f"prompt {name} has no label {pointer!r}",
            rule="labels: " + (", ".join(sorted(labels)) or "none"),
            fix="quill prompts list",
        )
    return labels[pointer] if pointer else labels.get(DEFAULT_LABEL)


def _get(connection: Connection, name: str, number: int | None) -> PromptVersion:
    # Without a number: the newest version.
    query = select(prompt_versions).where(prompt_versions.c.name == name).order_by(prompt_versions.c.number.desc())
    if number is not None:
        query = query.where(prompt_versions.c.number == max(0, min(number, _MAX_NUMBER)))
    row = connection.execute(query.limit(1)).first()
    if row is None:
        seen = name if number is None else f"{name}@{number}"
        raise NotFound("no such prompt", seen=seen, fix="list them: quill prompts list; add one: quill prompts push")
    return _version(row)


def _point(connection: Connection, name: str, label: str, number: int, *, action: str, actor: str) -> None:
    time = now()
    insert = insert_into(connection, prompt_labels).values(name=name, label=label, number=number)
    connection.execute(insert.on_conflict_do_update(index_elements=["name", "label"], set_={"number": number}))
    connection.execute(
        prompt_label_history.insert().values(
            name=name, label=label, number=number, action=action, actor=actor, time=time
        )
    )
    action = "prompt.labelled" if action == "set" else "prompt.rolled_back"
    audit.record(connection, action, f"{name}@{label}", actor=actor, time=time, detail={"number": number})


def _past(connection: Connection, name: str, label: str) -> list[int]:
    # The versions a label pointed to and was not rolled back from, oldest first; the last one is where it points.
    table = prompt_label_history.c
    query = select(table.number, table.action).where(table.name == name, table.label == label).order_by(table.id)
    past: list[int] = []
    for number, action in connection.execute(query):
        if action == "set":
            past.append(number)
        else:
            past.pop()
    return past


def _labels(connection: Connection, name: str) -> dict[str, int]:
    table = prompt_labels.c
    query = select(table.label, table.number).where(table.name == name)
    return dict(sorted((row.label, row.number) for row in connection.execute(query)))


def _approvals(connection: Connection, name: str) -> dict[int, Approval]:
    table = prompt_versions.c
    query = select(prompt_versions).where(table.name == name, table.approved_by.is_not(None)).order_by(table.number)
    return {row.number: Approval(by=row.approved_by, at=row.approved_at) for row in connection.execute(query)}


def _version(row: Any) -> PromptVersion:
    return PromptVersion.model_validate_json(row.payload)


def _match(pattern: re.Pattern[str], text: str, what: str) -> None:
    if not pattern.fullmatch(text):
        raise InputError(f"not a {what}", seen=text, rule=f"must match {pattern.pattern}")
