"""Replays: what interactions of the past got from another judge, prompt or adapter, apart from what happened live."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pydantic import Field
from sqlalchemy import Engine, func, select, update

from infra.database import insert_into, reading
from infra.errors import Conflict, NotFound
from infra.identity import Value
from store.tables import replay_results, replays
from streams.codec import read_payload
from streams.events import EvaluationRecorded, InteractionRecorded, ReleaseRef, now
from streams.replay import Window


class Replay(Value):
    """What is replayed, and through what. A name has one of these for good."""

    name: str = Field(min_length=1, max_length=200, description="Name of the result set.")
    window: Window = Field(description="Topic and time.")
    judge: str = Field(description="Judge of the results, `name@version`.")
    release: ReleaseRef | None = Field(None, description="What answers again; None: the old answers are judged again.")


class ReplayState(Value):
    """A replay and how far it is."""

    replay: Replay = Field(description="What is replayed.")
    created_at: datetime = Field(description="When it was begun, UTC.")
    finished_at: datetime | None = Field(description="When all of it was there, UTC; None while it can go on.")
    results: int = Field(ge=0, description="Interactions that have a result.")
    passed_over: int = Field(ge=0, description="Records of the window that were not replayed; known at its end.")


class ReplayResult(Value):
    """What became of one interaction of the window."""

    interaction_id: str = Field(description="The interaction as it was recorded live.")
    time: datetime = Field(description="When that happened, UTC.")
    originals: tuple[EvaluationRecorded, ...] = Field(description="What judges had said of it, by judge.")
    answer: InteractionRecorded | None = Field(description="The new answer, masked; None when there is none.")
    evaluation: EvaluationRecorded = Field(description="What the replay's judge says of the new or the old answer.")


class ReplayStore:
    """Replays by name. Every write is one transaction and idempotent."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def begin(self, replay: Replay) -> ReplayState:
        """Begin a replay, or go on with the one of this name. Raises `Conflict` when that is another one."""
        values = {"name": replay.name, "payload": replay.model_dump_json(), "created_at": now(), "passed_over": 0}
        with self._engine.begin() as connection:
            connection.execute(insert_into(connection, replays).values(**values).on_conflict_do_nothing())
        state = self.get(replay.name)
        if state.replay != replay:
            other = state.replay.model_dump_json(exclude={"name"}, exclude_none=True)
            raise Conflict("there is another replay of this name", seen=other, fix="choose another one with --name")
        return state

    def put(self, name: str, results: Sequence[ReplayResult]) -> None:
        """Store results; an interaction that has one keeps it."""
        rows = [
            {
                "replay": name,
                "interaction_id": result.interaction_id,
                "time": result.time,
                "originals": json.dumps([one.model_dump(mode="json") for one in result.originals]),
                "answer": result.answer.model_dump_json() if result.answer else None,
                "evaluation": result.evaluation.model_dump_json(),
            }
            for result in results
        ]
        with self._engine.begin() as connection:
            if rows:
                connection.execute(insert_into(connection, replay_results).on_conflict_do_nothing(), rows)

    def finish(self, name: str, *, passed_over: int) -> ReplayState:
        """Note that all of the window was gone through."""
        values = {"finished_at": now(), "passed_over": passed_over}
        with self._engine.begin() as connection:
            connection.execute(update(replays).where(replays.c.name == name).values(**values))
        return self.get(name)

    def replayed(self, name: str) -> set[str]:
        """Ids of the interactions that have a result."""
        query = select(replay_results.c.interaction_id).where(replay_results.c.replay == name)
        with reading(self._engine) as connection:
            return set(connection.execute(query).scalars())

    def get(self, name: str) -> ReplayState:
        """A replay by name. Raises `NotFound`."""
        for state in self._states(replays.c.name == name):
            return state
        raise NotFound("there is no such replay", seen=name, fix="see quill replay list")

    def results(self, name: str) -> list[ReplayResult]:
        """The results of a replay, by the time of their interactions."""
        query = select(replay_results).where(replay_results.c.replay == name)
        with reading(self._engine) as connection:
            rows = connection.execute(query.order_by(replay_results.c.time, replay_results.c.interaction_id))
            return [_result(row) for row in rows]

    def _states(self, *where: Any) -> Sequence[ReplayState]:
        count = select(func.count()).where(replay_results.c.replay == replays.c.name).scalar_subquery()
        query = select(replays, count.label("results")).where(*where)
        with reading(self._engine) as connection:
            rows = connection.execute(query.order_by(replays.c.created_at.desc(), replays.c.name)).all()
        return [
            ReplayState(
                replay=Replay.model_validate_json(row.payload),
                created_at=row.created_at,
                finished_at=row.finished_at,
                results=row.results,
                passed_over=row.passed_over,
            )
            for row in rows
        ]

    def list(self) -> Sequence[ReplayState]:
        """All replays, the one begun last first."""
        return self._states()


def _result(row: Any) -> ReplayResult:
    originals = [read_payload(EvaluationRecorded, json.dumps(one)) for one in json.loads(row.originals)]
    return ReplayResult(
        interaction_id=row.interaction_id,
        time=row.time,
        originals=tuple(originals),
        answer=read_payload(InteractionRecorded, row.answer) if row.answer is not None else None,
        evaluation=read_payload(EvaluationRecorded, row.evaluation),
    )
