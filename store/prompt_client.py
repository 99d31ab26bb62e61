"""What an application calls to read prompts: `get`, from a store opened once per process."""

from __future__ import annotations

import threading
from functools import cache

from infra.settings import load_settings
from store.opening import Store, open_store
from store.prompts import PromptVersion

_opening = threading.Lock()


def get(ref: str) -> PromptVersion:
    """The version for `name@3`, `name@label`, or `name` (label `production`, else the newest).

    Raises `NotFound` with what exists, `SettingsError` for the settings and `Unavailable` for the database.
    """
    with _opening:
        store = _opened()
    return store.prompts.get(ref)


@cache
def _opened() -> Store:
    return open_store(load_settings())
