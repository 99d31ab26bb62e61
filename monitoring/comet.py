"""Comet: prompts, responses, verdicts and alerts as one experiment, in an offline archive unless a key is set."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from infra.errors import Unavailable
from infra.settings import Settings, quiet_third_parties
from streams.events import AlertChanged, EvaluationRecorded, InteractionRecorded, Verdict

_QUIET: Mapping[str, Any] = {
    "log_code": False,
    "log_graph": False,
    "auto_param_logging": False,
    "auto_metric_logging": False,
    "auto_output_logging": False,
    "parse_args": False,
    "log_env_details": False,
    "log_git_metadata": False,
    "log_git_patch": False,
    "display_summary_level": 0,
}
COLUMNS = ("interaction_id", "prompt", "response", "judge", "criterion", "score", "words", "sampled_with")


class CometSink:
    """Writes to `<home>/comet` (an archive that `comet upload` sends later), or online when `comet.api_key` is set."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def log(
        self,
        interactions: Sequence[InteractionRecorded],
        evaluations: Sequence[EvaluationRecorded],
        alerts: Sequence[AlertChanged] = (),
    ) -> str:
        """Log everything as one experiment; the path of the archive, or the URL of the online experiment.

        Each interaction is one text sample (prompt and response, with its scores as metadata) and rows of the table
        `evaluations.csv`; means are metrics, counts are others, alerts are the asset `alerts.json`. Raises
        `Unavailable` when Comet refuses the key or cannot be reached, or when the archive was not written.
        """
        experiment = self._experiment()
        try:
            self._fill(experiment, interactions, evaluations, alerts)
        finally:
            experiment.end()
        if self._online:
            return str(experiment.url)
        archive = self._folder / f"{experiment.id}.zip"
        if not archive.is_file():
            raise Unavailable("Comet wrote no offline archive", seen=archive, fix="check that the folder is writable")
        return str(archive)

    @property
    def _online(self) -> bool:
        return bool(self._settings.comet.api_key.get_secret_value())

    @property
    def _folder(self) -> Path:
        return self._settings.home / "comet"

    def _experiment(self) -> Any:
        quiet_third_parties()
        import comet_ml

        logging.getLogger("comet_ml").setLevel(logging.ERROR)
        comet = self._settings.comet
        place = {"project_name": comet.project, "workspace": comet.workspace or None}
        if not self._online:
            self._folder.mkdir(parents=True, exist_ok=True)
            return comet_ml.OfflineExperiment(offline_directory=str(self._folder), **place, **_QUIET)
        try:
            experiment = comet_ml.Experiment(api_key=comet.api_key.get_secret_value(), **place, **_QUIET)
        except (ValueError, OSError, comet_ml.exceptions.CometException) as error:
            raise _refused(str(error)) from error
        if not experiment.alive:
            raise _refused("the experiment did not start")
        return experiment

    def _fill(
        self,
        experiment: Any,
        interactions: Sequence[InteractionRecorded],
        evaluations: Sequence[EvaluationRecorded],
        alerts: Sequence[AlertChanged],
    ) -> None:
        by_interaction: dict[str, list[EvaluationRecorded]] = defaultdict(list)
        for evaluation in evaluations:
            by_interaction[evaluation.interaction_id].append(evaluation)
        rows: list[list[Any]] = []
        for step, interaction in enumerate(interactions):
            mine = by_interaction[interaction.interaction_id]
            text = f"Prompt: {interaction.prompt}\n\nResponse: {interaction.response}"
            experiment.log_text(text, step=step, metadata=_metadata(interaction, mine))
            rows += _rows(interaction, mine)
        if rows:
            experiment.log_table("evaluations.csv", tabular_data=rows, headers=list(COLUMNS))
        experiment.log_metrics(_means(evaluations))
        if alerts:
            plain = [alert.model_dump(mode="json") for alert in alerts]
            experiment.log_asset_data(plain, name="alerts.json")
        counts = {"interactions": len(interactions), "evaluations": len(evaluations), "alerts": len(alerts)}
        experiment.log_others(counts)


def _metadata(interaction: InteractionRecorded, evaluations: Sequence[EvaluationRecorded]) -> dict[str, Any]:
    release = interaction.release
    scores = {
        f"{evaluation.judge}/{score.criterion}": score.score if isinstance(score, Verdict) else score.reason
        for evaluation in evaluations
        for score in evaluation.scores
    }
    return {
        "interaction_id": interaction.interaction_id,
        "finish_reason": interaction.finish_reason,
        "release": release.release_id if release else "",
        "prompt_version": release.prompt if release else "",
        "model": release.model if release else "",
        **scores,
    }


def _rows(interaction: InteractionRecorded, evaluations: Sequence[EvaluationRecorded]) -> list[list[Any]]:
    start = [interaction.interaction_id, interaction.prompt, interaction.response]
    judged = [
        [*start, evaluation.judge, score.criterion, *_said(score), evaluation.sampled_with]
        for evaluation in evaluations
        for score in evaluation.scores
    ]
    return judged or [[*start, "", "", "", "", ""]]


def _said(score: Any) -> tuple[float | str, str]:
    return (score.score, score.justification) if isinstance(score, Verdict) else ("", score.reason)


def _means(evaluations: Sequence[EvaluationRecorded]) -> dict[str, float]:
    found: dict[str, list[float]] = defaultdict(list)
    for evaluation in evaluations:
        for score in evaluation.scores:
            if isinstance(score, Verdict):
                found[f"{evaluation.judge.partition('@')[0]}_{score.criterion}_mean"].append(score.score)
    return {name: fmean(scores) for name, scores in found.items()}


def _refused(reason: str) -> Unavailable:
    return Unavailable(
        "Comet does not accept the experiment",
        rule=reason,
        fix="check COMET_API_KEY and comet.workspace, or empty the key to write offline archives",
    )
