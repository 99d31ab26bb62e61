"""The verbs say in one line what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from infra.cli import build_app
from infra.errors import InputError, NotFound
from training.recipes import RECIPES, recipe_named


def invoke(*arguments: str, monkeypatch: pytest.MonkeyPatch, home: Path):
    monkeypatch.setenv("QUILL_HOME", str(home))
    return CliRunner().invoke(build_app(), list(arguments))


def test_training_without_a_dataset_names_the_way_to_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    result = invoke("train", "tiny", monkeypatch=monkeypatch, home=tmp_path)
    assert isinstance(result.exception, NotFound)
    assert "quill dataset build" in str(result.exception)


def test_a_dataset_of_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    result = invoke("dataset", "build", monkeypatch=monkeypatch, home=tmp_path)
    assert isinstance(result.exception, InputError)
    assert "too few usable passages" in str(result.exception)


def test_unknown_recipes_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    result = invoke("train", "huge", monkeypatch=monkeypatch, home=tmp_path)
    assert isinstance(result.exception, NotFound)
    assert all(name in str(result.exception) for name in RECIPES)


def test_the_setting_replaces_the_base_of_the_default_recipe_only():
    assert recipe_named("default", "other").base == "other"
    assert recipe_named("tiny", "other").base == RECIPES["tiny"].base
    assert isinstance(build_app(), typer.Typer)
