"""Instructions derived from titles, headings and tags, in words a person would use.

A heading becomes a topic of a kind (question, clause, noun, …), and every kind has its own templates, so that the
sentence around the topic stays grammatical. Everything is decided by the text and a key: no randomness.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from infra.identity import Value

Kind = Literal["question", "clause", "noun", "activity", "title", "subject", "package"]

_CLAUSE = (
    "Explain {topic}.",
    "Could you explain {topic}?",
    "Write a short post for engineers that explains {topic}.",
    "I would like to understand {topic}. Please keep it short.",
    "Could you please draft a LinkedIn post that explains {topic}?",
    "In a few sentences, describe {topic}.",
    "Write a paragraph for a technical newsletter on {topic}.",
)
_ACTIVITY = (
    "What should I know about {topic}?",
    "Write a short post for engineers about {topic}.",
    "Could you draft a LinkedIn post about {topic}?",
    "Give an engineer some guidance on {topic}.",
    "Write a paragraph for a technical newsletter about {topic}.",
)
_NOUN = (
    "Explain {topic}.",
    "What should I know about {topic}?",
    "Write a short post for engineers about {topic}.",
    "Could you please draft a LinkedIn post discussing {topic}?",
    "Give a short introduction to {topic}.",
    "In a paragraph or two, could you summarise {topic}?",
    "Write a paragraph for a technical newsletter about {topic}.",
)
TEMPLATES: Mapping[Kind, Sequence[str]] = {
    "question": ("{topic}", "{topic} Please answer in a few sentences.", "I keep asking myself: {topic}"),
    "clause": _CLAUSE,
    "noun": _NOUN,
    "activity": _ACTIVITY,
    "title": (
        "Write a short post for engineers with the title “{topic}”.",
        "Could you draft a paragraph for a technical newsletter under the heading “{topic}”?",
        "Write the passage of an article that belongs under “{topic}”.",
    ),
    "subject": (*_NOUN, "What is {topic}?", "What is {topic} about?", "How does {topic} work?"),
    "package": (
        "What is the Python package {topic} used for?",
        "Introduce the Python package {topic} to engineers in a short post.",
        "Explain what the Python package {topic} does.",
        "Could you please draft a LinkedIn post about the Python package {topic}?",
    ),
}

_USE = re.compile(r"^(usage|quick ?start( guide)?|getting started|basic usage|how to use( it)?|first steps)$", re.I)
_WHOLE = re.compile(
    r"^(introduction|overview|about|summary|description|background|motivation|what is it|abstract|readme|why|tl;?dr)$",
    re.I,
)
_NOTHING = re.compile(
    r"^(licensing|changelog|changes|citation|citing|contact|support|links?|"
    r"references?|sources?|see also|further reading|resources|documentation|docs|community|authors?|credits|news|"
    r"release notes?|table of contents|contents|conclusions?|faq|notes?|examples?|development|"
    r"(online |live )?demo|(supported )?versions?|versioning|compatibility|.*\breleas(e|es|ing)|platforms?|badges?|"
    r"(install\w*|set ?up|build\w*|compiling)( guide| instructions| from source)?|about (the |us|me|our).*|"
    r".*\b(contribut\w+|licen[cs]es?|requirements|office hours|acknowledge?ments?)\b.*|"
    r"what'?s next\??|next steps|more|other|misc\w*|index|untitled|home|appendix|features|testing|tests|status)$",
    re.I,
)
_IMPERATIVE = re.compile(
    r"^(use|install|set up|build|create|run|add|make|start|train|deploy|configure|load|write|choose|select|test|"
    r"import|define|connect|prepare|download|insert|delete|enable|manage|monitor|measure|get|deploy|migrate|scale|integrate|explore|meet|join)\b",
    re.I,
)
_CLAUSE_START = re.compile(r"^(how|why|what|when|where|which|who|whether)\b", re.I)
_INVERTED = re.compile(
    r"^(how|why|what|when|where|which|who)(?: \w+)? (is|are|do|does|did|can|should|was|were|will|would)\b", re.I
)
_BEFORE_VERB = re.compile(r"^(how|why|when|where) (is|are|do|does|did|can|should|was|were|will|would)\b", re.I)
_SENTENCE = re.compile(r"\b(must|is|are|can|should|will|was|were|has|have|does|needs|just|got)\b|: ", re.I)
_MARKUP = re.compile(r"<[^>]*>|\[([^\]]*)\]\([^)]*\)|[`*#]+|!\[[^\]]*\]|:[a-z_]+:")
_NUMBERING = re.compile(r"^(?:(?:step|part|chapter|section)\s+\d+\s*[:.)—–-]*|\d+(?:\.\d+)*[.):]?)\s+", re.I)
_VERSION = re.compile(r"\bv?\d+\.\d+(?:\.\d+)*\w*\b")
_PICTURES = re.compile("[\U0001f000-\U0001faff\u2190-\u21ff\u2300-\u27bf\ufe0f]")
_ACTIVITY_START = re.compile(r"\w{3,}ing \w")
MAX_TOPIC_WORDS = 14
MAX_CONTEXT_WORDS = 6


class Topic(Value):
    """What a passage is about."""

    kind: Kind = Field(description="Which templates fit.")
    text: str = Field(description="The words that go into a template.")


def topic_of(title: str, heading: str, tags: Sequence[str], source: str, text: str) -> Topic | None:
    """The topic of a passage from its document's title and tags and its heading path (' > ' between levels).

    None when neither says what the passage is about. `source` tells packages from other documents, and `text` is
    consulted for how a word is capitalised.
    """
    subject = subject_of(title, tags)
    own = cleaned(heading.split(" > ")[-1])
    if heading and not own:
        return None
    is_title = bool(own) and (own.lower() == cleaned(title).lower() or own.split(":")[0].lower() == subject.lower())
    if not own or is_title or _WHOLE.match(own):
        return _whole_document(subject, source, text)
    if _NOTHING.match(own) or not _readable(own):
        return None
    context = _context(own, subject, source, text)
    if not context and not _mentions(own, subject) and len(own.split()) < 3:
        return None
    if subject and _USE.match(own):
        return Topic(kind="clause", text=f"how to use {subject}")
    return _of_heading(own, context, text)


def instructions(topic: Topic, key: str) -> list[str]:
    """Every phrasing of a topic, in an order that depends on the key alone; the first is the one to use."""
    texts = TEMPLATES[topic.kind]
    start = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % len(texts)
    order = [texts[(start + step) % len(texts)] for step in range(len(texts))]
    return [_sentence(template.format(topic=topic.text)) for template in order]


def subject_of(title: str, tags: Sequence[str]) -> str:
    """A short name of what a document is about: its title before a colon or dash, else its first tag, else ''."""
    name = cleaned(re.sub(r"\.(md|txt|html?|pdf|rst)$", "", title, flags=re.I).replace("_", " "))
    head = re.split(r":\s| [–—-] |\s\|\s", name)[0].strip()
    if _readable(head) and not _NOTHING.match(head) and not _WHOLE.match(head):
        return head
    return next((cleaned(tag) for tag in tags if _readable(cleaned(tag))), "")


def cleaned(heading: str) -> str:
    """A heading without markup, numbering, versions, pictures and closing punctuation (a question mark stays)."""
    text = _MARKUP.sub(lambda match: match.group(1) or " ", heading)
    text = _PICTURES.sub(" ", _NUMBERING.sub("", text.strip()))
    text = re.sub(r"\s+", " ", _VERSION.sub(" ", text)).strip()
    return text.strip(" .:;,-–—|/\"'")


def _readable(text: str) -> bool:
    words = text.split()
    return (
        1 <= len(words) <= MAX_TOPIC_WORDS
        and len(re.findall(r"[A-Za-z]", text)) >= max(3, len(text) // 2)
        and not re.search(r"[=$\\{}<>]|://|\w\(|_\w", text)
    )


def _whole_document(subject: str, source: str, text: str) -> Topic | None:
    if not subject:
        return None
    if source.startswith("package:"):
        return Topic(kind="package", text=subject)
    if len(subject.split()) > 5 or any(form.match(subject) for form in (_CLAUSE_START, _IMPERATIVE, _ACTIVITY_START)):
        return _of_heading(subject, "", text)
    return Topic(kind="subject", text=_lowered(subject, text))


def _of_heading(own: str, context: str, text: str) -> Topic:
    """The topic that a heading itself names; `context` is appended where the words leave it open."""
    kind: Kind = "noun"
    words = _lowered(own, text)
    if own.endswith("?") or _BEFORE_VERB.match(own) or (_INVERTED.match(own) and own.lower().startswith("what is")):
        return Topic(kind="question", text=own.rstrip("?") + f"{context}?")
    if _CLAUSE_START.match(own):
        kind, words = "clause", own[0].lower() + own[1:]
    elif _IMPERATIVE.match(own):
        kind, words = "clause", f"how to {own[0].lower()}{own[1:]}"
    elif _ACTIVITY_START.match(own):
        kind, words = "activity", own[0].lower() + own[1:]
    elif len(own.split()) > 6 or _SENTENCE.search(own):
        return Topic(kind="title", text=own)
    return Topic(kind=kind, text=words + context)


def _context(own: str, subject: str, source: str, text: str) -> str:
    """ " in …" or the like, when the heading leaves open what it speaks of."""
    unsuited = len(subject.split()) > MAX_CONTEXT_WORDS or subject.endswith("?") or _CLAUSE_START.match(subject)
    if not subject or unsuited or _mentions(own, subject):
        return ""
    name = _lowered(subject, text)
    if source.startswith("package:"):
        return f" in {name}"
    clause = _CLAUSE_START.match(own) or _IMPERATIVE.match(own)
    return f" when it comes to {name}" if clause else f" in the context of {name}"


def _mentions(own: str, subject: str) -> bool:
    """A word of the subject, or its initials, stand in the heading already."""
    parts = [word.lower() for word in re.findall(r"[A-Za-z0-9]+", subject)]
    stems = {word.lower().rstrip("s") for word in re.findall(r"[A-Za-z0-9]+", own)}
    initials = "".join(part[0] for part in parts)
    return initials in stems or any(part.rstrip("s") in stems for part in parts if len(part) > 3)


def _lowered(text: str, passage: str) -> str:
    """The first letter in lower case when the heading is in sentence case and the word is no name in the passage."""
    words = text.split()
    first = words[0] if words else ""
    is_name = not first[1:].islower() or re.search(rf"[a-z,] {re.escape(first)}\b", passage)
    title_case = any(word[:1].isupper() and word[1:].islower() for word in words[1:])
    return text if not words or is_name or title_case else text[0].lower() + text[1:]


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
