"""What sensors read: only what is new since the cursor, the same records giving the same run key."""

from pathlib import Path

import pytest

from dagster_project.tail import new_records
from streams.codec import encode
from streams.embedded import EmbeddedLog
from streams.events import CONTENT_DOCUMENTS, DocumentDeleted, Event
from streams.log import Record


@pytest.fixture
def log(tmp_path: Path):
    log = EmbeddedLog(tmp_path / "log.db")
    log.ensure_topics([CONTENT_DOCUMENTS])
    yield log
    log.close()


def publish(log: EmbeddedLog, *names: str) -> None:
    events = [Event(data=DocumentDeleted(document_id=name, source=name)) for name in names]
    log.append(CONTENT_DOCUMENTS, [encode(event) for event in events])


def ids(event: Event) -> str:
    return event.data.document_id


def test_a_repeated_tick_finds_the_same_records_under_the_same_run_key(log: EmbeddedLog):
    publish(log, "one", "two")
    first, again = (new_records(log, CONTENT_DOCUMENTS, "", ids) for _ in range(2))
    assert sorted(first.found) == ["one", "two"]
    assert again == first


def test_a_cursor_hides_what_was_read_before(log: EmbeddedLog):
    publish(log, "one", "two")
    first = new_records(log, CONTENT_DOCUMENTS, "", ids)
    quiet = new_records(log, CONTENT_DOCUMENTS, first.cursor, ids)
    publish(log, "three")
    later = new_records(log, CONTENT_DOCUMENTS, quiet.cursor, ids)
    assert quiet.found == ()
    assert later.found == ("three",)
    assert later.run_key != first.run_key


def test_records_that_do_not_decode_are_passed_over(log: EmbeddedLog):
    log.append(CONTENT_DOCUMENTS, [Record(key="x", value=b"not json")])
    publish(log, "one")
    assert new_records(log, CONTENT_DOCUMENTS, "", ids).found == ("one",)


def test_more_records_than_one_read_gives_are_all_found(log: EmbeddedLog):
    names = [f"document-{number}" for number in range(1500)]
    publish(log, *names)
    log.append(CONTENT_DOCUMENTS, [])
    assert sorted(new_records(log, CONTENT_DOCUMENTS, "", ids).found) == sorted(names)


def test_nothing_selected_is_nothing_found(log: EmbeddedLog):
    publish(log, "one")
    assert new_records(log, CONTENT_DOCUMENTS, "", lambda _: "").found == ()
