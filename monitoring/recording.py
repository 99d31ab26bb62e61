"""Judging stored interactions and writing down what the judge said, once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from infra.identity import content_id
from store.opening import Store
from streams.codec import encode
from streams.events import CRITERIA, LLM_EVALUATIONS, EvaluationRecorded, Event, InteractionRecorded, Unscored
from streams.log import EventLog
from streams.protocols import Judge, JudgeInput, Judgement

ALWAYS = ("judge", "always")
NOT_JUDGED = {"error": "the interaction failed", "cancelled": "cancelled before the end", "refused": "refused"}


class Recorder:
    """Appends verdicts to `llm.evaluations` and stores them; the event id depends on interaction and judge only."""

    def __init__(self, log: EventLog, store: Store) -> None:
        self._log = log
        self._store = store

    def judge(self, interaction: InteractionRecorded, judge: Judge, *, probability: float) -> bool:
        """Judge and record unless this judge did so before; False in that case. See `judge_many`."""
        return self.judge_many([interaction], judge, probability=probability) > 0

    def judge_many(self, interactions: Sequence[InteractionRecorded], judge: Judge, *, probability: float) -> int:
        """Judge and record those that this judge did not judge before, in one append and one transaction; how many.

        Interactions that failed, were cancelled or refused are Unscored without asking the judge.
        """
        named = {interaction.interaction_id: interaction for interaction in interactions}
        known = self._store.interactions.evaluations(list(named))
        for evaluation in known:
            if evaluation.judge == judge.id:
                named.pop(evaluation.interaction_id, None)
        if not named:
            return 0
        subjects = list(named.values())
        events = [
            Event(
                id=evaluation_event_id(interaction.interaction_id, judge.id),
                source="monitor",
                data=_evaluation(interaction, judge, judgement, probability),
            )
            for interaction, judgement in zip(subjects, _judgements(subjects, judge), strict=True)
        ]
        self._log.append(LLM_EVALUATIONS, [encode(event) for event in events])
        self._store.interactions.put_many(events)
        return len(events)


def evaluation_of(interaction: InteractionRecorded, judge: Judge, *, probability: float = 1.0) -> EvaluationRecorded:
    """What a judge says of an interaction, recorded nowhere; `probability` is that with which it was chosen."""
    return _evaluation(interaction, judge, next(_judgements([interaction], judge)), probability)


def chosen_with(interaction: InteractionRecorded, sample: float) -> float:
    """The probability with which an interaction was chosen for the sampled judge; 0 when it was not chosen.

    The choice is a hash of the interaction id, the same at every delivery and on every machine. The tag
    `judge=always` chooses with probability 1.
    """
    name, value = ALWAYS
    if interaction.tags.get(name) == value:
        return 1.0
    digest = hashlib.sha256(b"judge-sample\0" + interaction.interaction_id.encode()).digest()
    return sample if int.from_bytes(digest[:8], "big") / 2**64 < sample else 0.0


def evaluation_event_id(interaction_id: str, judge_id: str) -> str:
    """32 hex digits over interaction and judge."""
    return content_id("evaluation", [interaction_id, judge_id]).removeprefix("sha256:")[:32]


def _evaluation(
    interaction: InteractionRecorded, judge: Judge, judgement: Judgement, probability: float
) -> EvaluationRecorded:
    return EvaluationRecorded(
        interaction_id=interaction.interaction_id,
        judge=judgement.judge,
        judge_model=judge.model,
        same_model_as_writer=bool(
            judge.model and interaction.release is not None and interaction.release.model == judge.model
        ),
        scores=judgement.scores,
        sampled_with=probability,
        latency_ms=judgement.latency_ms,
    )


def _judgements(interactions: Sequence[InteractionRecorded], judge: Judge) -> Iterator[Judgement]:
    """One of each interaction, same order; the judge is asked once for all that it has to see."""
    asked = [each for each in interactions if each.finish_reason not in NOT_JUDGED]
    subjects = [JudgeInput(prompt=each.prompt, response=each.response, context=each.context) for each in asked]
    answers = iter(judge.judge(subjects) if subjects else [])
    for interaction in interactions:
        reason = NOT_JUDGED.get(interaction.finish_reason)
        if reason is None:
            yield next(answers)
        else:
            yield Judgement(judge=judge.id, scores=tuple(Unscored(criterion=c, reason=reason) for c in CRITERIA))
