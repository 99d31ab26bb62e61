"""The migrations and the table definitions say the same, on SQLite and PostgreSQL."""

from __future__ import annotations

from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect

from infra.database import reading
from infra.settings import Settings
from store.opening import MIGRATIONS, SCHEMA, Store, open_store
from store.tables import metadata


def scripts() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return ScriptDirectory.from_config(config)


def test_migrations_make_exactly_the_tables_of_the_code(store: Store) -> None:
    with reading(store.engine) as connection:
        made = set(inspect(connection).get_table_names()) - {"alembic_version"}
        assert made == set(metadata.tables)
        assert len(made) == 17
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []


def test_the_schema_named_in_the_code_is_the_only_head() -> None:
    assert scripts().get_heads() == [SCHEMA]


def test_the_comparison_would_notice_a_difference(store: Store) -> None:
    with store.engine.begin() as connection:
        connection.exec_driver_sql("DROP INDEX ix_alerts_state")
    with reading(store.engine) as connection:
        assert len(compare_metadata(MigrationContext.configure(connection), metadata)) == 1


def test_opening_again_keeps_what_is_there(store: Store, store_settings: Settings) -> None:
    from infra.llm.chat import Message

    store.prompts.push("post", [Message(role="user", content="x")])
    again = open_store(store_settings)
    assert [one.name for one in again.prompts.list()] == ["post"]
    again.close()


def test_downgrade_drops_everything(store: Store) -> None:
    from alembic import command

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with store.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        assert set(inspect(connection).get_table_names()) == {"alembic_version"}
