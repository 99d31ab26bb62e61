"""Alerts as they are now."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from sqlalchemy import Engine, and_, or_, select

from infra.database import insert_into, reading
from store.tables import alerts
from streams.codec import read_payload
from streams.events import AlertChanged, now


class AlertStore:
    """Alerts by id; the newest change of an alert wins."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def put(self, alert: AlertChanged, *, event_id: str, time: datetime | None = None) -> bool:
        """Store how an alert is now; False when a newer change, or this very event, is stored already.

        `time` is the time of the event (None: now); equal times are decided by the event id.
        """
        values = {
            "alert_key": alert.alert_key,
            "state": alert.state,
            "payload": alert.model_dump_json(),
            "opened_at": alert.opened_at,
            "event_id": event_id,
            "updated_at": time or now(),
        }
        with self._engine.begin() as connection:
            insert = insert_into(connection, alerts).values(alert_id=alert.alert_id, **values)
            new, old = insert.excluded, alerts.c
            newer = or_(
                new.updated_at > old.updated_at, and_(new.updated_at == old.updated_at, new.event_id > old.event_id)
            )
            other = and_(newer, new.event_id != old.event_id)
            update = insert.on_conflict_do_update(index_elements=["alert_id"], set_=values, where=other)
            return connection.execute(update.returning(old.event_id)).first() is not None

    def get(self, alert_id: str) -> AlertChanged | None:
        """An alert as it is now, or None."""
        query = select(alerts.c.payload).where(alerts.c.alert_id == alert_id)
        with reading(self._engine) as connection:
            payload = connection.execute(query).scalar()
        return read_payload(AlertChanged, payload) if payload is not None else None

    def list(self, state: Literal["open", "resolved"] | None = None) -> list[AlertChanged]:
        """Alerts in a state, or all, last opened first."""
        query = select(alerts.c.payload).order_by(alerts.c.opened_at.desc(), alerts.c.alert_id)
        if state is not None:
            query = query.where(alerts.c.state == state)
        with reading(self._engine) as connection:
            return [read_payload(AlertChanged, row.payload) for row in connection.execute(query)]
