"""Git repositories as they were committed, read by the git command: without work tree, hooks, filters or submodules."""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from infra.errors import InputError, NotFound, Unavailable
from infra.identity import content_id
from infra.settings import child_environment
from retrieval.extraction import CODE, SUFFIXES, VERSION
from retrieval.source_metadata import merged
from retrieval.sources import (
    MAX_BYTES,
    Item,
    Listing,
    Reading,
    Rejected,
    SourceDocument,
    Unchanged,
    from_bytes,
    suffix_of,
    too_large,
)

SCHEMES = ("https", "http", "ssh", "git", "file")
FORGES = frozenset({"github.com", "gitlab.com", "codeberg.org", "bitbucket.org"})
SCP = re.compile(r"[\w.-]+@[\w.-]+:(?!//)\S+")
TIMEOUT = 600.0
"""Seconds for one git command; a clone of the newest commit of a large repository takes minutes."""
HISTORY = 20_000
"""Commits looked through for each file's author and date."""


class _Blob(NamedTuple):
    identity: str
    size: int


def is_repository(target: str) -> bool:
    """Whether a source names a Git repository: git+…, ….git, ssh, user@host:path, a bare repository, or a forge's."""
    if target.startswith(("git+", "ssh://", "git://")) or SCP.fullmatch(target):
        return True
    parts = urlsplit(target)
    if parts.scheme in ("http", "https", "file"):
        names = [part for part in parts.path.split("/") if part]
        return parts.path.rstrip("/").endswith(".git") or (parts.hostname in FORGES and len(names) == 2)
    path = Path(target).expanduser()
    return all((path / name).exists() for name in ("HEAD", "objects", "refs"))


def list_repository(target: str, cache: Path) -> Listing:
    """The documents and program code of a repository's newest commit, `REPOSITORY#path` each.

    `target` is a folder or an address, with `git+` before it or not, and `#branch` behind it if not the default branch
    is meant. Files that are hidden are left out. The newest commit of a remote one is kept below `cache`. Raises
    `NotFound` for a folder that is no repository, `InputError` for a transport that runs programs, and `Unavailable`
    when git or the remote fails.
    """
    where, branch = _parsed(target)
    if "://" in where or SCP.fullmatch(where):
        git = _Git(_fetched(where, branch, cache))
        commit, about = "FETCH_HEAD", {}
    else:
        folder = Path(where).expanduser().absolute()
        if not folder.is_dir():
            raise NotFound("there is no repository at this path", seen=folder, fix="check the spelling")
        git, where, commit = _Git(folder.resolve()), str(folder.resolve()), branch or "HEAD"
        about = git.history(commit)
    name = without_secrets(where) + (f"@{branch}" if branch else "")
    blobs = git.blobs(commit)
    known = {path: blob for path, blob in blobs.items() if PurePosixPath(path).suffix.lower() in SUFFIXES | CODE}
    skipped = Counter(suffix_of(Path(path)) for path in blobs if path not in known)
    items = [
        Item(f"{name}#{path}", partial(_read, git, blob, f"{name}#{path}", about.get(path, {})))
        for path, blob in sorted(known.items())
    ]
    return Listing(scope=f"git+{name}", items=items, skipped=skipped)


def _read(git: _Git, blob: _Blob, source: str, about: Mapping[str, Any], seen: str) -> Reading:
    now = content_id("blob", [VERSION, blob.identity])
    if now == seen:
        return Unchanged(source=source)
    if blob.size > MAX_BYTES:
        return Rejected(source=source, reason=too_large(blob.size).what)
    path = source.partition("#")[2]
    found = from_bytes(git.run("cat-file", "blob", blob.identity), path, source, "")
    if not isinstance(found, SourceDocument):
        return found
    title = path if PurePosixPath(path).suffix.lower() in CODE else found.title
    return found.model_copy(update={"title": title, "metadata": merged(found.metadata, about), "seen": now})


class _Git:
    """Commands in one repository."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def run(self, *arguments: str) -> bytes:
        """What a command prints."""
        return _run("-C", str(self._folder), *arguments)

    def blobs(self, commit: str) -> dict[str, _Blob]:
        """Path to blob of every plain file of a commit; links and submodules are left out."""
        found: dict[str, _Blob] = {}
        for entry in self.run("ls-tree", "-r", "-l", "-z", "--full-tree", commit).split(b"\0"):
            head, _, path = entry.partition(b"\t")
            fields = head.decode().split()
            name = path.decode("utf-8", "replace")
            plain = len(fields) == 4 and fields[0] in ("100644", "100755")
            if plain and not any(part.startswith(".") for part in PurePosixPath(name).parts):
                found[name] = _Blob(fields[2], int(fields[3]))
        return found

    def history(self, commit: str) -> dict[str, dict[str, Any]]:
        """Path to the author and day of the last commit that changed it, among the newest `HISTORY` commits."""
        form = "--format=%x01%an%x02%as"
        log = self.run("log", form, "--name-only", "-z", "--no-renames", f"--max-count={HISTORY}", commit)
        found: dict[str, dict[str, Any]] = {}
        for entry in log.decode("utf-8", "replace").split("\x01")[1:]:
            head, _, names = entry.partition("\0") if "\0" in entry else (entry, "", "")
            author, _, day = head.strip().partition("\x02")
            for path in names.strip("\n\0").split("\0"):
                found.setdefault(path.strip("\n"), {"author": author, "date": day})
        return found


def _fetched(url: str, branch: str, cache: Path) -> Path:
    """A bare repository that holds the newest commit of a remote one."""
    if "://" in url and urlsplit(url).scheme not in SCHEMES:
        raise InputError("not an address that git may ask", seen=without_secrets(url), rule=", ".join(SCHEMES))
    folder = cache / "git" / hashlib.sha256(f"{url} {branch}".encode()).hexdigest()[:16]
    if not (folder / "HEAD").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _run("init", "--quiet", "--bare", str(folder))
    _Git(folder).run("fetch", "--quiet", "--depth=1", "--no-tags", "--", url, branch or "HEAD")
    return folder


def _run(*arguments: str) -> bytes:
    # Only transports that carry data, no question to a person who is not there, and nothing that a repository set up.
    environment = child_environment(
        GIT_ALLOW_PROTOCOL=":".join(SCHEMES), GIT_TERMINAL_PROMPT="0", GIT_OPTIONAL_LOCKS="0", LC_ALL="C"
    )
    safe = ("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "log.showSignature=false")
    try:
        done = subprocess.run(
            ["git", *safe, *arguments], capture_output=True, env=environment, timeout=TIMEOUT, check=False
        )
    except FileNotFoundError as error:
        raise Unavailable("the git command is not installed", fix="install git") from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable("git takes too long", rule=f"{TIMEOUT:.0f} s") from error
    if done.returncode != 0:
        words = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason given"]
        reason = next((line for line in words if line.startswith(("fatal: ", "error: "))), words[-1])
        raise Unavailable("git could not read the repository", seen=without_secrets(reason))
    return done.stdout


def _parsed(target: str) -> tuple[str, str]:
    """(folder or address, branch)."""
    where, _, branch = target.removeprefix("git+").partition("#")
    if where.startswith("-") or branch.startswith("-") or not where:
        raise InputError("not a repository", seen=target, rule="a folder or an address, then #branch if any")
    return where, branch


def without_secrets(text: str) -> str:
    """A text whose addresses have lost user name and password."""
    return re.sub(r"(\w+://)[^/@\s]+@", r"\1", text)
