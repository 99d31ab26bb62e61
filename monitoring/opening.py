"""A monitor and its judges, as the settings want them."""

from __future__ import annotations

from functools import partial
from typing import Any

from infra.embedder import Embedder, open_embedder
from infra.errors import InputError, NotFound
from infra.llm.opening import open_chat
from infra.settings import Settings
from monitoring.consumer import DRIFT_KEY, GROUP, REFUSAL_KEY, Monitor, drift_watch, refusal_watch
from monitoring.drift import newest_reference
from monitoring.llm_judge import LlmJudge
from monitoring.local_judge import LocalJudge
from monitoring.rubric import RUBRIC_NAME, rubric_messages
from store.opening import Store
from store.prompts import PromptVersion
from streams import intake
from streams.events import LLM_FEEDBACK, LLM_INTAKE, LLM_INTERACTIONS
from streams.log import EventLog, lag
from streams.progress import progress

GROUPS = {GROUP: (LLM_INTERACTIONS, LLM_FEEDBACK), intake.GROUP: (LLM_INTAKE,)}
"""Consumer groups of an installation and the topics they handle."""

RUBRIC_VARIABLES = {"query", "output"}


def open_monitor(
    settings: Settings, log: EventLog, store: Store, *, embedder: Embedder | None = None, llm: bool = True
) -> Monitor:
    """The monitor of an installation: local judge on everything, LLM judge on the settings' sample (none with
    `llm=False`), drift against the newest reference, also when it is made while the monitor runs."""
    embedder = embedder or open_embedder(settings.models)
    return Monitor(
        log,
        store,
        local=LocalJudge(embedder),
        llm=open_llm_judge(settings, store) if llm else None,
        sample=settings.judge.sample,
        embedder=embedder,
        reference=newest_reference(store.artifacts),
        newest=partial(newest_reference, store.artifacts),
    )


def open_llm_judge(settings: Settings, store: Store, rubric: str = "") -> LlmJudge:
    """The LLM judge with a rubric of the prompt store (`NAME`, `NAME@3`), or the one labelled `production`.

    Raises `NotFound` for an unknown rubric and `InputError` for a prompt that is none.
    """
    version = store.prompts.get(rubric) if rubric else open_rubric(store)
    if set(version.variables) != RUBRIC_VARIABLES:
        rule = " and ".join(sorted(RUBRIC_VARIABLES))
        raise InputError("this prompt is no rubric", seen=f"{version.ref}: {version.variables}", rule=f"it has {rule}")
    return LlmJudge(open_chat(settings.judge, settings.models), version)


def open_rubric(store: Store) -> PromptVersion:
    """The rubric from the prompt store; the built-in one is pushed and labelled `production` when there is none."""
    try:
        return store.prompts.get(RUBRIC_NAME)
    except NotFound:
        version = store.prompts.push(RUBRIC_NAME, rubric_messages(), note="built in")
        store.prompts.label(RUBRIC_NAME, "production", version.number)
        return version


def monitor_status(log: EventLog, store: Store) -> dict[str, Any]:
    """How far the monitor is and what it found, read without loading a model: lag in events per topic, and per group,
    topic and partition with the age of the oldest, stored interactions, means per judge and criterion, detectors with
    wealth and observations, open alerts."""
    reference = newest_reference(store.artifacts)
    watches = {REFUSAL_KEY: refusal_watch(store)}
    if reference is not None:
        watches[DRIFT_KEY] = drift_watch(store, reference.id)
    states = {key: watch.load() for key, watch in sorted(watches.items())}
    return {
        "lag": {topic: lag(log, GROUP, topic) for topic in GROUPS[GROUP]},
        "progress": [each.model_dump(mode="json") for each in progress(log, GROUPS)],
        "interactions": store.interactions.count(),
        "means": [mean.model_dump(mode="json") for mean in store.interactions.means()],
        "reference": reference.summary | {"id": reference.id} if reference else None,
        "detectors": [
            {
                "key": key,
                "observed": state.run.count,
                "wealth": round(state.run.wealth, 3),
                "threshold": watches[key].threshold,
                "open_alert": state.alert.alert_id if state.alert else None,
            }
            for key, state in states.items()
        ],
        "open_alerts": [alert.alert_id for alert in store.alerts.list("open")],
    }
