"""`quill doctor`: each setting with its origin, each connection and model tried, each problem with its fix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr

from infra.artifacts import write_atomic
from infra.errors import QuillError, Unavailable
from infra.identity import Value, short
from infra.llm import local
from infra.llm.chat import Decoding, Message
from infra.llm.opening import open_chat
from infra.settings import JudgeSettings, LlmSettings, Settings, setting, setting_names
from serving.app import Rooms
from serving.presence import running
from serving.weights import here
from streams.outbox import Outbox


class Check(Value):
    """One thing that was tried."""

    name: str = Field(description="What was tried.")
    state: Literal["ok", "missing", "failed"] = Field(description="'missing': not there yet, and needed only for more.")
    detail: str = Field("", description="What was seen.")
    fix: str = Field("", description="What to do about it; empty when nothing.")
    required: bool = Field(True, description="Without it the installation does not work.")

    def row(self) -> dict[str, str]:
        """A line of the table."""
        return {"check": self.name, "state": self.state, "detail": self.detail, "fix": self.fix}


def examine(settings: Settings) -> list[Check]:
    """Try everything once, in the order in which it is needed. Loads no model and downloads nothing."""
    home = _check("home", lambda: _home(settings))
    if home.state != "ok":
        return [home]
    with Rooms(settings) as rooms:
        log = _check(f"log ({settings.log.backend})", lambda: _log(rooms))
        checks = [home, log, _check("database", lambda: _database(settings, log.state == "ok", rooms))]
        if all(check.state == "ok" for check in checks):
            checks.append(_check(f"index ({settings.index.url or 'Qdrant Edge'})", lambda: _index(rooms)))
    checks.append(_weights(settings, "embedder", settings.models.embedder))
    checks.append(_writer(settings, "writer", settings.llm))
    checks.append(_writer(settings, "judge", settings.judge).model_copy(update={"required": False}))
    return [*checks, *_outbox(settings.home / "outbox"), _server(settings), _comet(settings), _broker_tools()]


def listed(settings: Settings) -> list[dict[str, str]]:
    """Every setting with its value, secrets masked, and where the value came from."""
    return [
        {"setting": name, "value": _shown(setting(settings, name)), "origin": settings.origins.get(name, "default")}
        for name in setting_names()
    ]


def _check(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name=name, state="ok", detail=look())
    except QuillError as error:
        return _failed(name, error)


def _failed(name: str, error: QuillError) -> Check:
    bare = QuillError(error.what, seen=error.seen, rule=error.rule)
    return Check(name=name, state="failed", detail=str(bare), fix=error.fix)


def _home(settings: Settings) -> str:
    probe = settings.home / ".doctor"
    try:
        write_atomic(probe, b"")
        probe.unlink()
    except OSError as error:
        raise QuillError(
            "the home cannot be written",
            seen=settings.home,
            rule=error.strerror or str(error),
            fix="make it writable, or set QUILL_HOME",
        ) from error
    return str(settings.home)


def _log(rooms: Rooms) -> str:
    from streams.events import OPEN_TOPICS
    from streams.log import events_in

    records = sum(events_in(rooms.log, topic) for topic in OPEN_TOPICS)
    where = rooms.settings.log.bootstrap_servers if rooms.settings.log.backend == "kafka" else "log.db"
    return f"{records} records in {len(OPEN_TOPICS)} topics at {where}"


def _outbox(folder: Path) -> list[Check]:
    """What waits for the log, and what killed processes had taken and not made durable. Nothing where none emits."""
    if not folder.exists():
        return []
    try:
        status = Outbox(folder).status()
    except QuillError as error:
        return [_failed("outbox", error).model_copy(update={"required": False})]
    told = [f"{status.waiting} events wait for the log"]
    if status.killed:
        told.append(f"{status.killed} emitting processes were killed, which lost {status.lost} events")
    for gap in status.gaps[-3:]:
        lost = f"an unknown number of events after {gap.after}"
        told.append(lost if gap.lost is None else f"events {gap.after + 1} to {gap.after + gap.lost}")
    mend = []
    if status.rejected:
        told.append(f"the log refused {status.rejected} events")
        mend.append(f"read {folder / 'rejected.jsonl'}")
    if status.damaged:
        told.append(f"{status.damaged} places could not be read")
        mend.append(f"check the disk; what was damaged lies in {folder / 'damaged'}")
    state: Literal["ok", "failed"] = "failed" if mend else "ok"
    return [Check(name="outbox", state=state, detail="; ".join(told), fix="; ".join(mend), required=False)]


def _database(settings: Settings, with_log: bool, rooms: Rooms) -> str:
    if with_log:
        counts = rooms.store.documents.counts()
    else:
        from store.opening import open_store

        store = open_store(settings)
        counts = store.documents.counts()
        store.close()
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _index(rooms: Rooms) -> str:
    state = rooms.index()
    behind = sum(state.end.values()) - sum(state.position.values())
    return f"build {short(state.build)}, {behind} document events to apply"


def _weights(settings: Settings, role: str, name: str) -> Check:
    try:
        found = here(settings, name)
    except QuillError as error:
        if isinstance(error, Unavailable):
            return Check(
                name=role, state="missing", detail=f"{name} is not on this machine", fix="quill doctor --fetch"
            )
        return _failed(role, error)
    return Check(name=role, state="ok", detail=f"{name} ({found.origin}, sha256 {found.sha256[:12]})")


def _writer(settings: Settings, role: str, llm: LlmSettings | JudgeSettings) -> Check:
    if not llm.endpoint:
        check = _weights(settings, role, llm.model)
        server = "runs" if local.status(settings.models) else "starts when needed"
        return (
            check.model_copy(update={"detail": f"{check.detail}; llama.cpp {server}"}) if check.state == "ok" else check
        )
    return _check(role, lambda: _asked(settings, llm))


def _asked(settings: Settings, llm: LlmSettings | JudgeSettings) -> str:
    """One token from the endpoint: address, key and model name are right, or the error says which is not."""
    open_chat(llm, settings.models).complete([Message(role="user", content="Hello")], Decoding(max_tokens=1))
    return f"{llm.model} answers at {llm.endpoint}"


def _server(settings: Settings) -> Check:
    server = running(settings.home)
    if server is None:
        return Check(name="server", state="missing", detail="not running", fix="quill up", required=False)
    return Check(name="server", state="ok", detail=f"{server.url}, process {server.pid}", required=False)


def _comet(settings: Settings) -> Check:
    online = bool(settings.comet.api_key.get_secret_value())
    detail = (
        f"key set, project {settings.comet.project}" if online else f"offline archives in {settings.home / 'comet'}"
    )
    return Check(name="comet", state="ok", detail=detail, required=False)


def _broker_tools() -> Check:
    from infra.kafka_broker import missing

    reason = missing()
    if reason:
        fix = "install Java 17 and Maven to run a broker with quill demo --kafka"
        return Check(name="kafka from Maven", state="missing", detail=reason, fix=fix, required=False)
    return Check(name="kafka from Maven", state="ok", detail="Java and Maven are here", required=False)


def _shown(value: Any) -> str:
    if isinstance(value, SecretStr):
        return "********" if value.get_secret_value() else ""
    return str(value)
