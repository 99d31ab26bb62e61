"""Fixtures of the contract suites."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres_fixture import postgres_server

from infra.settings import DatabaseSettings, Settings
from store.opening import Store, open_store

__all__ = ["postgres_server"]


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def store_settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings of a new installation, once on SQLite and once on PostgreSQL."""
    url = "" if request.param == "sqlite" else request.getfixturevalue("postgres_server").new_database()
    return Settings(home=tmp_path / "home", database=DatabaseSettings(url=url))


@pytest.fixture
def store(store_settings: Settings) -> Iterator[Store]:
    """An empty store without a log."""
    opened = open_store(store_settings)
    yield opened
    opened.close()
