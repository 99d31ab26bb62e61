"""Releases: everything an answer depends on, promoted to a channel and rolled back as one.

`resolve` is the only router. A promotion is one transaction with its history and audit entry; the history row is also
the outbox of `ops.releases`. It is appended after the commit, and again at the next promotion or start until it is
marked as published: a process killed in between loses nothing, and readers drop duplicates by event id.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import Field
from sqlalchemy import Connection, Engine, select, update

from infra.database import insert_into, lock, reading
from infra.errors import Conflict, InputError, NotFound, Unavailable
from infra.identity import Value, content_id, new_id, short
from infra.llm.chat import Decoding
from store import audit
from store.tables import channels, plain_text, release_history, releases
from streams.codec import encode
from streams.events import OPS_RELEASES, Event, ReleaseChanged, ReleaseRef, now
from streams.log import EventLog

_CHANNEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

logger = logging.getLogger(__name__)


class Release(Value):
    """What answers: equal parts make an equal release."""

    prompt: str = Field(description="Prompt version, `name@number`.")
    model: str = Field(description="Model name.")
    adapter: str | None = Field(None, description="Adapter id `sha256:…`; None is the plain model.")
    index_build: str | None = Field(None, description="Index build id `sha256:…`; None when nothing is retrieved.")
    judge: str = Field("", description="Judge that gates and monitors the release, `name@version`.")
    decoding: Decoding = Field(default_factory=Decoding, description="Decoding settings.")

    @property
    def id(self) -> str:
        """`sha256:…` of the parts."""
        return content_id("release", self)

    def ref(self, index_position: Mapping[int, int] | Mapping[str, int]) -> ReleaseRef:
        """What a response records: the parts, and the position (partition to next offset) the index had reached."""
        position = {str(partition): offset for partition, offset in index_position.items()}
        return ReleaseRef(release_id=self.id, index_position=position, **dict(self))


class ChannelChange(Value):
    """One entry of a channel's history."""

    time: datetime = Field(description="When, UTC.")
    event_id: str = Field(description="Id of its event on ops.releases.")
    published: bool = Field(description="The event is known to be on the log.")
    change: ReleaseChanged = Field(description="What happened.")


class ReleaseStore:
    """Releases by id, and the channels that serve them."""

    def __init__(self, engine: Engine, log: EventLog | None = None) -> None:
        self._engine = engine
        self._log = log

    def put(self, release: Release) -> Release:
        """Record a release; an equal one stays as it is."""
        values = {"release_id": release.id, "payload": release.model_dump_json(), "created_at": now()}
        with self._engine.begin() as connection:
            connection.execute(insert_into(connection, releases).values(**values).on_conflict_do_nothing())
        return release

    def get(self, release_id: str) -> Release:
        """A release by id or unique prefix of at least 4 hex digits, `sha256:` optional.

        Raises `NotFound` for none and `InputError` for several.
        """
        with reading(self._engine) as connection:
            return _get(connection, release_id)

    def promote(self, channel: str, release_id: str, *, reason: str, actor: str) -> ReleaseChanged:
        """Serve a release (id or unique prefix) on a channel. Promoting what it serves already changes nothing.

        When the log cannot be reached the channel has changed all the same; the event follows later.
        Raises `NotFound` for an unknown release and `InputError` for a bad channel name.
        """
        _check_channel(channel)
        with self._engine.begin() as connection:
            lock(connection, f"channel {channel}")
            release = _get(connection, release_id)
            previous = _current_id(connection, channel)
            if previous == release.id:
                return _history(connection, channel)[0].change
            change = ReleaseChanged(
                channel=channel,
                release_id=release.id,
                previous=previous,
                action="promoted",
                reason=plain_text(reason),
                actor=plain_text(actor),
            )
            _apply(connection, change)
        self.publish_pending()
        return change

    def rollback(self, channel: str, *, reason: str, actor: str) -> ReleaseChanged:
        """Serve the release before on a channel; again, the one before that.

        Raises `NotFound` when nothing is promoted and `Conflict` when there was no release before.
        """
        with self._engine.begin() as connection:
            lock(connection, f"channel {channel}")
            current = _current_id(connection, channel)
            if current is None:
                raise _nothing_promoted(channel)
            past = _past(connection, channel)
            if len(past) < 2:
                raise Conflict(
                    f"channel {channel} has served one release only",
                    seen=short(current),
                    fix=f"quill release promote RELEASE --channel {channel}",
                )
            change = ReleaseChanged(
                channel=channel,
                release_id=past[-2],
                previous=current,
                action="rolled_back",
                reason=plain_text(reason),
                actor=plain_text(actor),
            )
            _apply(connection, change)
        self.publish_pending()
        return change

    def resolve(self, channel: str, key: str = "") -> Release:  # noqa: ARG002
        """The release that answers a request on a channel: the only router.

        `key` (a conversation or user) would keep one caller on one side of a split channel; a channel serves one
        release, so every key gets that. Raises `NotFound` when nothing is promoted.
        """
        release = self.current(channel)
        if release is None:
            raise _nothing_promoted(channel)
        return release

    def current(self, channel: str) -> Release | None:
        """The release that a channel serves, or None."""
        query = (
            select(releases.c.payload)
            .join(channels, channels.c.release_id == releases.c.release_id)
            .where(channels.c.channel == channel)
        )
        with reading(self._engine) as connection:
            payload = connection.execute(query).scalar()
        return Release.model_validate_json(payload) if payload is not None else None

    def channels(self) -> dict[str, str]:
        """Channel to the id of the release it serves."""
        with reading(self._engine) as connection:
            return dict(sorted((row.channel, row.release_id) for row in connection.execute(select(channels))))

    def history(self, channel: str) -> list[ChannelChange]:
        """What a channel served, newest first; empty for an unknown channel."""
        with reading(self._engine) as connection:
            return _history(connection, channel)

    def publish_pending(self) -> int:
        """Append the changes that are not known to be on the log, oldest first; returns how many were appended.

        Does nothing without a log. A log that cannot be reached leaves them for the next call, with a warning.
        """
        if self._log is None:
            return 0
        query = select(release_history).where(~release_history.c.published).order_by(release_history.c.id)
        with reading(self._engine) as connection:
            pending = [_change(row) for row in connection.execute(query)]
        for done, entry in enumerate(pending):
            event = Event(id=entry.event_id, time=entry.time, data=entry.change)
            try:
                self._log.append(OPS_RELEASES, [encode(event)])
            except Unavailable as error:
                logger.warning("%d release changes wait for the log: %s", len(pending) - done, error)
                return done
            with self._engine.begin() as connection:
                row = release_history.c.event_id == entry.event_id
                connection.execute(update(release_history).where(row).values(published=True))
        return len(pending)

    def list(self) -> list[Release]:
        """All releases, oldest first."""
        query = select(releases.c.payload).order_by(releases.c.created_at, releases.c.release_id)
        with reading(self._engine) as connection:
            return [Release.model_validate_json(row.payload) for row in connection.execute(query)]


def _check_channel(channel: str) -> None:
    if not _CHANNEL.fullmatch(channel):
        raise InputError("not a channel name", seen=channel, rule=f"must match {_CHANNEL.pattern}")


def _get(connection: Connection, release_id: str) -> Release:
    digits = release_id.removeprefix("sha256:").lower()
    fix = "list them: quill release list"
    if len(digits) < 4 or set(digits) - set("0123456789abcdef"):
        raise InputError("not a release id", seen=release_id, rule="4 to 64 hex digits", fix=fix)
    query = select(releases.c.payload).where(releases.c.release_id.startswith(f"sha256:{digits}")).limit(2)
    found = connection.execute(query).scalars().all()
    if not found:
        raise NotFound("no such release", seen=release_id, fix=fix)
    if len(found) > 1:
        raise InputError("several releases begin like this", seen=release_id, fix=f"give more digits; {fix}")
    return Release.model_validate_json(found[0])


def _current_id(connection: Connection, channel: str) -> str | None:
    return connection.execute(select(channels.c.release_id).where(channels.c.channel == channel)).scalar()


def _apply(connection: Connection, change: ReleaseChanged) -> None:
    time = now()
    values = change.model_dump(include={"channel", "release_id", "previous", "action", "reason", "actor"})
    insert = insert_into(connection, channels).values(channel=change.channel, release_id=change.release_id)
    served = {"release_id": change.release_id}
    connection.execute(insert.on_conflict_do_update(index_elements=["channel"], set_=served))
    connection.execute(release_history.insert().values(**values, event_id=new_id(), time=time, published=False))
    detail = {"release_id": change.release_id, "previous": change.previous, "reason": change.reason}
    audit.record(connection, f"release.{change.action}", change.channel, actor=change.actor, time=time, detail=detail)


def _past(connection: Connection, channel: str) -> list[str]:
    # The releases a channel served and was not rolled back from, oldest first; the last one is what it serves.
    past: list[str] = []
    for entry in reversed(_history(connection, channel)):
        if entry.change.action == "promoted":
            past.append(entry.change.release_id)
        else:
            past.pop()
    return past


def _history(connection: Connection, channel: str) -> list[ChannelChange]:
    query = select(release_history).where(release_history.c.channel == channel).order_by(release_history.c.id.desc())
    return [_change(row) for row in connection.execute(query)]


def _change(row: Any) -> ChannelChange:
    action: Literal["promoted", "rolled_back"] = row.action
    change = ReleaseChanged(
        channel=row.channel,
        release_id=row.release_id,
        previous=row.previous,
        action=action,
        reason=row.reason,
        actor=row.actor,
    )
    return ChannelChange(time=row.time, event_id=row.event_id, published=row.published, change=change)


def _nothing_promoted(channel: str) -> NotFound:
    return NotFound(
        "no release is promoted",
        seen=f"channel {channel}",
        fix=f"quill demo, or quill release promote RELEASE --channel {channel}",
    )
