"""Published snapshots: whole or absent, private to each reader, swept when nobody needs them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from infra.errors import CorruptArtifact, NotFound, Unavailable
from retrieval.index.ownership import owned
from retrieval.index.protocol import IndexPoint
from retrieval.index.qdrant import ServerHome
from retrieval.index.snapshot import READER_GRACE, EdgeHome, copy_sparse
from retrieval.sparse import encode_document


def home_at(folder: Path) -> EdgeHome:
    return EdgeHome(folder, lambda: 4)


def points(*names: str) -> list[IndexPoint]:
    vector = np.array([1, 0, 0, 0], dtype=np.float32)
    return [IndexPoint(name, "d", "/d.md", vector, encode_document("kafka")) for name in names]


def publish(home: EdgeHome, position: int, *names: str) -> None:
    index = home.open()
    index.upsert(points(*names))
    index.flush()
    home.set_applied({0: position})
    home.publish({0: position})
    index.close()


def test_nothing_exists_before_the_first_call(tmp_path: Path) -> None:
    home = home_at(tmp_path / "build")
    assert home.published() is None
    assert home.applied() == {}
    assert not (tmp_path / "build").exists()
    with pytest.raises(NotFound, match="quill ingest"), home.read():
        pass


def test_a_reader_sees_what_was_published_and_then_the_next(tmp_path: Path) -> None:
    owner, reader = home_at(tmp_path), home_at(tmp_path)
    publish(owner, 1, "a")
    with reader.read() as (index, position):
        assert (index.count(), position) == (1, {0: 1})
    with reader.read() as (again, _):
        assert again is index, "opened once per snapshot"
    publish(owner, 2, "b")
    with reader.read() as (index, position):
        assert (index.count(), position) == (2, {0: 2})
    assert len(list((tmp_path / "readers").iterdir())) == 2, "one copy and its lock"
    reader.close()
    assert list((tmp_path / "readers").iterdir()) == []


def test_what_was_not_published_is_not_seen(tmp_path: Path) -> None:
    owner, reader = home_at(tmp_path), home_at(tmp_path)
    publish(owner, 1, "a")
    index = owner.open()
    index.upsert(points("b", "c"))
    index.flush()
    with reader.read() as (seen, _):
        assert seen.count() == 1
    index.close()
    reader.close()


def test_two_snapshots_are_kept(tmp_path: Path) -> None:
    home = home_at(tmp_path)
    for number in range(5):
        publish(home, number, f"c{number}")
    kept = sorted(folder.name for folder in (tmp_path / "published").iterdir() if folder.is_dir())
    assert kept == ["4", "5"]


def test_a_live_index_whose_position_was_never_written_is_made_anew(tmp_path: Path) -> None:
    home = home_at(tmp_path)
    publish(home, 3, "a")
    (tmp_path / "live" / "applied.json").unlink()
    index = home.open()
    assert (index.count(), home.applied()) == (0, {})
    index.close()


def test_debris_of_a_crash_while_publishing_is_swept(tmp_path: Path) -> None:
    home = home_at(tmp_path)
    publish(home, 1, "a")
    (tmp_path / "published" / ".staging-x" / "shard").mkdir(parents=True)
    (tmp_path / "published" / "7").mkdir()  # renamed, but the pointer was not moved yet
    assert home.published() == {0: 1}
    publish(home, 2, "b")
    assert home.published() == {0: 2}
    assert not (tmp_path / "published" / ".staging-x").exists()


def test_a_damaged_manifest_or_position_says_what_to_delete(tmp_path: Path) -> None:
    home = home_at(tmp_path)
    publish(home, 1, "a")
    (tmp_path / "published" / "1" / "manifest.json").write_text("{")
    with pytest.raises(CorruptArtifact, match="delete"):
        home.published()
    (tmp_path / "live" / "applied.json").write_text("[1]")
    with pytest.raises(CorruptArtifact, match="rebuilt from the log"):
        home.applied()


def test_copies_of_dead_readers_are_swept_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    owner, alive = home_at(tmp_path), home_at(tmp_path)
    publish(owner, 1, "a")
    with alive.read():
        pass
    dead = tmp_path / "readers" / "dead"
    dead.mkdir()
    dead.with_suffix(".lock").touch()
    long_ago = time.time() - 2 * READER_GRACE
    for lock in (tmp_path / "readers").glob("*.lock"):
        os.utime(lock, (long_ago, long_ago))
    publish(owner, 2, "b")

    assert not dead.exists()
    assert len(list((tmp_path / "readers").glob("*.lock"))) == 1
    alive.close()


def test_copies_keep_the_holes_of_sparse_files(tmp_path: Path) -> None:
    source = tmp_path / "a" / "b" / "file"
    source.parent.mkdir(parents=True)
    with source.open("wb") as file:
        file.write(b"head")
        file.seek(50_000_000)
        file.write(b"tail")
        file.truncate(60_000_000)
    (tmp_path / "a" / "empty").touch()
    copy_sparse(tmp_path / "a", tmp_path / "copy")
    copy = tmp_path / "copy" / "b" / "file"

    assert copy.stat().st_size == 60_000_000
    assert copy.stat().st_blocks * 512 < 1_000_000
    with copy.open("rb") as file:
        assert file.read(4) == b"head"
        file.seek(50_000_000)
        assert file.read(5) == b"tail\0"
    assert (tmp_path / "copy" / "empty").read_bytes() == b""


def test_a_lock_has_one_owner_and_is_free_again_afterwards(tmp_path: Path) -> None:
    lock = tmp_path / "deep" / "owner.lock"
    with owned(lock) as first, owned(lock) as second:
        assert (first, second) == (True, False)
        assert lock.read_text() == f"{os.getpid()}\n"
    with owned(lock) as again:
        assert again


def test_an_unreachable_server_is_named_with_the_setting_to_check(tmp_path: Path) -> None:
    home = ServerHome(tmp_path, "c", lambda: 4, url="http://127.0.0.1:9")
    assert home.published() is None
    with pytest.raises(Unavailable, match=r"index\.url"):
        home.open()
    home.close()
