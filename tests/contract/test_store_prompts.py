"""Prompt versions, labels, approval and rollback: the same behaviour on SQLite and PostgreSQL."""

from __future__ import annotations

import pytest

from infra.errors import Conflict, InputError, NotFound
from infra.llm.chat import Message
from store.opening import Store


def words(text: str) -> list[Message]:
    return [Message(role="system", content="You write."), Message(role="user", content=text)]


def push_three(store: Store) -> None:
    for text in ("one {{ topic }}", "two {{ topic }}", "three {{ topic }} {{ tone }}"):
        store.prompts.push("post", words(text), f"note {text[:3]}")


def test_versions_are_numbered_and_know_their_variables(store: Store) -> None:
    push_three(store)
    versions = store.prompts.versions("post")
    assert [version.ref for version in versions] == ["post@1", "post@2", "post@3"]
    assert versions[2].variables == ("tone", "topic")
    assert versions[0].note == "note one"
    assert versions[2].render(topic="RAG", tone="dry")[1].content == "three RAG dry"


def test_equal_messages_give_the_version_that_has_them(store: Store) -> None:
    push_three(store)
    again = store.prompts.push("post", words("two {{ topic }}"), "another note")
    assert (again.number, again.note) == (2, "note two")
    assert store.prompts.push("other", words("two {{ topic }}")).ref == "other@1"
    assert len(store.prompts.versions("post")) == 3


def test_a_ref_is_a_number_a_label_or_the_name(store: Store) -> None:
    push_three(store)
    store.prompts.label("post", "canary", 2)
    assert store.prompts.get("post@1").number == 1
    assert store.prompts.get("post@canary").number == 2
    assert store.prompts.get("post").number == 3  # no production label: the newest
    store.prompts.label("post", "production", 1)
    assert store.prompts.get("post").number == 1
    assert store.prompts.labels("post") == {"canary": 2, "production": 1}


@pytest.mark.parametrize(
    "ref", ["nobody", "post@9", "post@0", "post@none", "post@99999999999999999999", "@1", "", "po\x00st", "post@²"]
)
def test_an_unknown_ref_is_not_found_and_says_how_to_look(store: Store, ref: str) -> None:
    push_three(store)
    with pytest.raises(NotFound, match="quill prompts list"):
        store.prompts.get(ref)


def test_versions_of_an_unknown_prompt_are_not_found(store: Store) -> None:
    with pytest.raises(NotFound, match="nobody"):
        store.prompts.versions("nobody")
    assert store.prompts.labels("nobody") == {}


@pytest.mark.parametrize("name", ["", "a@b", "-x", "a b", "é", "a\n"])
def test_bad_names_and_labels_are_refused(store: Store, name: str) -> None:
    with pytest.raises(InputError, match="must match"):
        store.prompts.push(name, words("x"))
    store.prompts.push("post", words("x"))
    with pytest.raises(InputError, match="must match"):
        store.prompts.label("post", name or "7", 1)


def test_a_prompt_without_messages_or_with_a_broken_template_leaves_nothing(store: Store) -> None:
    for messages in ([], words("{{ open"), words("\ud800")):
        with pytest.raises(InputError):
            store.prompts.push("post", messages)
    assert store.prompts.list() == []
    assert store.audit.list() == []


def test_rollback_walks_back_and_a_new_label_starts_from_there(store: Store) -> None:
    push_three(store)
    for number in (1, 2, 3):
        store.prompts.label("post", "production", number)
    store.prompts.label("post", "production", 3)  # where it points already: nothing to roll back
    assert store.prompts.rollback("post", "production").number == 2
    assert store.prompts.rollback("post", "production").number == 1
    with pytest.raises(Conflict, match="post@1"):
        store.prompts.rollback("post", "production")
    store.prompts.label("post", "production", 3)
    assert store.prompts.rollback("post", "production").number == 1
    assert store.prompts.get("post").number == 1


def test_rollback_of_what_is_not_there_is_not_found(store: Store) -> None:
    push_three(store)
    with pytest.raises(NotFound, match="canary"):
        store.prompts.rollback("post", "canary")
    with pytest.raises(NotFound, match="post@7"):
        store.prompts.label("post", "canary", 7)
    assert store.prompts.labels("post") == {}


def test_approval_records_who_first_approved(store: Store) -> None:
    push_three(store)
    approval = store.prompts.approve("post", 2, "ada")
    assert store.prompts.approve("post", 2, "bob") == approval
    assert store.prompts.approvals("post") == {2: approval}
    assert (approval.by, store.prompts.list()[0].approved) == ("ada", (2,))
    with pytest.raises(NotFound):
        store.prompts.approve("post", 9, "ada")


def test_diff_takes_numbers_and_labels(store: Store) -> None:
    push_three(store)
    store.prompts.label("post", "production", 2)
    assert store.prompts.diff("post", 1, "production") == "message 2 (user)\n[-one-]{+two+} {{ topic }}\n"
    assert store.prompts.diff("post", 2, 2) == ""


def test_the_listing_sums_up_each_prompt(store: Store) -> None:
    push_three(store)
    store.prompts.push("answer", words("x"))
    store.prompts.label("post", "production", 2)
    summaries = store.prompts.list()
    assert [(one.name, one.versions, one.labels) for one in summaries] == [
        ("answer", 1, {}),
        ("post", 3, {"production": 2}),
    ]


def test_every_change_stands_in_the_audit_log_with_its_actor(store: Store) -> None:
    store.prompts.push("post", words("a"), actor="ada")
    store.prompts.push("post", words("b"), actor="ada")
    store.prompts.push("post", words("b"), actor="eve")  # equal content: no change, no entry
    store.prompts.label("post", "production", 1, actor="bob")
    store.prompts.label("post", "production", 2, actor="bob")
    store.prompts.rollback("post", "production", actor="cy")
    store.prompts.approve("post", 1, "dee")
    entries = [(entry.actor, entry.action, entry.subject) for entry in store.audit.list()]
    assert entries == [
        ("dee", "prompt.approved", "post@1"),
        ("cy", "prompt.rolled_back", "post@production"),
        ("bob", "prompt.labelled", "post@production"),
        ("bob", "prompt.labelled", "post@production"),
        ("ada", "prompt.pushed", "post@2"),
        ("ada", "prompt.pushed", "post@1"),
    ]
    assert [entry.action for entry in store.audit.list("post@1", limit=1)] == ["prompt.approved"]
