"""`quill intake`: what waits is passed on once, and counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.cli import main
from streams.codec import decode, encode
from streams.embedded import EmbeddedLog
from streams.events import LLM_FEEDBACK, LLM_INTAKE, Event, FeedbackGiven
from streams.log import Record


def test_what_waits_is_passed_on_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUILL_HOME", str(tmp_path / "home"))

    def quill(*arguments: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(["intake", *arguments])
        assert end.value.code in (0, None)
        return capsys.readouterr().out

    log = EmbeddedLog(tmp_path / "home" / "log.db")
    said = FeedbackGiven(interaction_id="i1", comment="write to ann@example.org")
    log.append(LLM_INTAKE, [encode(Event(data=said)), Record(key="k", value=b"no event")])
    assert json.loads(quill("status", "--json")) == {"waiting": 2, "dead_letters": 0}
    assert "passed on 2 records" in quill("run", "--once")
    assert json.loads(quill("status", "--json")) == {"waiting": 0, "dead_letters": 1}
    assert "passed on 0 records" in quill("run", "--once")
    [record] = [one for place in log.end_offsets(LLM_FEEDBACK) for one in log.read(LLM_FEEDBACK, place, 0)]
    assert decode(record).data.comment == "write to [EMAIL]"
    log.close()
