"""The release that answers before anybody promoted one: the default prompt, the settings' writer, this index build."""

from __future__ import annotations

from infra.settings import Settings
from retrieval.answer import DEFAULT_DECODING, DEFAULT_PROMPT_NAME, default_prompt_messages
from store.opening import Store
from store.prompts import PromptVersion
from store.releases import Release

CHANNEL = "production"
LABEL = "production"


def ensure_release(settings: Settings, store: Store, *, build: str, judge: str, actor: str) -> Release:
    """What the production channel serves; when nothing is promoted there, the default release is, by `actor`.

    `build` is the index build id, `judge` the id of the judge that monitors the release.
    """
    current = store.releases.current(CHANNEL)
    if current is not None:
        return current
    release = store.releases.put(default_release(settings, store, build=build, judge=judge, actor=actor))
    store.releases.promote(CHANNEL, release.id, reason="first start", actor=actor)
    return store.releases.resolve(CHANNEL)


def default_release(settings: Settings, store: Store, *, build: str, judge: str, actor: str) -> Release:
    """The prompt labelled production (the built-in one is pushed and labelled when there is none), the settings'
    writer without an adapter, and the default decoding."""
    prompt = _production_prompt(store, actor)
    return Release(
        prompt=prompt.ref, model=settings.llm.model, index_build=build, judge=judge, decoding=DEFAULT_DECODING
    )


def _production_prompt(store: Store, actor: str) -> PromptVersion:
    labelled = store.prompts.labels(DEFAULT_PROMPT_NAME).get(LABEL)
    if labelled is not None:
        return store.prompts.get(f"{DEFAULT_PROMPT_NAME}@{labelled}")
    prompt = store.prompts.push(DEFAULT_PROMPT_NAME, default_prompt_messages(), "built in", actor=actor)
    store.prompts.label(prompt.name, LABEL, prompt.number, actor=actor)
    return prompt
