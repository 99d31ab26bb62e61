"""The weights that this installation's settings name: which are on this machine, and getting the others."""

from __future__ import annotations

from functools import partial

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from infra.errors import QuillError
from infra.models import ResolvedModel, resolve
from infra.settings import Settings


def wanted(settings: Settings) -> dict[str, str]:
    """Role to model name, for the roles that this machine plays itself."""
    roles = {"embedder": settings.models.embedder}
    if not settings.llm.endpoint:
        roles["writer"] = settings.llm.model
    if not settings.judge.endpoint and settings.judge.sample > 0:
        roles["judge"] = settings.judge.model
    return roles


def here(settings: Settings, name: str) -> ResolvedModel:
    """Weights that are on this machine already. Raises what `infra.models.resolve` raises, `Unavailable` when a
    download would be needed."""
    return resolve(name, settings.models.model_copy(update={"hub": False}), carriers=())


def fetch_missing(settings: Settings) -> None:
    """Download what the settings name and this machine lacks, with a progress bar on standard error."""
    missing = [name for name in dict.fromkeys(wanted(settings).values()) if not _is_here(settings, name)]
    if not missing:
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for name in missing:
            task = progress.add_task(name, total=None)
            resolve(name, settings.models, partial(_show, progress, task))


def _show(progress: Progress, task: TaskID, _name: str, done: int, total: int) -> None:
    progress.update(task, completed=done, total=total)


def _is_here(settings: Settings, name: str) -> bool:
    try:
        here(settings, name)
    except QuillError:
        return False
    return True
