"""Which models the llama.cpp process keeps, with a stand-in for the models and a clock in the test's hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.llm import llamacpp


class FakeModel:
    """Counts loads; `busy` says whether a sweep finds a running request."""

    loads: list[str]
    now: list[float]

    def __init__(self, model: str, adapter: str | None, token: str) -> None:
        self.model, self.adapter = model, adapter
        self.used = self.now[0]
        self.seconds_to_load = 0.0
        self.base_url = f"http://{Path(model).name}"
        self.busy = self.closed = False
        self.loads.append(Path(model).name)

    def note_use(self, now: float) -> None:
        if self.busy:
            self.used = now

    def close(self) -> None:
        self.closed = True

    is_orphan = llamacpp.LoadedModel.is_orphan


@pytest.fixture
def now(monkeypatch, tmp_path) -> list[float]:
    clock = [1000.0]
    monkeypatch.setattr(llamacpp.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(llamacpp, "LoadedModel", FakeModel)
    monkeypatch.setattr(FakeModel, "loads", [], raising=False)
    monkeypatch.setattr(FakeModel, "now", clock, raising=False)
    return clock


@pytest.fixture
def pool(now, tmp_path) -> llamacpp.Pool:
    for name in ("a", "b", "c", "d", "adapter"):
        (tmp_path / name).write_bytes(b"weights")
    (tmp_path / "log").write_text("0.00.1 E load: the file is broken\n")
    return llamacpp.Pool("token", tmp_path / "log")


def loaded(pool: llamacpp.Pool) -> list[str]:
    return [Path(model["model"]).name for model in pool.status()["models"]]


def test_a_model_loads_once_until_its_file_changes(pool, tmp_path):
    file = tmp_path / "a"
    assert pool.ensure(str(file), None) == pool.ensure(str(file), None) == "http://a"
    assert FakeModel.loads == ["a"]
    file.write_bytes(b"other weights")
    pool.ensure(str(file), None)
    assert FakeModel.loads == ["a", "a"]


def test_the_least_recently_used_makes_room_unless_it_is_in_use(pool, now, tmp_path):
    for name in ("a", "b", "c"):
        pool.ensure(str(tmp_path / name), None)
        now[0] += 20
    pool.ensure(str(tmp_path / "a"), None)
    pool.ensure(str(tmp_path / "d"), None)
    assert sorted(loaded(pool)) == ["a", "c", "d"]
    pool.ensure(str(tmp_path / "c"), None)
    pool.ensure(str(tmp_path / "b"), None)
    assert sorted(loaded(pool)) == ["a", "b", "c", "d"]


def test_idle_models_are_unloaded_and_an_idle_pool_closes(pool, now, tmp_path):
    pool.ensure(str(tmp_path / "a"), None)
    pool.ensure(str(tmp_path / "b"), None)
    (busy,) = [model for model in pool._loaded.values() if model.model.endswith("b")]
    busy.busy = True
    now[0] += 700
    pool.sweep(600, 900)
    assert loaded(pool) == ["b"]
    assert not pool.closed
    busy.busy = False
    now[0] += 901
    pool.sweep(600, 900)
    assert loaded(pool) == []
    assert pool.closed
    with pytest.raises(ConnectionAbortedError):
        pool.ensure(str(tmp_path / "a"), None)


def test_an_adapter_whose_file_is_gone_is_unloaded_soon(pool, now, tmp_path):
    adapter = tmp_path / "adapter"
    pool.ensure(str(tmp_path / "a"), str(adapter))
    adapter.unlink()
    pool.sweep(600, 900)
    assert loaded(pool) == ["a"]
    now[0] += 11
    pool.sweep(600, 900)
    assert loaded(pool) == []


def test_a_refused_file_gives_the_reason_that_was_logged_meanwhile(pool, tmp_path, monkeypatch):
    log = tmp_path / "log"

    class Refusing(FakeModel):
        def __init__(self, *args: object) -> None:
            with log.open("a") as out:
                out.write("0.00.2 I load: reading\n0.00.3 E load: tensor is cut\n")
            raise RuntimeError("refused")

    monkeypatch.setattr(llamacpp, "LoadedModel", Refusing)
    with pytest.raises(llamacpp.CannotLoad, match=r"^load: tensor is cut$"):
        pool.ensure(str(tmp_path / "a"), None)
    assert loaded(pool) == []
