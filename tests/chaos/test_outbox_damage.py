"""Bits that flip in an outbox and files that end too early: each is detected, and what is intact reaches the log."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from streams.codec import encode
from streams.embedded import EmbeddedLog
from streams.events import LLM_FEEDBACK, Event, FeedbackGiven
from streams.log import Record
from streams.outbox import Outbox
from streams.segments import Outgoing, read_head, segments_in

GROUPS = 6
PER_GROUP = 4
UNFINISHED = 3


def records(first: int, number: int) -> list[tuple[int, Outgoing]]:
    made = []
    for sequence in range(first, first + number):
        event = Event(id=f"e{sequence}", data=FeedbackGiven(interaction_id="i", comment=f"é {sequence} " * 20))
        made.append((sequence, Outgoing(event.id, LLM_FEEDBACK, encode(event))))
    return made


def written(folder: Path, *, closed: bool) -> dict[str, Record]:
    """An outbox of three segments, closed in order or killed in the middle of a group; its records by event id."""
    outbox = Outbox(folder / "source", segment_bytes=2_500)
    kept: dict[str, Record] = {}
    for group in range(GROUPS):
        each = records(group * PER_GROUP + 1, PER_GROUP)
        outbox.put(each, each[-1][0])
        kept |= {outgoing.event_id: outgoing.record for _, outgoing in each}
    if closed:
        outbox.close(GROUPS * PER_GROUP)
    else:
        outbox.writer.write_group(records(GROUPS * PER_GROUP + 1, UNFINISHED))
    # A copy is locked by nobody: it is what the next process finds.
    shutil.copytree(folder / "source", folder / "pristine")
    outbox.close()
    return kept


def after(log: EmbeddedLog, ends: dict[int, int]) -> list[tuple[str, Record]]:
    found = []
    for partition in log.end_offsets(LLM_FEEDBACK):
        for each in log.read(LLM_FEEDBACK, partition, ends.get(partition, 0)):
            headers = dict(each.headers)
            found.append((headers["ce_id"].decode(), Record(each.key, each.value, each.headers)))
    return found


def forwarded(folder: Path, log: EmbeddedLog) -> tuple[list[tuple[str, Record]], Outbox]:
    ends = log.end_offsets(LLM_FEEDBACK)
    outbox = Outbox(folder)
    outbox.inspect()
    while segments_in(folder):
        outbox.forward(log)
    return after(log, ends), outbox


def flip(path: Path, chance: random.Random) -> int:
    data = bytearray(path.read_bytes())
    at = chance.randrange(len(data))
    data[at] ^= 1 << chance.randrange(8)
    path.write_bytes(data)
    return at


def truncate(path: Path, chance: random.Random) -> int:
    size = chance.randrange(path.stat().st_size)
    with path.open("r+b") as file:
        file.truncate(size)
    return size


def flip_state(path: Path, chance: random.Random) -> int:
    """As `flip`, and not where the file is empty."""
    data = bytearray(path.read_bytes())
    at = chance.choice([at for at, byte in enumerate(data) if byte])
    data[at] ^= 1 << chance.randrange(8)
    path.write_bytes(data)
    return at


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "killed"])
@pytest.mark.parametrize("harm", [flip, truncate])
def test_harm_to_a_segment_is_detected_and_costs_only_what_it_hit(
    harm: Callable[[Path, random.Random], int],
    closed: bool,
    tmp_path: Path,
    scale: Callable[[int, int], int],
):
    chance = random.Random(f"{harm.__name__} {closed}")
    kept = written(tmp_path, closed=closed)
    log = EmbeddedLog(tmp_path / "log.db", partitions=1)
    log.ensure_topics([LLM_FEEDBACK])
    counts: Counter[str] = Counter()
    for _ in range(scale(75, 2_500)):
        folder = tmp_path / "harmed"
        shutil.copytree(tmp_path / "pristine", folder)
        segment = chance.choice(next(iter(segments_in(folder).values())))
        with segment.path.open("rb") as file:
            mark = read_head(file.fileno(), segment)[1]
        assert mark is not None
        at = harm(segment.path, chance)
        found, outbox = forwarded(folder, log)
        status = outbox.status()
        ids = [event_id for event_id, _ in found]
        # Nothing is altered, doubled or out of order; what was acknowledged and is missing was reported as damage.
        assert all(kept.get(event_id, record) == record for event_id, record in found)
        assert ids == sorted(set(ids), key=lambda name: int(name[1:]))
        missing = kept.keys() - set(ids)
        whole = not closed and harm is truncate and at >= mark.synced
        if missing or at < mark.synced:
            assert status.damaged >= 1
            assert (folder / "damaged" / segment.path.name).exists()
        elif not whole:
            assert status.torn == 1
        if harm is flip:
            assert len(missing) <= 1
        assert status.waiting == 0
        assert segments_in(folder) == {}
        counts["in the middle" if status.damaged else "torn tail" if status.torn else "nothing acknowledged cut"] += 1
        counts["records recovered"] += len(ids)
        counts["records lost"] += len(missing)
        shutil.rmtree(folder)
    print(f"\n{harm.__name__}, {'closed' if closed else 'killed'}: {dict(counts)}")
    assert counts["in the middle"] > 0
    assert closed or counts["torn tail"] > 0
    log.close()


@pytest.mark.parametrize("harm", [flip_state, truncate])
def test_harm_to_the_positions_loses_nothing_and_doubles_nothing_silently(
    harm: Callable[[Path, random.Random], int], tmp_path: Path, scale: Callable[[int, int], int]
):
    chance = random.Random(f"positions {harm.__name__}")
    kept = written(tmp_path, closed=True)
    log = EmbeddedLog(tmp_path / "log.db", partitions=1)
    log.ensure_topics([LLM_FEEDBACK])
    doubled = 0
    for _ in range(scale(50, 1_000)):
        folder = tmp_path / "harmed"
        shutil.copytree(tmp_path / "pristine", folder)
        last = next(iter(segments_in(folder).values()))[-1]
        hidden = last.path.rename(folder / "hidden")
        begin = log.end_offsets(LLM_FEEDBACK)
        first = Outbox(folder)
        assert first.forward(log) > 0
        hidden.rename(last.path)
        harm(folder / "positions", chance)
        _, outbox = forwarded(folder, log)
        ids = [event_id for event_id, _ in after(log, begin)]
        assert set(ids) == kept.keys()
        doubled += len(ids) != len(kept)
        assert len(ids) == len(kept) or outbox.status().damaged >= 1
        shutil.rmtree(folder)
    print(f"\n{harm.__name__} of the positions: sent again and reported {doubled} times")
    log.close()
