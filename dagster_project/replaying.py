"""`quill replay`: interactions of the past through a new judge, prompt or adapter, into a result set of their own.

Nothing live is touched: the window is read without a group, new answers and verdicts go to the result set only.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar, cast

from pydantic import Field

from dagster_project.evaluation import adapter_starting_with
from infra.errors import InputError, NotFound, Unavailable
from infra.identity import Value, content_id, short
from monitoring.llm_judge import FAILED
from monitoring.opening import open_llm_judge
from monitoring.recording import evaluation_of
from retrieval.opening import open_answerer
from retrieval.release_default import default_release
from store.opening import Store
from store.releases import Release
from store.replays import Replay, ReplayResult, ReplayState
from streams.events import (
    EVALUATION_CHANNEL,
    LLM_EVALUATIONS,
    LLM_FEEDBACK,
    LLM_INTERACTIONS,
    EvaluationRecorded,
    Event,
    FeedbackGiven,
    InteractionRecorded,
    Payload,
    Unscored,
    Verdict,
)
from streams.log import EventLog
from streams.masking import Masker, mask_payload, open_masker
from streams.protocols import Answerer, AnswerRequest, Judge
from streams.replay import Window, reread

if TYPE_CHECKING:
    from dagster_project.resources import Wiring

CHANNEL = "production"
ACTOR = "replay"
REPLAYABLE = (LLM_INTERACTIONS, LLM_FEEDBACK, LLM_EVALUATIONS)
"""Of the last two, the interactions that people or judges spoke of in the window are replayed, as they are stored."""
LOCAL, LLM = "local", "llm"
IN_A_ROW = 3
"""Failures of the judge that are no longer those of single answers."""
PROMPT_VARIABLES = {"question", "sources"}

P = TypeVar("P", bound=Payload)
OnProgress = Callable[[int, int, str], None]
"""Offsets passed, in all, what was done."""


class ReplayRequest(Value):
    """What a person asks for; at least one of judge, prompt and adapter is given."""

    window: Window = Field(description="Topic and time.")
    judge: str = Field("", description="'local', 'llm', or a rubric of the prompt store; empty is the local judge.")
    prompt: str = Field("", description="Prompt `NAME@N` that answers again.")
    adapter: str = Field("", description="Adapter that answers again, id or unambiguous beginning of one.")
    name: str = Field("", description="Name of the result set; empty: made from the rest, so the same call goes on.")


class Heard:
    """What an answerer recorded, in the place of the emitter: a replayed answer is no traffic."""

    def __init__(self) -> None:
        self._last: InteractionRecorded | None = None

    def emit(self, payload: Payload) -> None:
        """Take an interaction."""
        if isinstance(payload, InteractionRecorded):
            self._last = payload

    def take(self) -> InteractionRecorded:
        """The last one, once. An answerer records one for each request, answered or not."""
        last, self._last = self._last, None
        if last is None:
            raise RuntimeError("the answerer recorded nothing")
        return last


class Replayer:
    """Runs interactions through a judge, answered again first where there is an answerer that records to `heard`."""

    def __init__(
        self, store: Store, judge: Judge, masker: Masker, answerer: Answerer | None = None, heard: Heard | None = None
    ) -> None:
        self._store = store
        self._judge = judge
        self._masker = masker
        self._answerer = answerer
        self._heard = heard or Heard()

    def run(self, log: EventLog, replay: Replay, on_progress: OnProgress) -> ReplayState:
        """Replay what has no result yet. Killed at any moment, the next run goes on after the last result.

        Passed over are records that are no events, interactions without a prompt, and those of our own comparisons.
        What the answering model refuses, and what the judge fails at, is a result; that the model is away or unknown,
        or that the judge fails `IN_A_ROW` times, is raised.
        """
        self._store.replays.begin(replay)
        known = self._store.replays.replayed(replay.name)
        passed_over = 0
        failed: list[ReplayResult] = []
        for one in reread(log, replay.window):
            subject = _subject(one.event, self._store)
            if subject is None:
                passed_over += 1
            elif subject[1].interaction_id not in known:
                known.add(subject[1].interaction_id)
                failed = self._keep(replay.name, [*failed, self._result(replay.name, *subject)])
            on_progress(one.done, one.total, f"{len(known)} replayed")
        self._store.replays.put(replay.name, failed)
        return self._store.replays.finish(replay.name, passed_over=passed_over)

    def _keep(self, name: str, results: list[ReplayResult]) -> list[ReplayResult]:
        """Store results, or return them where the judge failed at one and has given no verdict since."""
        reasons = [reason for result in results if (reason := _failure(result.evaluation))]
        if not reasons or any(isinstance(score, Verdict) for score in results[-1].evaluation.scores):
            self._store.replays.put(name, results)
            return []
        if len(reasons) == IN_A_ROW:
            raise Unavailable(
                f"the judge failed {IN_A_ROW} times in a row",
                seen=reasons[0],
                fix="mend it and run the same command again",
            )
        return results

    def _result(self, name: str, time: datetime, original: InteractionRecorded) -> ReplayResult:
        answer = self._answered(self._answerer, name, original) if self._answerer else None
        originals = self._store.interactions.evaluations([original.interaction_id])
        if answer is not None and all(one.judge != self._judge.id for one in originals):
            # The same judge must have seen both answers, or the difference would be that of two judges.
            originals.append(evaluation_of(original, self._judge))
        return ReplayResult(
            interaction_id=original.interaction_id,
            time=time,
            originals=tuple(originals),
            answer=answer,
            evaluation=_masked(evaluation_of(answer or original, self._judge), self._masker),
        )

    def _answered(self, answerer: Answerer, name: str, original: InteractionRecorded) -> InteractionRecorded:
        request = AnswerRequest(
            question=original.prompt,
            messages=original.messages,
            interaction_id="replay-" + short(content_id("replay", [name, original.interaction_id]), 24),
            application=original.application,
            channel=EVALUATION_CHANNEL,
            tags={"replay": name, "replayed": original.interaction_id},
        )
        with suppress(InputError):  # the model refuses this one: the answerer records that, and it is this answer
            answerer.answer(request)
        return _masked(self._heard.take(), self._masker)


def replay(wiring: "Wiring", request: ReplayRequest, on_progress: OnProgress) -> ReplayState:
    """Replay a window as a person asked. Raises `InputError` for what cannot be replayed and `NotFound`."""
    if request.window.topic not in REPLAYABLE:
        rule = "one of " + ", ".join(REPLAYABLE)
        raise InputError("this topic cannot be replayed", seen=request.window.topic, rule=rule)
    if not (request.judge or request.prompt or request.adapter):
        raise InputError("nothing to replay through", fix="give --judge, --prompt or --adapter")
    judge = judge_named(wiring, request.judge)
    release = release_with(wiring, request.prompt, request.adapter) if request.prompt or request.adapter else None
    asked = Replay(
        name=request.name or "to be named",
        window=request.window,
        judge=judge.id,
        release=release.ref({}) if release else None,
    )
    name = request.name or f"{request.window.topic}-{short(content_id('replay', asked))}"
    heard = Heard()
    answerer = (
        open_answerer(wiring.settings, wiring.store, release, retriever=wiring.retriever, emitter=heard)
        if release
        else None
    )
    replayer = Replayer(wiring.store, judge, open_masker(wiring.settings.masking), answerer, heard)
    return replayer.run(wiring.log, asked.model_copy(update={"name": name}), on_progress)


def judge_named(wiring: "Wiring", name: str) -> Judge:
    """The local judge, the LLM judge with its production rubric, or with the rubric that is named."""
    if name in ("", LOCAL):
        return wiring.local_judge
    return open_llm_judge(wiring.settings, wiring.store, "" if name == LLM else name)


def release_with(wiring: "Wiring", prompt: str, adapter: str) -> Release:
    """What production serves, or would serve first, with another prompt, another adapter, or both.

    Raises `NotFound` for an unknown one and `InputError` for a prompt that does not take a question and sources.
    """
    current = wiring.store.releases.current(CHANNEL) or default_release(
        wiring.settings, wiring.store, build=wiring.pipeline.build, judge=wiring.local_judge.id, actor=ACTOR
    )
    changes: dict[str, str] = {}
    if prompt:
        version = wiring.store.prompts.get(prompt)
        if set(version.variables) != PROMPT_VARIABLES:
            raise InputError(
                "this prompt cannot answer", seen=f"{version.ref}: {version.variables}", rule="it has question, sources"
            )
        changes["prompt"] = version.ref
    if adapter:
        manifest = adapter_starting_with(wiring, adapter)
        if manifest is None:
            known = ", ".join(short(one.id) for one in wiring.store.artifacts.list("adapter"))
            raise NotFound("there is no such adapter", seen=adapter, rule=f"one of {known}" if known else "none yet")
        changes |= {"adapter": manifest.id, "model": str(manifest.inputs["base"]["name"])}
    return current.model_copy(update=changes)


def _subject(event: Event | None, store: Store) -> tuple[datetime, InteractionRecorded] | None:
    """The interaction to replay and its time; None for what is, or speaks of, no answer to somebody's prompt."""
    found: Sequence[tuple[datetime, object]] = [(event.time, event.data)] if event else []
    if event and isinstance(event.data, FeedbackGiven | EvaluationRecorded):
        found = store.interactions.list(ids=[event.data.interaction_id])
    for time, subject in found:
        if (
            isinstance(subject, InteractionRecorded)
            and subject.channel != EVALUATION_CHANNEL
            and subject.prompt.strip()
        ):
            return time, subject
    return None


def _failure(evaluation: EvaluationRecorded) -> str:
    """Why the judge gave no verdict at all, when it was the judge that failed; else empty."""
    reasons = [score.reason for score in evaluation.scores if isinstance(score, Unscored)]
    failed = len(reasons) == len(evaluation.scores) and all(reason.startswith(FAILED) for reason in reasons)
    return reasons[0] if failed and reasons else ""


def _masked(payload: P, masker: Masker) -> P:
    return cast("P", mask_payload(payload, masker))
