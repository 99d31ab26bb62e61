"""Alerts: from a detector's change to an event on `ops.alerts`, with evidence and slices; closing them by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from infra.errors import Conflict, NotFound
from infra.identity import content_id
from monitoring.slices import shared_slices
from monitoring.watch import Change, Watch, as_event, most_telling
from store.opening import Store
from streams.codec import encode
from streams.events import OPS_ALERTS, AlertChanged, Event, InteractionRecorded, Slice, now
from streams.log import EventLog

BACKGROUND = 300


class AlertDesk:
    """Writes alerts to the stream and to the store, in that order: what the store shows has been announced."""

    def __init__(self, log: EventLog, store: Store) -> None:
        self._log = log
        self._store = store

    def announce(self, watch: Watch, change: Change, reference_texts: Sequence[str] = ()) -> AlertChanged:
        """Describe and publish a change. Repeating one gives the same event id, which readers and store drop."""
        ids = most_telling(change.alert.evidence)
        known = {one.interaction_id: one for _, one in self._store.interactions.list(ids=ids)}
        evidence = [known[identity] for identity in ids if identity in known]
        slices = shared_slices(evidence, self._background(ids), reference_texts)
        alert = as_event(
            watch,
            change,
            slices=slices,
            release_id=_commonest_release(evidence),
            title=_title(watch.title, len(change.alert.evidence), slices),
        )
        self._publish(alert, event_id=_event_id(alert))
        return alert

    def resolve(self, alert_id: str, note: str) -> AlertChanged:
        """Close an open alert. Raises `NotFound` for an unknown id and `Conflict` when it is resolved already."""
        alert = find(self._store, alert_id)
        if alert.state == "resolved":
            raise Conflict("the alert is resolved already", seen=alert.alert_id, rule=alert.note)
        closed = alert.model_copy(update={"state": "resolved", "note": note})
        self._publish(closed, event_id=_event_id(closed))
        return closed

    def is_closed(self, alert_id: str) -> bool:
        """Whether the store knows the alert as resolved."""
        alert = self._store.alerts.get(alert_id)
        return alert is not None and alert.state == "resolved"

    def retire(self, watch: Watch) -> None:
        """Resolve open alerts of this stream that an earlier detector, with another reference, had opened."""
        for alert in self._store.alerts.list("open"):
            if alert.alert_key == watch.key and alert.detector != watch.detector:
                self.resolve(alert.alert_id, note="the reference was replaced")

    def _publish(self, alert: AlertChanged, event_id: str) -> None:
        event = Event(id=event_id, source="monitor", time=now(), data=alert)
        record = encode(event)
        self._log.append(OPS_ALERTS, [record])
        self._store.alerts.put(alert, event_id=event.id, time=event.time)

    def _background(self, evidence: Sequence[str]) -> list[InteractionRecorded]:
        newest = self._store.interactions.list(limit=BACKGROUND + len(evidence))
        return [one for _, one in newest if one.interaction_id not in set(evidence)]


def find(store: Store, alert_id: str) -> AlertChanged:
    """An alert by its id or a unique beginning of it. Raises `NotFound`, and `Conflict` for an ambiguous beginning."""
    exact = store.alerts.get(alert_id)
    if exact is not None:
        return exact
    found = [alert for alert in store.alerts.list() if alert.alert_id.startswith(alert_id)] if alert_id else []
    if len(found) > 1:
        raise Conflict("several alerts begin like this", seen=alert_id, rule=", ".join(a.alert_id for a in found[:5]))
    if not found:
        raise NotFound("no alert with this id", seen=alert_id, fix="list them: quill alerts list")
    return found[0]


def _commonest_release(evidence: Sequence[InteractionRecorded]) -> str | None:
    releases = Counter(one.release.release_id for one in evidence if one.release is not None)
    return releases.most_common(1)[0][0] if releases else None


def _title(what: str, count: int, slices: Sequence[Slice]) -> str:
    shared = f", mostly {slices[0].field} {slices[0].value!r}" if slices else ""
    return f"{what}: {count} interactions{shared}"


def _event_id(alert: AlertChanged) -> str:
    evidence = sorted(alert.interaction_ids)
    return content_id("alert-event", [alert.alert_id, alert.state, evidence])[7:39]
