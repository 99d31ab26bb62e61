"""The store's verbs as a person and as another program would call them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from infra.artifacts import Artifacts
from infra.errors import InputError, NotFound, QuillError
from infra.identity import content_id, short
from infra.settings import Settings
from store.commands import register
from store.opening import open_store
from store.releases import Release

PROMPT = """
name: post
note: first
messages:
  - role: system
    content: You write posts.
  - role: user
    content: "About {{ topic }} [bold]not markup[/bold]"
"""


class Quill:
    """The command line on one home."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.app = typer.Typer()
        register(self.app)

    def run(self, *arguments: str) -> str:
        """Standard output; a `QuillError` is raised."""
        result: Result = CliRunner().invoke(self.app, list(arguments))
        if isinstance(result.exception, QuillError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json"))


@pytest.fixture
def quill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Quill:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUILL_HOME", str(tmp_path / "home"))
    return Quill(tmp_path / "home")


def write_prompt(folder: Path, text: str = PROMPT) -> str:
    (folder / "post.yaml").write_text(text)
    return str(folder / "post.yaml")


def test_a_prompt_is_pushed_shown_labelled_compared_and_rolled_back(quill: Quill, tmp_path: Path) -> None:
    assert quill.run("prompts", "push", write_prompt(tmp_path), "--by", "ada").strip() == "post@1"
    changed = PROMPT.replace("About", "Briefly about")
    assert quill.run("prompts", "push", write_prompt(tmp_path, changed)).strip() == "post@2"
    quill.run("prompts", "label", "post@1", "production")
    quill.run("prompts", "label", "post@2", "production")
    quill.run("prompts", "approve", "post@2", "--by", "bob")
    shown = quill.json("prompts", "show", "post")
    assert (shown["number"], shown["labels"], shown["variables"]) == (2, ["production"], ["topic"])
    assert shown["approval"]["by"] == "bob"
    assert "[-About-]{+Briefly about+} {{ topic }}" in quill.run("prompts", "diff", "post", "1", "production")
    assert "post@1" in quill.run("prompts", "rollback", "post")
    (listed,) = quill.json("prompts", "list")
    assert (listed["name"], listed["versions"], listed["labels"]) == ("post", 2, {"production": 1})


def test_tables_show_template_text_as_it_is(quill: Quill, tmp_path: Path) -> None:
    quill.run("prompts", "push", write_prompt(tmp_path))
    shown = quill.run("prompts", "show", "post@1")
    assert "About {{ topic }} [bold]not markup[/bold]" in shown
    assert "variables: topic" in shown
    assert "post" in quill.run("prompts", "list")
    assert quill.run("prompts", "diff", "post", "1", "1") == "no difference\n"


def test_empty_listings_are_lists_for_programs_and_words_for_people(quill: Quill) -> None:
    for room in ("prompts", "release", "dataset"):
        assert quill.json(room, "list") == []
        assert "nothing yet" in quill.run(room, "list")


def test_what_does_not_exist_is_not_found(quill: Quill, tmp_path: Path) -> None:
    for arguments in (
        ("prompts", "show", "nobody"),
        ("prompts", "diff", "nobody", "1", "2"),
        ("prompts", "rollback", "nobody"),
        ("release", "show", "abcdef"),
        ("dataset", "show", "abcdef"),
    ):
        with pytest.raises(NotFound, match="fix:"):
            quill.run(*arguments)
    with pytest.raises(InputError, match="cannot be read"):
        quill.run("prompts", "push", str(tmp_path / "none.yaml"))


def test_releases_are_promoted_and_rolled_back(quill: Quill) -> None:
    store = open_store(Settings(home=quill.home))
    one = store.releases.put(Release(prompt="post@1", model="small"))
    two = store.releases.put(Release(prompt="post@2", model="small"))
    store.close()
    quill.run("release", "promote", short(one.id), "--reason", "first")
    assert short(two.id) in quill.run("release", "promote", short(two.id), "--reason", "better", "--by", "ada")
    assert quill.json("release", "list")[1] == {
        "id": two.id,
        "channels": ["production"],
        **two.model_dump(mode="json"),
    }
    assert short(one.id) in quill.run("release", "rollback", "--reason", "worse")
    shown = quill.json("release", "show", short(one.id))
    assert shown["channels"] == ["production"]
    assert [entry["action"] for entry in shown["history"]] == ["rolled_back", "promoted", "promoted"]
    assert "post@1" in quill.run("release", "show", one.id)
    assert short(one.id) in quill.run("release", "list")


def test_a_release_is_not_promoted_without_a_reason(quill: Quill) -> None:
    result = CliRunner().invoke(quill.app, ["release", "promote", "abcdef"])
    assert result.exit_code == 2
    assert "--reason" in result.stderr


def test_datasets_are_listed_and_shown_by_prefix(quill: Quill) -> None:
    artifacts = Artifacts(quill.home / "artifacts")

    def fill(directory: Path) -> dict[str, Any]:
        (directory / "train.jsonl").write_text("{}\n")
        return {"rows": 1, "heldout": 0}

    made = artifacts.build("dataset", content_id("dataset", 1), {"seed": 7}, fill)
    (listed,) = quill.json("dataset", "list")
    assert (listed["id"], listed["rows"]) == (made.id, 1)
    shown = quill.json("dataset", "show", short(made.id, 8))
    assert shown["path"] == str(artifacts.path("dataset", made.id))
    assert list(shown["files"]) == ["train.jsonl"]
    assert "rows 1" in quill.run("dataset", "list")
    assert "train.jsonl" in quill.run("dataset", "show", made.id)
