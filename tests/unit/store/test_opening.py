"""Opening the records: errors a person can mend, laziness, and locks that readers do not take."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from infra.database import open_database, reading
from infra.errors import Conflict, SettingsError, Unavailable
from infra.settings import DatabaseSettings, Settings
from store.alerts import AlertStore
from store.documents import DocumentStore
from store.interactions import InteractionStore
from store.opening import open_store
from store.prompts import PromptStore
from store.releases import ReleaseStore


def settings(home: Path, url: str = "") -> Settings:
    return Settings(home=home, database=DatabaseSettings(url=url))


@pytest.mark.parametrize("url", ["not a url", "mysql://localhost/quill", "oracle+cx://x"])
def test_a_url_that_cannot_work_is_a_settings_error(tmp_path: Path, url: str) -> None:
    with pytest.raises(SettingsError, match=r"database\.url"):
        open_store(settings(tmp_path, url))


def test_an_unreachable_server_is_one_clear_line_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        open_store(settings(tmp_path, "postgresql://quill:secret@127.0.0.1:1/quill"))
    assert "127.0.0.1:1" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database_is_unavailable_and_stays_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "records.db").write_text("my notes, not a database\n" * 100)
    with pytest.raises(Unavailable, match=r"records\.db"):
        open_store(settings(tmp_path))
    assert (tmp_path / "records.db").read_text().startswith("my notes")


def test_a_home_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Unavailable, match="file"):
        open_store(settings(tmp_path / "file" / "home"))


def test_records_of_a_newer_version_are_refused_and_untouched(tmp_path: Path) -> None:
    store = open_store(settings(tmp_path))
    with store.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999_future'"))
    store.close()
    with pytest.raises(Conflict, match="9999_future"):
        open_store(settings(tmp_path))


def test_an_error_at_a_later_statement_is_unavailable_too(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'a.db'}")
    with engine.begin() as connection, pytest.raises(Unavailable):
        connection.execute(text("SELECT * FROM no_such_table"))
    engine.dispose()


def test_readers_do_not_wait_for_a_writer(tmp_path: Path) -> None:
    store = open_store(settings(tmp_path))
    with store.engine.begin() as writer:
        writer.execute(text("DELETE FROM documents"))
        assert store.documents.list() == []  # would end in "database is locked" if reading took the write lock
        with reading(store.engine) as reader:
            assert reader.execute(text("SELECT count(*) FROM documents")).scalar() == 0
    store.close()


def test_constructors_do_no_io() -> None:
    from infra.artifacts import Artifacts

    nowhere: object = object()  # any use of the engine would fail
    for kind in (DocumentStore, PromptStore, InteractionStore, ReleaseStore, AlertStore):
        assert kind(nowhere) is not None  # type: ignore[arg-type]
    assert not Artifacts(Path("/nowhere/at/all")).root.exists()


def test_importing_the_verbs_loads_nothing_heavy() -> None:
    heavy = "sqlalchemy alembic jinja2 numpy torch transformers dagster sklearn openai kafka"
    script = f"import sys, store.commands; print([name for name in {heavy!r}.split() if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_up_to_date_store_opens_without_alembic(tmp_path: Path) -> None:
    open_store(settings(tmp_path)).close()
    script = (
        "import sys; from pathlib import Path;"
        "from infra.settings import Settings; from store.opening import open_store;"
        f"print(len(open_store(Settings(home=Path({str(tmp_path)!r}))).prompts.list()), 'alembic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "False"]
