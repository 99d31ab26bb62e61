"""Weights for tests: the user's cache, never a download of the large files."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest

from infra.errors import Unavailable
from infra.models import resolve
from infra.settings import ModelSettings, load_settings


@cache
def cached_models() -> ModelSettings:
    """Model settings that see the environment only for the place of the cache."""
    known = {name: os.environ[name] for name in ("QUILL_MODELS_CACHE",) if name in os.environ}
    return load_settings(file=Path("/nonexistent/none.toml"), environment=known).models


def require_weights(name: str) -> ModelSettings:
    """The settings, when the cache holds these weights; otherwise the test is skipped with the reason."""
    try:
        resolve(name, cached_models(), carriers=[])
    except Unavailable:
        pytest.skip(f"{name} is not in the cache; fetch it: make weights")
    return cached_models()
