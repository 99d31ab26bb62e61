"""What a source is, by how it is written: a folder, a file, an export, an address, a feed, a repository."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from infra.errors import InputError
from retrieval.extraction import Unusable
from retrieval.fetching import Fetcher, shown
from retrieval.sources import Listing, Rejected, existing, list_path, suffix_of, visible_files
from retrieval.sources_exports import EXPORTS, LINES, list_export
from retrieval.sources_git import is_repository, list_repository, without_secrets
from retrieval.sources_web import list_address


def is_remote(target: str) -> bool:
    """Whether a source is asked for over the network (or by git), and not read from a path."""
    return "://" in target or is_repository(target)


def scope_of(target: str) -> str:
    """The name of a source that is remote, without user name and password, or of the path."""
    if target.startswith(("http://", "https://")):
        return shown(target)
    return without_secrets(target) if is_remote(target) else str(Path(target).expanduser().resolve())


def list_source(target: str, fetcher: Fetcher, cache: Path, seen: str = "") -> Listing:
    """What a source lists now. `cache` holds copies of remote repositories; `seen` is for `list_address`.

    Raises `NotFound` for a path where nothing is, `InputError` and `Unavailable` for what cannot be listed.
    """
    if is_repository(target):
        return list_repository(target, cache)
    if "://" in target:
        if not target.startswith(("http://", "https://")):
            raise InputError("not a kind of address that is read", seen=target, rule="http, https, ssh, git or a path")
        return list_address(target, fetcher, seen)
    root = existing(target)
    if root.is_dir():
        return _with_exports(list_path(root), root)
    if root.suffix.lower() not in EXPORTS:
        return list_path(root)
    return _export(root)


def _export(file: Path) -> Listing:
    try:
        listing = list_export(file)
    except (Unusable, OSError) as error:
        reason = error.what if isinstance(error, Unusable) else f"it cannot be read ({error.strerror or error})"
        return Listing(scope=str(file), items=[], rejected=[Rejected(source=str(file), reason=reason)], complete=False)
    return listing or Listing(scope=str(file), items=[])


def _with_exports(listing: Listing, root: Path) -> Listing:
    """A folder's files and the rows of its JSON Lines files; JSON and CSV files are read only when they are named."""
    items, rejected, skipped = list(listing.items), list(listing.rejected), Counter(listing.skipped)
    for file in visible_files(root):
        if file.suffix.lower() not in LINES:
            continue
        try:
            rows = list_export(file, named=False)
        except OSError as error:
            rejected.append(Rejected(source=str(file), reason=f"it cannot be read ({error.strerror or error})"))
            continue
        if rows is not None:
            skipped[suffix_of(file)] -= 1
            items += rows.items
            rejected += rows.rejected
    return replace(listing, items=items, rejected=rejected, skipped=+skipped)
