"""Prompt templates: variables are known, values stay text, the sandbox holds, errors name what to mend."""

from __future__ import annotations

import pytest

from infra.errors import InputError
from infra.llm.chat import Message
from store.prompts import PromptVersion
from store.templates import find_variables, word_diff


def user(text: str) -> Message:
    return Message(role="user", content=text)


def version(*texts: str) -> PromptVersion:
    messages = tuple(user(text) for text in texts)
    return PromptVersion(name="post", number=1, messages=messages, variables=find_variables(messages))


def test_variables_are_found_across_messages_and_sorted() -> None:
    prompt = version("Hello {{ name }}", "{% for passage in passages %}{{ passage.text }}{% endfor %}")
    assert prompt.variables == ("name", "passages")


def test_render_fills_in_and_keeps_roles_and_newlines() -> None:
    prompt = PromptVersion(
        name="post",
        number=2,
        messages=(Message(role="system", content="Write.\n"), user("About {{ topic }}\n")),
        variables=("topic",),
    )
    assert prompt.render(topic="drift") == [Message(role="system", content="Write.\n"), user("About drift\n")]


def test_missing_and_unknown_variables_are_both_named() -> None:
    with pytest.raises(InputError) as caught:
        version("{{ topic }} {{ tone }}").render(topic="x", colour="red")
    assert "missing: tone" in str(caught.value)
    assert "unknown: colour" in str(caught.value)
    assert "post@1" in str(caught.value)


def test_template_syntax_in_a_value_is_text() -> None:
    assert version("{{ question }}").render(question="{{ 7 * 7 }}") == [user("{{ 7 * 7 }}")]


def test_an_attribute_that_is_not_there_is_an_error_not_an_empty_string() -> None:
    with pytest.raises(InputError, match="heading"):
        version("{{ chunk.heading }}").render(chunk={"text": "x"})


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ items.append(1) }}",
        "{{ items.sort() }}",
        "{% for i in range(10000000) %}{% endfor %}{{ items }}",
    ],
)
def test_templates_cannot_reach_python_or_change_values(text: str) -> None:
    prompt = version(text)
    items = [3, 1]
    with pytest.raises(InputError, match="cannot be rendered"):
        prompt.render(**dict.fromkeys(prompt.variables, items))
    assert items == [3, 1]


def test_a_template_that_fails_on_its_values_names_the_prompt() -> None:
    with pytest.raises(InputError, match="post@1 cannot be rendered"):
        version("{{ count / 0 }}").render(count=1)


@pytest.mark.parametrize("text", ["{{ open", "{% if x %}", "{{ x | no_such_filter }}"])
def test_a_broken_template_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(InputError, match="message 2"):
        find_variables([user("fine"), user(text)])


@pytest.mark.parametrize("text", ["{% include 'other' %}", "{% extends name %}", "{% import 'x' as y %}"])
def test_a_prompt_stands_alone(text: str) -> None:
    with pytest.raises(InputError, match="another template"):
        find_variables([user(text)])


def test_diff_marks_words_not_lines() -> None:
    diff = word_diff([user("Write a short post about RAG.")], [user("Write a friendly post about RAG today.")])
    assert diff == "message 1 (user)\nWrite a [-short-]{+friendly+} post about [-RAG.-]{+RAG today.+}\n"


def test_diff_shows_roles_new_messages_and_nothing_for_equal_ones() -> None:
    old = [user("same"), user("ask")]
    new = [user("same"), Message(role="system", content="ask"), user("more words")]
    diff = word_diff(old, new)
    assert "message 1" not in diff
    assert "message 2 ([-user-]{+system+})\nask" in diff
    assert "message 3 ({+user+})\n{+more words+}" in diff
    assert word_diff(old, old) == ""
