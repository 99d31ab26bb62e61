"""What doctor shows of settings and of errors."""

from __future__ import annotations

from infra.errors import Unavailable
from infra.settings import load_settings, setting_names
from serving import doctor
from serving.weights import wanted
from streams.outbox_positions import Gap, Positions, State


def settings_with(tmp_path, **environment):
    return load_settings(file=tmp_path / "none.toml", environment={"QUILL_HOME": str(tmp_path / "home")} | environment)


def test_every_setting_is_listed_with_its_origin_and_secrets_are_masked(tmp_path):
    settings = settings_with(tmp_path, OPENAI_API_KEY="sk-secret", QUILL_SERVER_PORT="8500")
    rows = {row["setting"]: row for row in doctor.listed(settings)}
    assert list(rows) == setting_names()
    assert rows["llm.api_key"] == {"setting": "llm.api_key", "value": "********", "origin": "OPENAI_API_KEY"}
    assert rows["judge.api_key"]["value"] == ""
    assert rows["server.port"] == {"setting": "server.port", "value": "8500", "origin": "QUILL_SERVER_PORT"}
    assert "sk-secret" not in str(rows)


def test_a_failed_check_tells_what_and_how_to_mend_it():
    def look() -> str:
        raise Unavailable("the broker does not answer", seen="127.0.0.1:1", fix="start it")

    check = doctor._check("log", look)
    assert (check.state, check.fix) == ("failed", "start it")
    assert check.detail == "the broker does not answer; seen: 127.0.0.1:1"


def test_a_home_that_cannot_be_written_ends_the_examination(tmp_path):
    (tmp_path / "home").write_text("a file in the way")
    checks = doctor.examine(settings_with(tmp_path))
    assert [(check.name, check.state) for check in checks] == [("home", "failed")]
    assert "QUILL_HOME" in checks[0].fix


def test_weights_are_wanted_only_for_what_this_machine_does_itself(tmp_path):
    own = wanted(settings_with(tmp_path))
    assert sorted(own) == ["embedder", "judge", "writer"]
    remote = {"QUILL_LLM_ENDPOINT": "http://x/v1", "QUILL_JUDGE_SAMPLE": "0"}
    assert sorted(wanted(settings_with(tmp_path, **remote))) == ["embedder"]


def test_missing_weights_are_missing_not_failed(tmp_path):
    settings = settings_with(tmp_path, QUILL_MODELS_CACHE=str(tmp_path / "cache"))
    check = doctor._weights(settings, "embedder", "all-minilm-l6-v2")
    assert (check.state, check.fix) == ("missing", "quill doctor --fetch")
    assert doctor._weights(settings, "writer", "qwen-99b").state == "failed"


def test_the_outbox_tells_what_waits_and_what_killed_processes_lost(tmp_path):
    folder = tmp_path / "outbox"
    assert doctor._outbox(folder) == []
    killed = "01a20d9e3ba87ee399b759c581eaf1c0"
    state = State(killed=2, lost=7, gaps=(Gap(writer=killed, after=9, lost=7), Gap(writer=killed, after=3, lost=None)))
    Positions(folder / "positions").save(state)
    (check,) = doctor._outbox(folder)
    assert (check.state, check.fix, check.required) == ("ok", "", False)
    assert check.detail == (
        "0 events wait for the log; 2 emitting processes were killed, which lost 7 events; events 10 to 16;"
        " an unknown number of events after 3"
    )
    (folder / "rejected.jsonl").write_text('{"event_id": "a", "reason": "too long"}\n')
    Positions(folder / "positions").save(State(damaged=1))
    (check,) = doctor._outbox(folder)
    assert check.state == "failed"
    assert "the log refused 1 events; 1 places could not be read" in check.detail
    assert "rejected.jsonl" in check.fix
    assert "damaged" in check.fix
