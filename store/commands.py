"""`quill prompts`, `quill release` and the listing verbs of `quill dataset`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.cli import JsonFlag, console, print_json, print_rows
from infra.errors import InputError
from infra.identity import short
from infra.settings import Settings, load_settings

if TYPE_CHECKING:
    from store.opening import Store
    from store.prompts import PromptVersion
    from store.releases import Release
    from streams.events import ReleaseChanged
    from streams.log import EventLog

prompts_app = typer.Typer(help="Versioned prompts: push, label, approve, compare, roll back.", no_args_is_help=True)
release_app = typer.Typer(help="Releases: what answers on each channel.", no_args_is_help=True)
dataset_app = typer.Typer(help="Datasets made from the documents.", no_args_is_help=True)

Channel = Annotated[str, typer.Option("--channel", help="Release channel.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept in the history.")]
By = Annotated[str, typer.Option("--by", help="Who does it; default: the user of this process.")]
PromptRef = Annotated[str, typer.Argument(metavar="PROMPT", help="NAME, NAME@NUMBER or NAME@LABEL.")]
ReleaseId = Annotated[str, typer.Argument(metavar="RELEASE", help="Release id, or the first digits of one.")]


def register(app: typer.Typer) -> None:
    """Add the store's verbs to the umbrella command."""
    app.add_typer(prompts_app, name="prompts")
    app.add_typer(release_app, name="release")
    app.add_typer(dataset_app, name="dataset")


# --- quill prompts ----------------------------------------------------------------------------------------


@prompts_app.command("list")
def list_prompts(as_json: JsonFlag = False) -> None:
    """List the prompts with their newest version and labels."""
    with _store() as store:
        summaries = store.prompts.list()
    if as_json:
        print_json(summaries)
        return
    rows = [
        {
            "name": summary.name,
            "versions": summary.versions,
            "labels": ", ".join(f"{label} → {number}" for label, number in summary.labels.items()),
            "approved": ", ".join(map(str, summary.approved)),
            "updated": _minute(summary.updated_at),
        }
        for summary in summaries
    ]
    print_rows(rows, as_json=False, title="prompts")


@prompts_app.command("show")
def show_prompt(prompt: PromptRef, as_json: JsonFlag = False) -> None:
    """Show one version: its messages, variables, labels and approval."""
    with _store() as store:
        version = store.prompts.get(prompt)
        labels = [label for label, number in store.prompts.labels(version.name).items() if number == version.number]
        approval = store.prompts.approvals(version.name).get(version.number)
    if as_json:
        print_json({**version.model_dump(mode="json"), "labels": labels, "approval": approval})
        return
    console.print(f"[bold]{version.ref}[/bold]  {', '.join(labels)}")
    for name, text in (
        ("note", version.note),
        ("variables", ", ".join(version.variables)),
        ("approved", f"by {approval.by}, {_minute(approval.at)}" if approval else ""),
    ):
        if text:
            console.print(f"{name}: {text}", markup=False)
    for message in version.messages:
        console.print(f"\n[bold]{message.role}[/bold]")
        console.print(message.content, markup=False, highlight=False, soft_wrap=True)


@prompts_app.command("diff")
def diff_prompt(
    name: Annotated[str, typer.Argument(help="Name of the prompt.")],
    old: Annotated[str, typer.Argument(help="Version number or label.")],
    new: Annotated[str, typer.Argument(help="Version number or label.")],
) -> None:
    """Show what changed between two versions, word by word: [-gone-] and {+new+}."""
    with _store() as store:
        changes = store.prompts.diff(name, old, new)
    sys.stdout.write(changes or "no difference\n")


@prompts_app.command("push")
def push_prompt(
    file: Annotated[Path, typer.Argument(help="YAML or JSON file with name, messages (role, content) and note.")],
    by: By = "",
) -> None:
    """Add a version from a file; the same messages again give the version that has them."""
    from store.prompt_file import read_prompt_file

    source = read_prompt_file(file)
    with _store() as store:
        version = store.prompts.push(source.name, source.messages, source.note, actor=by or _operator())
    console.print(version.ref, markup=False)


@prompts_app.command("approve")
def approve_prompt(prompt: PromptRef, by: By = "") -> None:
    """Record that you approve a version."""
    with _store() as store:
        version = store.prompts.get(prompt)
        approval = store.prompts.approve(version.name, version.number, by or _operator())
    console.print(f"{version.ref} approved by {approval.by}, {_minute(approval.at)}", markup=False)


@prompts_app.command("label")
def label_prompt(
    prompt: PromptRef, label: Annotated[str, typer.Argument(help="Label to set, such as production.")], by: By = ""
) -> None:
    """Point a label at a version."""
    with _store() as store:
        version = store.prompts.get(prompt)
        store.prompts.label(version.name, label, version.number, actor=by or _operator())
    _print_label(label, version)


@prompts_app.command("rollback")
def rollback_prompt(
    name: Annotated[str, typer.Argument(help="Name of the prompt.")],
    label: Annotated[str, typer.Argument(help="Label to point back.")] = "production",
    by: By = "",
) -> None:
    """Point a label back to the version before."""
    with _store() as store:
        version = store.prompts.rollback(name, label, actor=by or _operator())
    _print_label(label, version)


# --- quill release ----------------------------------------------------------------------------------------


@release_app.command("list")
def list_releases(as_json: JsonFlag = False) -> None:
    """List the releases and the channels that serve them."""
    with _store() as store:
        serving = store.releases.channels()
        releases = store.releases.list()
    rows = [
        _release_row(release, [channel for channel, served in serving.items() if served == release.id])
        for release in releases
    ]
    if as_json:
        print_json(rows)
        return
    short_rows = [
        {
            "release": short(row["id"]),
            "channels": ", ".join(row["channels"]),
            "prompt": row["prompt"],
            "model": row["model"],
            "adapter": short(row["adapter"] or ""),
            "index": short(row["index_build"] or ""),
            "judge": row["judge"],
        }
        for row in rows
    ]
    print_rows(short_rows, as_json=False, title="releases")


@release_app.command("show")
def show_release(release: ReleaseId, as_json: JsonFlag = False) -> None:
    """Show a release with what happened to it on the channels."""
    with _store() as store:
        found = store.releases.get(release)
        served = store.releases.channels()
        history = [
            {"time": entry.time.isoformat(), **entry.change.model_dump(include=_HISTORY_FIELDS)}
            for channel in served
            for entry in store.releases.history(channel)
            if found.id in {entry.change.release_id, entry.change.previous}
        ]
    row = _release_row(found, [channel for channel, identity in served.items() if identity == found.id])
    if as_json:
        print_json({**row, "history": history})
        return
    print_rows([{"part": name, "value": value} for name, value in row.items()], as_json=False, title=short(found.id))
    print_rows(history, as_json=False, title="history")


@release_app.command("promote")
def promote_release(release: ReleaseId, reason: Reason, channel: Channel = "production", by: By = "") -> None:
    """Serve a release on a channel."""
    with _store(with_log=True) as store:
        change = store.releases.promote(channel, release, reason=reason, actor=by or _operator())
    _print_change(change)


@release_app.command("rollback")
def rollback_release(reason: Reason, channel: Channel = "production", by: By = "") -> None:
    """Serve the release before on a channel."""
    with _store(with_log=True) as store:
        change = store.releases.rollback(channel, reason=reason, actor=by or _operator())
    _print_change(change)


# --- quill dataset ----------------------------------------------------------------------------------------


@dataset_app.command("list")
def list_datasets(as_json: JsonFlag = False) -> None:
    """List the datasets, oldest first."""
    manifests = _artifacts().list("dataset")
    if as_json:
        print_json([{"id": one.id, "made_at": one.made_at, **one.summary} for one in manifests])
        return
    rows = [
        {
            "dataset": short(one.id),
            "made at": one.made_at[:16].replace("T", " "),
            "summary": ", ".join(f"{name} {value}" for name, value in one.summary.items()),
        }
        for one in manifests
    ]
    print_rows(rows, as_json=False, title="datasets", empty="nothing yet; make one: quill dataset build")


@dataset_app.command("show")
def show_dataset(
    dataset: Annotated[str, typer.Argument(help="Dataset id, or the first digits of one.")],
    as_json: JsonFlag = False,
) -> None:
    """Show a dataset: what it was made from, its counts and its files."""
    artifacts = _artifacts()
    digits = dataset.removeprefix("sha256:")
    found = [one for one in artifacts.list("dataset") if digits and short(one.id, 64).startswith(digits)]
    if len(found) > 1:
        raise InputError("several datasets begin like this", seen=dataset, fix="give more digits")
    manifest = found[0] if found else artifacts.get("dataset", dataset)
    path = artifacts.path("dataset", manifest.id)
    if as_json:
        print_json({**manifest.model_dump(mode="json"), "path": str(path)})
        return
    parts: dict[str, Any] = {"id": manifest.id, "made at": manifest.made_at, "path": path}
    parts |= {**manifest.summary, **manifest.inputs, "files": ", ".join(manifest.files)}
    print_rows([{"part": name, "value": value} for name, value in parts.items()], as_json=False)


_HISTORY_FIELDS = {"channel", "action", "release_id", "previous", "reason", "actor"}


@contextmanager
def _store(*, with_log: bool = False) -> Iterator[Store]:
    from store.opening import open_store

    settings = load_settings()
    with ExitStack() as opened:
        log = opened.enter_context(closing(_log(settings))) if with_log else None
        yield opened.enter_context(closing(open_store(settings, log)))


def _log(settings: Settings) -> EventLog:
    from streams.opening import open_log

    return open_log(settings)


def _artifacts() -> Any:
    from infra.artifacts import Artifacts

    return Artifacts(load_settings().home / "artifacts")


def _operator() -> str:
    import psutil

    return psutil.Process().username()


def _release_row(release: Release, channels: list[str]) -> dict[str, Any]:
    return {"id": release.id, "channels": channels, **release.model_dump(mode="json")}


def _print_change(change: ReleaseChanged) -> None:
    before = short(change.previous) if change.previous else "nothing"
    text = f"{change.channel}: {change.action.replace('_', ' ')} to {short(change.release_id)} (before: {before})"
    console.print(text, markup=False)


def _print_label(label: str, version: PromptVersion) -> None:
    console.print(f"{label} → {version.ref}", markup=False)


def _minute(moment: Any) -> str:
    return f"{moment:%Y-%m-%d %H:%M}"
