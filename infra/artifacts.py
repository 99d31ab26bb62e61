"""Artifacts: directories named by identity that exist only once their manifest does.

A build happens in a staging directory on the same file system; `commit` hashes every file, writes
`manifest.json` last, syncs and renames. A directory without a manifest does not exist (a crash leaves
only staging debris, swept by the next build).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from infra.errors import CorruptArtifact, NotFound
from infra.identity import Value, file_hash, new_id, short

MANIFEST = "manifest.json"


class Manifest(Value):
    """What an artifact is, what it was made from, and the hash of each of its files."""

    kind: str = Field(description="Room-level kind: 'dataset', 'adapter', 'index', 'report', …")
    id: str = Field(description="Identity of the inputs that determine the artifact, `sha256:…`.")
    made_at: str = Field(description="When the manifest was written, ISO 8601 UTC.")
    inputs: dict[str, Any] = Field(description="Everything that determines the artifact: settings and input ids.")
    summary: dict[str, Any] = Field(description="Counts and measurements to show, JSON values.")
    files: dict[str, str] = Field(description="Relative path of each file to its `sha256:` hash.")


class Artifacts:
    """Directories `<root>/<kind>/<first 16 hex digits of id>/` with a manifest each."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, kind: str, identity: str) -> Path:
        """Where an artifact lies (whether or not it exists yet)."""
        return self.root / kind / short(identity, 16)

    def find(self, kind: str, identity: str) -> Manifest | None:
        """The manifest of an artifact, or None when it was never committed."""
        file = self.path(kind, identity) / MANIFEST
        if not file.exists():
            return None
        manifest = read_manifest(file.parent)
        return manifest if manifest.id == identity else None

    def get(self, kind: str, identity: str) -> Manifest:
        """The manifest of an artifact. Raises `NotFound`."""
        manifest = self.find(kind, identity)
        if manifest is None:
            raise NotFound(f"no {kind} with this id", seen=identity, fix=f"list them: quill {kind} list")
        return manifest

    def list(self, kind: str) -> list[Manifest]:
        """All committed artifacts of a kind, oldest first."""
        found = [read_manifest(file.parent) for file in (self.root / kind).glob(f"*/{MANIFEST}")]
        return sorted(found, key=lambda manifest: (manifest.made_at, manifest.id))

    def build(
        self, kind: str, identity: str, inputs: dict[str, Any], fill: Callable[[Path], dict[str, Any]]
    ) -> Manifest:
        """Return the existing artifact, or make it: `fill(directory)` writes files and returns the summary.

        Atomic against crashes and against a second process building the same identity (the first rename wins).
        """
        existing = self.find(kind, identity)
        if existing is not None:
            return existing
        final = self.path(kind, identity)
        staging = final.parent / f".staging-{new_id()}"
        staging.mkdir(parents=True)
        try:
            summary = fill(staging)
            return _commit(staging, final, kind, identity, inputs=inputs, summary=summary)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def verify(self, kind: str, identity: str) -> Path:
        """The directory of an artifact after checking every file's hash.

        Raises `NotFound` for an unknown id and `CorruptArtifact` naming the first file that differs.
        """
        manifest = self.get(kind, identity)
        directory = self.path(kind, identity)
        for name, expected in manifest.files.items():
            actual = file_hash(directory / name) if (directory / name).exists() else "missing"
            if actual != expected:
                raise CorruptArtifact(
                    f"{kind} file {name} does not match its manifest",
                    seen=actual,
                    rule=f"expected {expected}",
                    fix=f"delete {directory} and build it again",
                )
        return directory

    def remove(self, kind: str, identity: str) -> None:
        """Delete an artifact; the manifest goes first, so a crash leaves nothing that looks whole."""
        directory = self.path(kind, identity)
        (directory / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(directory, ignore_errors=True)


def read_manifest(directory: Path) -> Manifest:
    """The manifest in a directory. Raises `CorruptArtifact` when it does not parse."""
    file = directory / MANIFEST
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except ValueError as error:
        raise CorruptArtifact(
            "a manifest does not parse", seen=file, rule=str(error).splitlines()[0], fix=f"delete {directory}"
        ) from error


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old bytes or the new ones, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{new_id()}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_directory(path.parent)


def _commit(
    staging: Path, final: Path, kind: str, identity: str, *, inputs: dict[str, Any], summary: dict[str, Any]
) -> Manifest:
    files = {str(file.relative_to(staging)): file_hash(file) for file in sorted(staging.rglob("*")) if file.is_file()}
    manifest = Manifest(
        kind=kind,
        id=identity,
        made_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        inputs=json.loads(json.dumps(inputs, default=str)),
        summary=summary,
        files=files,
    )
    write_atomic(staging / MANIFEST, manifest.model_dump_json(indent=2).encode())
    if final.exists() and not (final / MANIFEST).exists():
        shutil.rmtree(final)
    try:
        staging.rename(final)
    except OSError:
        if not (final / MANIFEST).exists():
            raise
        return read_manifest(final)
    _sync_directory(final.parent)
    return manifest


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
