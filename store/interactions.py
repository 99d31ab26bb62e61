"""Interactions with what judges and people said of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, Insert, Select, Table, and_, bindparam, exists, func, or_, select

from infra.database import batches, insert_into, reading
from infra.errors import InputError
from store.means import MeanScore, Sampled, weighted_mean
from store.tables import PlainText, evaluations, feedback, interaction_tags, interactions
from streams.codec import read_payload
from streams.events import (
    Criterion,
    EvaluationRecorded,
    Event,
    FeedbackGiven,
    InteractionRecorded,
    Score,
    Unscored,
    Verdict,
)


class InteractionStore:
    """What happened, by interaction id. Every write is one transaction and idempotent."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def put(self, event: Event) -> bool:
        """Store an interaction, an evaluation or a feedback; False when it changed nothing. See `put_many`."""
        return self.put_many([event]) > 0

    def put_many(self, events: Sequence[Event]) -> int:
        """Store events in one transaction, all or none; the number of rows that were added or replaced.

        An interaction is stored once; the first event of an interaction id stays. Of one judge the newest score of
        a criterion stays, of one reviewer the newest feedback: by event time, then by event id, so any order of
        arrival, in one batch or in several, ends in the same state. Evaluations may arrive before their
        interaction. Raises `InputError` for any other event.
        """
        said: list[tuple[Event, InteractionRecorded]] = []
        judged: list[tuple[Event, EvaluationRecorded]] = []
        rated: list[tuple[Event, FeedbackGiven]] = []
        for event in events:
            match event.data:
                case InteractionRecorded():
                    said.append((event, event.data))
                case EvaluationRecorded():
                    judged.append((event, event.data))
                case FeedbackGiven():
                    rated.append((event, event.data))
                case other:
                    rule = "interaction, evaluation or feedback"
                    raise InputError("not an event of an interaction", seen=other.type, rule=rule)
        with self._engine.begin() as connection:
            return (
                _put_interactions(connection, said)
                + _put_newest(connection, evaluations, ("interaction_id", "judge", "criterion"), _scores(judged))
                + _put_newest(connection, feedback, ("interaction_id", "rater"), _ratings(rated))
            )

    def get(self, interaction_id: str) -> InteractionRecorded | None:
        """An interaction, or None."""
        found = self.list(ids=[interaction_id])
        return found[0][1] if found else None

    def means(
        self, *, release_id: str | None = None, ids: Sequence[str] | None = None, judge: str | None = None
    ) -> list[MeanScore]:
        """The mean of each judge and criterion over the stored interactions of a release, of ids, or all.

        `total` counts these interactions whether judged or not. See `store.means.weighted_mean` for the interval.
        """
        total = 0
        verdicts: dict[tuple[str, str], list[Sampled]] = defaultdict(list)
        unscored: dict[tuple[str, str], int] = defaultdict(int)
        with reading(self._engine) as connection:
            for where in _selections(ids, release_id):
                chosen = select(interactions.c.interaction_id).where(*where)
                total += connection.execute(select(func.count()).select_from(chosen.subquery())).scalar_one()
                query = select(evaluations).where(evaluations.c.interaction_id.in_(chosen))
                for row in connection.execute(query if judge is None else query.where(evaluations.c.judge == judge)):
                    key = (row.judge, row.criterion)
                    if row.score is None:
                        unscored[key] += 1
                    else:
                        verdicts[key].append(Sampled(score=row.score, probability=row.sampled_with))
        return [_mean(key, verdicts[key], unscored[key], total) for key in sorted({*verdicts, *unscored})]

    def evaluations(self, interaction_ids: Sequence[str]) -> list[EvaluationRecorded]:
        """What judges said of these interactions as it stands now, by interaction id and judge.

        Scores of one judge that came with different events are separate entries.
        """
        rows: list[Any] = []
        with reading(self._engine) as connection:
            for ids in batches(sorted(set(interaction_ids))):
                query = select(evaluations).where(evaluations.c.interaction_id.in_(ids))
                rows += connection.execute(query).all()
        return _evaluations(rows)

    def feedback(self, interaction_ids: Sequence[str]) -> list[FeedbackGiven]:
        """What people said of these interactions: the newest of each reviewer and every anonymous one, by time."""
        rows: list[Any] = []
        with reading(self._engine) as connection:
            for ids in batches(sorted(set(interaction_ids))):
                rows += connection.execute(select(feedback).where(feedback.c.interaction_id.in_(ids))).all()
        rows.sort(key=lambda row: (row.time, row.event_id))
        return [read_payload(FeedbackGiven, row.payload) for row in rows]

    def count(self, *, release_id: str | None = None) -> int:
        """Number of stored interactions, of one release or of all."""
        query = select(func.count()).select_from(interactions)
        if release_id is not None:
            query = query.where(interactions.c.release_id == release_id)
        with reading(self._engine) as connection:
            return connection.execute(query).scalar_one()

    def list(
        self,
        *,
        ids: Sequence[str] | None = None,
        release_id: str | None = None,
        since: datetime | None = None,
        tags: Mapping[str, str] | None = None,
        limit: int | None = None,
    ) -> list[tuple[datetime, InteractionRecorded]]:
        """Event time (UTC) and interaction, oldest first, of those that meet every condition given.

        `since` is inclusive; `tags` must all be there with these values; `limit` keeps the newest.
        """
        rows: list[Any] = []
        with reading(self._engine) as connection:
            for where in _selections(ids, release_id, since, tags or {}):
                rows += connection.execute(_newest_first(limit).where(*where)).all()
        rows.sort(key=lambda row: (row.time, row.interaction_id))
        kept = rows if limit is None else rows[max(0, len(rows) - limit) :]
        return [(row.time, read_payload(InteractionRecorded, row.payload)) for row in kept]


def _put_interactions(connection: Connection, said: Sequence[tuple[Event, InteractionRecorded]]) -> int:
    rows: dict[str, dict[str, Any]] = {}
    for event, interaction in said:
        row = {
            "interaction_id": interaction.interaction_id,
            "event_id": event.id,
            "conversation_id": interaction.conversation_id,
            "time": event.time,
            "release_id": interaction.release.release_id if interaction.release else None,
            "channel": interaction.channel,
            "application": interaction.application,
            "finish_reason": interaction.finish_reason,
            "payload": interaction.model_dump_json(),
        }
        rows.setdefault(interaction.interaction_id, row)
    if not rows:
        return 0
    insert = insert_into(connection, interactions).on_conflict_do_nothing().returning(interactions.c.interaction_id)
    stored = len(connection.execute(insert, _sorted(rows)).all())
    tags = [
        {"its_id": interaction.interaction_id, "its_event": event.id, "its_tag": tag, "its_value": value}
        for event, interaction in said
        for tag, value in interaction.tags.items()
    ]
    if stored and tags:
        connection.execute(_insert_tags(connection), tags)
    return stored


def _insert_tags(connection: Connection) -> Insert:
    """Adds a tag unless another event's interaction is stored under the id."""
    given = select(
        bindparam("its_id", type_=PlainText),
        bindparam("its_tag", type_=PlainText),
        bindparam("its_value", type_=PlainText),
    )
    stored = given.where(
        exists().where(
            interactions.c.interaction_id == bindparam("its_id"), interactions.c.event_id == bindparam("its_event")
        )
    )
    insert = insert_into(connection, interaction_tags)
    return insert.from_select(["interaction_id", "tag", "value"], stored).on_conflict_do_nothing()


def _scores(judged: Iterable[tuple[Event, EvaluationRecorded]]) -> Iterator[dict[str, Any]]:
    shared = {"interaction_id", "judge", "judge_model", "same_model_as_writer", "sampled_with", "latency_ms"}
    for event, evaluation in judged:
        for score in evaluation.scores:
            yield evaluation.model_dump(include=shared) | {
                "criterion": score.criterion,
                "score": score.score if isinstance(score, Verdict) else None,
                "words": score.justification if isinstance(score, Verdict) else score.reason,
                "event_id": event.id,
                "time": event.time,
            }


def _ratings(rated: Iterable[tuple[Event, FeedbackGiven]]) -> Iterator[dict[str, Any]]:
    for event, given in rated:
        yield {
            "interaction_id": given.interaction_id,
            "rater": given.reviewer or event.id,
            "payload": given.model_dump_json(),
            "event_id": event.id,
            "time": event.time,
        }


def _put_newest(connection: Connection, table: Table, key: Sequence[str], rows: Iterable[dict[str, Any]]) -> int:
    newest: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        # PostgreSQL refuses a statement that touches one row twice.
        name = tuple(row[column] for column in key)
        if name not in newest or (row["time"], row["event_id"]) > (newest[name]["time"], newest[name]["event_id"]):
            newest[name] = row
    if not newest:
        return 0
    insert = insert_into(connection, table)
    new = insert.excluded
    newer = or_(new.time > table.c.time, and_(new.time == table.c.time, new.event_id > table.c.event_id))
    changes = {column.name: new[column.name] for column in table.columns if column.name not in key}
    upsert = insert.on_conflict_do_update(index_elements=key, set_=changes, where=newer).returning(table.c.event_id)
    return len(connection.execute(upsert, _sorted(newest)).all())


def _sorted(rows: Mapping[Any, dict[str, Any]]) -> list[dict[str, Any]]:
    """By their keys, so that two processes that write the same rows wait for each other and do not deadlock."""
    return [rows[name] for name in sorted(rows)]


def _selections(
    ids: Sequence[str] | None,
    release_id: str | None,
    since: datetime | None = None,
    tags: Mapping[str, str] | None = None,
) -> Iterable[list[Any]]:
    # One list of conditions per batch of ids; the batches are disjoint.
    where: list[Any] = []
    if release_id is not None:
        where.append(interactions.c.release_id == release_id)
    if since is not None:
        where.append(interactions.c.time >= since)
    for tag, value in (tags or {}).items():
        tagged = select(interaction_tags.c.interaction_id).where(
            interaction_tags.c.tag == tag, interaction_tags.c.value == value
        )
        where.append(interactions.c.interaction_id.in_(tagged))
    if ids is None:
        yield where
        return
    for some in batches(sorted(set(ids))):
        yield [*where, interactions.c.interaction_id.in_(some)]


def _newest_first(limit: int | None) -> Select[Any]:
    columns = interactions.c
    query = select(columns.interaction_id, columns.time, columns.payload)
    return query.order_by(columns.time.desc(), columns.interaction_id.desc()).limit(limit)


def _mean(key: tuple[str, str], sample: Sequence[Sampled], unscored: int, total: int) -> MeanScore:
    mean, low, high = weighted_mean(sample)
    return MeanScore(
        judge=key[0],
        criterion=key[1],
        mean=mean,
        low=low,
        high=high,
        judged=len(sample),
        unscored=unscored,
        total=total,
    )


def _evaluations(rows: Iterable[Any]) -> list[EvaluationRecorded]:
    groups: dict[tuple[str, str, datetime, str], list[Any]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row.interaction_id, row.judge, row.time, row.event_id, row.criterion)):
        groups[row.interaction_id, row.judge, row.time, row.event_id].append(row)
    return [
        EvaluationRecorded(
            interaction_id=group[0].interaction_id,
            judge=group[0].judge,
            judge_model=group[0].judge_model,
            same_model_as_writer=group[0].same_model_as_writer,
            scores=tuple(_score(row) for row in group),
            sampled_with=group[0].sampled_with,
            latency_ms=group[0].latency_ms,
        )
        for group in groups.values()
    ]


def _score(row: Any) -> Score:
    criterion: Criterion = row.criterion
    if row.score is None:
        return Unscored(criterion=criterion, reason=row.words)
    return Verdict(criterion=criterion, score=row.score, justification=row.words)
