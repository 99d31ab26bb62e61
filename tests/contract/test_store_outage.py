"""A PostgreSQL server that goes away and comes back under an open store."""

from __future__ import annotations

from pathlib import Path

import pytest
from postgres_fixture import PostgresServer

from infra.errors import Unavailable
from infra.llm.chat import Message
from infra.settings import DatabaseSettings, Settings
from store.opening import open_store


@pytest.mark.postgres
def test_an_outage_is_one_clear_error_and_ends_by_itself(postgres_server: PostgresServer, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, database=DatabaseSettings(url=postgres_server.new_database()))
    store = open_store(settings)
    store.prompts.push("post", [Message(role="user", content="x")])
    postgres_server.pause()
    try:
        for attempt in (store.prompts.list, lambda: open_store(settings)):
            with pytest.raises(Unavailable, match="does not answer"):
                attempt()
    finally:
        postgres_server.resume()
    assert [one.name for one in store.prompts.list()] == ["post"]
    store.close()


@pytest.mark.postgres
def test_a_restart_between_two_calls_goes_unnoticed(postgres_server: PostgresServer, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, database=DatabaseSettings(url=postgres_server.new_database()))
    store = open_store(settings)
    assert store.prompts.list() == []
    postgres_server.pause()
    postgres_server.resume()
    assert store.prompts.list() == []
    store.close()
