"""What other programs rely on: the verbs, their options, and the names of the public package."""

from __future__ import annotations

import typer.main

import quillstream
from infra.cli import build_app

VERBS = {
    "alerts list",
    "alerts resolve",
    "alerts show",
    "dataset build",
    "dataset list",
    "dataset show",
    "demo",
    "dlq list",
    "dlq replay",
    "dlq show",
    "doctor",
    "evaluate retrieval",
    "evaluate show",
    "ingest",
    "intake run",
    "intake status",
    "judge",
    "mask",
    "monitor run",
    "monitor status",
    "prompts approve",
    "prompts diff",
    "prompts label",
    "prompts list",
    "prompts push",
    "prompts rollback",
    "prompts show",
    "release list",
    "release promote",
    "release rollback",
    "release show",
    "replay list",
    "replay run",
    "replay show",
    "search",
    "train",
    "up",
    "write",
}
PUBLIC = """
    AlertChanged Answer AnswerRequest Answerer ChatModel Citation Completion Conflict CorruptArtifact Decoding
    DocumentDeleted DocumentUpserted Emitter EvaluationRecorded Event EventLog FeedbackGiven InputError
    InteractionRecorded Judge JudgeInput Judgement Masked Masker Message NotFound QuillError Receipt Record
    ReleaseChanged ReleaseRef RetrievedChunk Retriever SearchResult Settings SettingsError StoredRecord ToolCall
    TraceSpan Unavailable Unscored Usage Verdict __version__ emit feedback load_settings open_emitter open_log prompts
    wrap
"""
OPTIONS = {
    "up": {"--port", "--features/--no-features", "--monitor/--no-monitor", "--intake/--no-intake"},
    "ingest": {"--no-wait", "--watch", "--every", "--json"},
    "search": {"--limit", "--json"},
    "write": {"--stream", "--channel", "--json"},
    "doctor": {"--fetch", "--json"},
    "replay run": {"--from", "--to", "--judge", "--prompt", "--adapter", "--name", "--json"},
}


def commands() -> dict:
    found: dict = {}

    def walk(command, path: tuple[str, ...]) -> None:
        children = getattr(command, "commands", None)
        if children is None:
            found[" ".join(path)] = command
            return
        for name, child in children.items():
            walk(child, (*path, name))

    walk(typer.main.get_command(build_app()), ())
    return found


def options(command) -> set[str]:
    given = [option for option in command.params if option.param_type_name == "option" and option.name != "help"]
    return {"/".join([*option.opts, *option.secondary_opts]) for option in given}


def test_the_verbs_are_these():
    assert set(commands()) == VERBS


def test_verbs_take_these_options():
    found = commands()
    assert {name: options(found[name]) for name in OPTIONS} == OPTIONS


def test_every_verb_says_what_it_does():
    found = commands()
    assert len(found) == len(VERBS)
    assert [name for name, command in found.items() if not (command.help or "").strip()] == []


def test_every_listing_takes_json():
    listings = {name: command for name, command in commands().items() if name.endswith((" list", " show", " status"))}
    assert len(listings) >= 8
    assert [name for name, command in listings.items() if "--json" not in options(command)] == []


def test_the_public_names_are_these_and_exist():
    assert quillstream.__all__ == sorted(PUBLIC.split())
    assert [name for name in quillstream.__all__ if getattr(quillstream, name, None) is None] == []


def test_the_version_is_the_distributions():
    assert quillstream.__version__ == "0.1.0"
