"""Sources over a real HTTP server, git and files: what is new, changed or gone reaches the stream and the store."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.embedder import HashEmbedder
from infra.settings import load_settings
from retrieval import fetching
from retrieval.fetching import Fetcher
from retrieval.ingest import IngestReport, ingest
from retrieval.ingestion import Ingestion
from retrieval.pipeline import FeaturePipeline
from store.documents import DocumentRow
from store.opening import open_store
from streams.embedded import EmbeddedLog
from streams.events import CONTENT_DOCUMENTS
from tests.integration.web_server import Site, bomb, serving

PARAGRAPHS = {
    "kafka": "Kafka keeps records in partitions, and consumers read them by offset at their own pace. A group of "
    "consumers shares the partitions, so that each record is handled by one member, and a member that leaves gives "
    "its partitions to the others. What was read is remembered by committing offsets.",
    "lora": "Low rank adapters train two small matrices beside each frozen weight of the base model. The product of "
    "the two is added to the weight when the model runs, and can be merged into it afterwards. Few numbers are "
    "trained, so that one graphics card is enough for models that would need many.",
    "tulips": "Tulips bloom in spring when the soil of the garden is warm enough for them. Their bulbs are planted in "
    "autumn, three times as deep as they are high, and stay in the ground over winter. In wet soil they rot, "
    "therefore sand is put under them by careful gardeners.",
}


class Installation:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.settings = load_settings(file=root / "none.toml", environment={}, overrides={"home": root / "home"})
        self.log = EmbeddedLog(self.settings.home / "log.db")
        self.store = open_store(self.settings, self.log)
        self.pipeline = FeaturePipeline(self.settings, self.log, self.store, HashEmbedder())

    def ingest(self, target: str | Path, *named: str) -> IngestReport:
        """Ingest a source and let the store apply it. `named` are further addresses that the user gave."""
        with Fetcher([url for url in (str(target), *named) if url.startswith("http")]) as fetcher:
            cache = self.settings.home / "sources"
            report = ingest(str(target), self.log, self.store, fetcher=fetcher, cache=cache)
        self.pipeline.reach(report.targets)
        return report

    def row(self, ending: str) -> DocumentRow:
        return next(row for row in self.store.documents.list() if row.source.endswith(ending))

    def sources(self) -> list[str]:
        return sorted(row.source for row in self.store.documents.list())

    def text(self, ending: str) -> str:
        return "\n".join(chunk.text for chunk in self.store.documents.chunks_of(self.row(ending).document_id))


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Installation]:
    installation = Installation(tmp_path)
    yield installation
    installation.pipeline.close()
    installation.store.close()
    installation.log.close()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "*")
    with serving() as found:
        yield found


def counts(report: IngestReport) -> dict[str, int]:
    found = {"added": report.added, "changed": report.changed, "removed": report.removed, "folded": report.folded}
    return {name: count for name, count in found.items() if count} | (
        {"unchanged": report.unchanged} if report.unchanged else {}
    )


def page(name: str, extra: str = "") -> str:
    return (
        f"<html><head><title>On {name}</title><meta name=author content='A. Writer'>"
        "<meta property='article:published_time' content='8 January 2026'></head><body><nav>Home</nav>"
        f"<main><h1>On {name}</h1><p>{PARAGRAPHS[name]}</p>{extra}</main></body></html>"
    )


# --- pages ------------------------------------------------------------------------------------------------


def test_a_page_is_asked_with_conditions_and_replaced_when_it_changed(here: Installation, site: Site) -> None:
    url = site.put("/kafka.html", page("kafka"))
    assert counts(here.ingest(url)) == {"added": 1}
    assert here.row("/kafka.html").metadata["date"] == "2026-01-08"
    assert here.row("/kafka.html").metadata["author"] == "A. Writer"
    assert here.row("/kafka.html").metadata["url"] == url

    assert counts(here.ingest(url)) == {"unchanged": 1}
    assert site.statuses("/kafka.html") == [200, 304]
    site.put("/kafka.html", page("tulips"))
    assert counts(here.ingest(url)) == {"changed": 1}
    assert "bloom in spring" in here.text("/kafka.html")
    assert "partitions" not in here.text("/kafka.html")


def test_a_server_without_validators_is_compared_by_the_bytes(here: Installation, site: Site) -> None:
    site.etags = False
    url = site.put("/kafka.html", page("kafka"))
    assert counts(here.ingest(url)) == {"added": 1}
    assert counts(here.ingest(url)) == {"unchanged": 1}
    assert site.statuses("/kafka.html") == [200, 200]


@pytest.mark.parametrize("status", [404, 410, 500, 503])
def test_a_page_that_fails_to_answer_deletes_nothing(here: Installation, site: Site, status: int) -> None:
    url = site.put("/kafka.html", page("kafka"))
    here.ingest(url)
    site.failing["/kafka.html"] = status
    report = here.ingest(url)

    assert counts(report) == {}
    assert [(one.source, str(status) in one.reason) for one in report.failed] == [(url, True)]
    assert here.sources() == [url]


def test_a_server_that_is_away_is_one_clear_line(here: Installation, site: Site) -> None:
    report = here.ingest("http://127.0.0.1:9/")
    assert [(one.source, one.reason) for one in report.failed] == [
        ("http://127.0.0.1:9/", "it does not answer ([Errno 111] Connection refused)")
    ]


def test_passwords_in_addresses_are_neither_stored_nor_shown(here: Installation, site: Site) -> None:
    site.put("/kafka.html", page("kafka"))
    url = f"http://reader:s3cret@127.0.0.1:{site.port}/kafka.html"
    here.ingest(url)
    missing = here.ingest(url.replace("kafka", "nothing"))
    repository = here.ingest(f"git+http://reader:s3cret@127.0.0.1:{site.port}/nothing.git")
    assert (len(missing.failed), len(repository.failed)) == (1, 1)
    assert "s3cret" not in repr((here.store.documents.list(), missing, repository))
    assert here.sources() == [f"{site.url}/kafka.html"]


def test_other_kinds_come_by_their_media_type(here: Installation, site: Site) -> None:
    here.ingest(site.put("/note", f"---\ntags: [a, b]\n---\n# Tulips\n\n{PARAGRAPHS['tulips']}", "text/markdown"))
    assert here.row("/note").title == "Tulips"
    assert here.row("/note").metadata["tags"] == ["a", "b"]
    report = here.ingest(site.put("/photo", b"\x89PNG", "image/png"))
    assert "media type image/png" in report.failed[0].reason


# --- strangers' links -------------------------------------------------------------------------------------


def test_links_into_private_networks_are_refused(here: Installation, site: Site) -> None:
    with serving() as secret:
        inside = secret.put("/admin", page("lora"))
        feed = "".join(f"<item><title>t</title><link>{link}</link></item>" for link in (inside, "http://[::1]:1/x"))
        report = here.ingest(site.put("/feed", f"<rss version='2.0'><channel>{feed}</channel></rss>", "text/xml"))
        site.redirects["/away"] = inside
        moved = here.ingest(site.url + "/away")
        assert [("private network" in one.reason) for one in (*report.failed, *moved.failed)] == [True, True, True]
        assert secret.asked == []
        assert here.sources() == []
        assert counts(here.ingest(inside)) == {"added": 1}, "but the user may name it"


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("127.0.0.1", False), ("10.1.2.3", False), ("169.254.169.254", False), ("100.64.0.1", False), ("::1", False),
        ("::ffff:127.0.0.1", False), ("fe80::1%eth0", False), ("64:ff9b::7f00:1", False), ("2002:7f00:1::", False),
        ("0.0.0.0", False), ("224.0.0.1", False), ("93.184.216.34", True), ("2606:2800:220:1::1", True),
    ],
)  # fmt: skip
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert fetching._is_public(address) is public


def test_a_name_is_looked_up_once_so_it_cannot_change_its_mind(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection goes to the checked address: a second look-up, which here would give loopback, is never made."""
    looked_up: list[str] = []
    real = socket.getaddrinfo

    def answers(host: str, port: int, *arguments: int, **named: int) -> object:
        if host != "rebinding.test":
            return real(host, port, *arguments, **named)
        looked_up.append(host)
        return real("192.0.2.1" if len(looked_up) > 1 else "127.0.0.1", port, *arguments, **named)

    site.put("/x", page("kafka"))
    monkeypatch.setattr(socket, "getaddrinfo", answers)
    with Fetcher([f"http://rebinding.test:{site.port}/"]) as fetcher:
        found = fetcher.get(f"http://rebinding.test:{site.port}/x")
    assert found is not None
    assert found.body == page("kafka").encode()
    assert looked_up == ["rebinding.test"]


def test_redirects_end(here: Installation, site: Site) -> None:
    site.redirects["/loop"] = "/loop"
    assert "redirects more than 5 times" in here.ingest(site.url + "/loop").failed[0].reason


def test_gzip_bombs_and_long_bodies_are_given_up(here: Installation, site: Site) -> None:
    site.packed["/bomb"] = bomb(100)
    assert "the limit is 20 MB" in here.ingest(site.url + "/bomb").failed[0].reason
    report = here.ingest(site.put("/long.txt", bytes(20_000_001), "text/plain"))
    assert "it has 20.0 MB; the limit is 20 MB" in report.failed[0].reason


def test_a_server_that_drips_is_given_up(here: Installation, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "TOTAL_SECONDS", 0.3)
    site.dripping.add("/slow")
    assert "it takes longer than" in here.ingest(site.url + "/slow").failed[0].reason


# --- sitemaps ---------------------------------------------------------------------------------------------


def sitemap(site: Site, *paths: str, path: str = "/sitemap.xml", kind: str = "urlset") -> str:
    name = "url" if kind == "urlset" else "sitemap"
    entries = "".join(f"<{name}><loc>{site.url}{one}</loc></{name}>" for one in paths)
    return site.put(
        path,
        f"<?xml version='1.0'?><{kind} xmlns='http://www.sitemaps.org/schemas/sitemap/0.9'>{entries}</{kind}>",
        "application/xml",
    )


def test_a_sitemap_is_followed_and_what_it_no_longer_lists_is_deleted(here: Installation, site: Site) -> None:
    for name in PARAGRAPHS:
        site.put(f"/{name}", page(name))
    site.put("/robots.txt", "User-agent: *\nDisallow: /lora\n", "text/plain")
    url = sitemap(site, "/kafka", "/lora", "/tulips", "/missing")
    report = here.ingest(url)
    assert counts(report) == {"added": 2}
    assert {one.source.rpartition("/")[2]: one.reason for one in report.failed} == {
        "lora": "robots.txt does not let crawlers read it",
        "missing": "it is listed but not there",
    }
    assert site.statuses("/lora") == []

    assert counts(here.ingest(url)) == {"unchanged": 2}
    assert site.statuses("/kafka") == [200, 304]
    sitemap(site, "/kafka")
    assert counts(here.ingest(url)) == {"unchanged": 1, "removed": 1}
    assert here.sources() == [f"{site.url}/kafka"]
    del site.pages["/kafka"]
    assert counts(here.ingest(url)) == {"removed": 1}, "listed, but the page itself answers 404"


def test_a_sitemap_that_fails_to_answer_deletes_nothing(here: Installation, site: Site) -> None:
    for name in PARAGRAPHS:
        site.put(f"/{name}", page(name))
    sitemap(site, "/kafka", path="/one.xml")
    sitemap(site, "/lora", "/tulips", path="/two.xml")
    url = sitemap(site, "/one.xml", "/two.xml", "/sitemap.xml", kind="sitemapindex")
    assert counts(here.ingest(url)) == {"added": 3}, "an index that names itself ends too"
    site.failing["/two.xml"] = 503
    report = here.ingest(url)
    assert counts(report) == {"unchanged": 1}
    assert len(report.failed) == 1
    site.failing["/sitemap.xml"] = 500
    assert counts(here.ingest(url)) == {}
    assert len(here.sources()) == 3


def test_what_one_source_drops_and_the_next_still_lists_stays(here: Installation, site: Site) -> None:
    for name in ("kafka", "lora"):
        site.put(f"/{name}", page(name))
    url = sitemap(site, "/kafka", "/lora")
    with Ingestion(here.settings) as ingestion:
        assert ingestion.run([url], wait=False).added == 2
        here.pipeline.reach(here.log.end_offsets(CONTENT_DOCUMENTS))
        sitemap(site, "/lora")
        report = ingestion.run([url, f"{site.url}/kafka"], wait=False)
    here.pipeline.reach(report.targets)
    assert counts(report) == {"removed": 1, "added": 1, "unchanged": 1}
    assert here.sources() == [f"{site.url}/kafka", f"{site.url}/lora"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("<urlset><url><loc>http://other.test/x</loc></url></urlset>", "may not list pages of another host"),
        ("<urlset><url><loc>/x</url></urlset>", "it is a broken sitemap"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><urlset><url><loc>&a;</loc></url></urlset>', "it declares entities"),
    ],
)
def test_bad_sitemaps_say_why(here: Installation, site: Site, body: str, reason: str) -> None:
    assert reason in here.ingest(site.put("/sitemap.xml", body, "application/xml")).failed[0].reason


def test_a_robots_file_that_does_not_answer_forbids_everything(here: Installation, site: Site) -> None:
    site.put("/kafka", page("kafka"))
    site.failing["/robots.txt"] = 503
    assert "robots.txt" in here.ingest(sitemap(site, "/kafka")).failed[0].reason


# --- feeds ------------------------------------------------------------------------------------------------


def entry(site: Site, name: str, day: int, *, whole: bool = True) -> str:
    text = (
        f"<content type='html'>&lt;p&gt;{PARAGRAPHS[name] * 2}&lt;/p&gt;</content>" if whole else "<summary>x</summary>"
    )
    return (
        f"<entry><title>On {name}</title><id>{name}</id><link href='{site.url}/{name}'/>"
        f"<published>2026-01-{day:02}T10:00:00Z</published><author><name>A. Writer</name></author>"
        f"<category term='notes'/>{text}</entry>"
    )


def atom(site: Site, *entries: str) -> str:
    body = f"<feed xmlns='http://www.w3.org/2005/Atom'><title>f</title>{''.join(entries)}</feed>"
    return site.put("/feed", body, "application/atom+xml")


def test_a_feed_gives_its_entries_whole_or_by_their_pages(here: Installation, site: Site) -> None:
    site.put("/lora", page("lora"))
    url = atom(site, entry(site, "kafka", 3), entry(site, "lora", 2, whole=False))
    assert counts(here.ingest(url)) == {"added": 2}
    assert site.statuses("/kafka") == []
    for name in ("kafka", "lora"):
        row = here.row(f"/{name}")
        found = {key: row.metadata[key] for key in ("author", "date", "tags", "url")}
        assert (row.title, found) == (
            f"On {name}",
            {"author": "A. Writer", "date": f"2026-01-0{3 if name == 'kafka' else 2}T10:00:00+00:00",
             "tags": ["notes"], "url": f"{site.url}/{name}"},
        )  # fmt: skip
        assert PARAGRAPHS[name] in here.text(f"/{name}")
    assert counts(here.ingest(url)) == {"unchanged": 2}


def test_an_entry_taken_back_is_deleted_and_one_that_grew_old_is_kept(here: Installation, site: Site) -> None:
    url = atom(site, entry(site, "kafka", 3), entry(site, "lora", 2), entry(site, "tulips", 1))
    assert counts(here.ingest(url)) == {"added": 3}
    atom(site, entry(site, "kafka", 3), entry(site, "tulips", 1))
    assert counts(here.ingest(url)) == {"unchanged": 2, "removed": 1}
    atom(site, entry(site, "kafka", 3))
    assert counts(here.ingest(url)) == {"unchanged": 1}, "older than everything a feed still shows"
    assert here.sources() == [f"{site.url}/kafka", f"{site.url}/tulips"]


def test_a_broken_feed_deletes_nothing(here: Installation, site: Site) -> None:
    url = atom(site, entry(site, "kafka", 3))
    here.ingest(url)
    site.put("/feed", "<feed xmlns='http://www.w3.org/2005/Atom'><entry><title>", "application/atom+xml")
    report = here.ingest(url)
    assert counts(report) == {}
    assert here.sources() == [f"{site.url}/kafka"]


# --- repositories -----------------------------------------------------------------------------------------


def git(folder: Path, *arguments: str) -> None:
    identity = {"GIT_AUTHOR_NAME": "A. Writer", "GIT_AUTHOR_EMAIL": "a@example.org", "GIT_COMMITTER_NAME": "C",
                "GIT_COMMITTER_EMAIL": "c@example.org", "GIT_AUTHOR_DATE": "2026-01-08T10:00:00Z"}  # fmt: skip
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, env={**os.environ, **identity})


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    (folder / "docs").mkdir(parents=True)
    git(folder, "init", "--quiet", "--initial-branch=main")
    (folder / "docs" / "kafka.md").write_text(f"# On Kafka\n\n{PARAGRAPHS['kafka']}\n")
    (folder / "log.py").write_text(f'"""A log.\n\n{PARAGRAPHS["lora"]}\n"""\n\n\ndef poll():\n    return 1\n')
    (folder / "logo.png").write_bytes(b"\x89PNG")
    (folder / "link.md").symlink_to("/etc/passwd")
    git(folder, "add", "-A")
    git(folder, "commit", "--quiet", "-m", "first")
    return folder


@pytest.mark.parametrize("remote", [False, True])
def test_a_repository_is_read_as_it_was_committed(here: Installation, repository: Path, remote: bool) -> None:
    name = repository.as_uri() if remote else str(repository)
    report = here.ingest(f"git+{name}")
    assert (counts(report), report.failed, report.skipped) == ({"added": 2}, [], {".png": 1})
    assert here.sources() == [f"{name}#docs/kafka.md", f"{name}#log.py"]
    assert here.row("log.py").title == "log.py"
    assert PARAGRAPHS["lora"] in here.text("log.py")
    about = {key: here.row("kafka.md").metadata.get(key) for key in ("author", "date")}
    assert about == ({"author": None, "date": None} if remote else {"author": "A. Writer", "date": "2026-01-08"})

    (repository / "docs" / "tulips.md").write_text(f"# On tulips\n\n{PARAGRAPHS['tulips']}\n")
    assert counts(here.ingest(f"git+{name}")) == {"unchanged": 2}, "not committed yet"
    git(repository, "rm", "--quiet", "log.py")
    git(repository, "add", "-A")
    git(repository, "commit", "--quiet", "-m", "second")
    assert counts(here.ingest(f"git+{name}")) == {"added": 1, "unchanged": 1, "removed": 1}


def test_repositories_that_cannot_be_read_say_why_and_run_nothing(here: Installation, repository: Path) -> None:
    here.ingest(f"git+{repository}")
    marker = here.root / "ran"
    for target in (f"git+ext::sh -c 'touch {marker}'", "git+file:///nowhere/at/all", "git+--upload-pack=x"):
        report = here.ingest(target)
        assert len(report.failed) == 1, target
    assert not marker.exists()
    (repository / ".git" / "HEAD").write_text("broken")
    assert counts(here.ingest(f"git+{repository}")) == {}
    assert len(here.sources()) == 2


# --- files, exports and near-duplicates -------------------------------------------------------------------


def test_an_export_follows_its_rows(here: Installation) -> None:
    file = here.root / "posts.jsonl"
    rows = [
        {"id": name, "content": {"Title": f"On {name}", "Content": text}, "author_full_name": "A. Writer",
         "platform": "medium", "link": f"https://example.org/{name}", "published_at": "January 8, 2026"}
        for name, text in PARAGRAPHS.items()
    ]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    report = here.ingest(file)
    assert counts(report) == {"added": 3}
    assert [(one.source, "not JSON" in one.reason) for one in report.failed] == [(f"{file}#4", True)]
    row = here.row("#kafka")
    assert row.title == "On kafka"
    assert {key: row.metadata[key] for key in ("author", "date", "url", "platform")} == {
        "author": "A. Writer", "date": "2026-01-08", "url": "https://example.org/kafka", "platform": "medium",
    }  # fmt: skip

    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:2]) + "{broken\n")
    assert counts(here.ingest(file)) == {"unchanged": 2}, "the broken row may be the third"
    file.write_text(json.dumps(rows[0] | {"content": "Now quite another text."}) + "\n")
    assert counts(here.ingest(file)) == {"changed": 1, "removed": 2}


def test_a_folder_takes_json_lines_with_text_and_passes_over_the_rest(here: Installation) -> None:
    folder = here.root / "mixed"
    folder.mkdir()
    (folder / "posts.jsonl").write_text(json.dumps({"id": 1, "text": PARAGRAPHS["kafka"]}) + "\n")
    (folder / "index.jsonl").write_text(json.dumps({"path": "a.md", "bytes": 3}) + "\n")
    (folder / "config.json").write_text("{}")
    report = here.ingest(folder)
    assert (counts(report), report.failed) == ({"added": 1}, [])
    assert report.skipped == {".jsonl": 1, ".json": 1}
    (folder / "posts.jsonl").unlink()
    assert counts(here.ingest(folder)) == {"removed": 1}


def test_a_near_duplicate_is_kept_as_another_source_until_the_first_is_gone(here: Installation) -> None:
    folder = here.root / "notes"
    folder.mkdir()
    whole = "\n\n".join(PARAGRAPHS.values()) + "\n"
    (folder / "a.md").write_text(f"# Notes\n\n{whole}")
    (folder / "b.md").write_text(f"# Notes\n\n{whole.replace('careful', 'cautious')}")
    assert counts(here.ingest(folder)) == {"added": 1, "folded": 1}
    first, second = here.row("a.md"), here.row("b.md")
    assert second.metadata["ingest"]["alias_of"] == first.document_id
    assert (first.chunks > 0, second.chunks) == (True, 0)
    assert counts(here.ingest(folder)) == {"unchanged": 2}

    (folder / "a.md").unlink()
    assert counts(here.ingest(folder)) == {"changed": 1, "removed": 1}
    assert here.row("b.md").chunks == first.chunks
    (folder / "c.md").write_text(f"# Notes\n\n{whole}")
    assert counts(here.ingest(folder)) == {"folded": 1, "unchanged": 1}
    (folder / "b.md").write_text(f"# Notes\n\n{PARAGRAPHS['lora']}\n")
    assert counts(here.ingest(folder)) == {"changed": 2}, "what it repeated says something else now"


def test_pages_that_differ_in_a_number_are_two_documents(here: Installation) -> None:
    folder = here.root / "prices"
    folder.mkdir()
    for price in (10, 20):
        (folder / f"{price}.md").write_text(f"# Price\n\n{' '.join(PARAGRAPHS.values())} It costs {price} euros.\n")
    assert counts(here.ingest(folder)) == {"added": 2}


def test_code_named_itself_is_read_and_in_a_folder_only_counted(here: Installation) -> None:
    file = here.root / "tool.py"
    file.write_text(f'"""{PARAGRAPHS["kafka"]}"""\n\nclass Log:\n    """{PARAGRAPHS["lora"]}"""\n')
    assert counts(here.ingest(file)) == {"added": 1}
    assert PARAGRAPHS["lora"] in here.text("tool.py")


def test_hostile_input_ends_and_the_rest_goes_on(here: Installation) -> None:
    folder = here.root / "hostile"
    folder.mkdir()
    hostile: dict[str, str] = {
        "deep.html": "<div>" * 20_000 + "x" + "</div>" * 20_000,
        "wide.html": "<p>x</p>" * 150_000,
        "title.html": f"<title>{'[' * 100_000}</title><p>words</p>",
        "stars.md": " *a" * 50_000,
        "comments.md": "<!-- " * 50_000,
        "images.md": "![" * 50_000,
        "links.md": '[x](a "' * 50_000,
        "addresses.md": "<http://a" * 50_000,
        "spaces.md": "word" + " " * 500_000 + "word\n\n# a" + " " * 500_000 + "b",
        "roles.rst": ":a" * 100_000 + "\n\n" + "a." * 100_000,
        "yaml.md": "---\na: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{chr(98 + at)}: &{chr(98 + at)} [{','.join(['*' + chr(97 + at)] * 9)}]\n" for at in range(8))
        + "tags: *i\n---\nSome words of text.\n",
        "good.md": f"# On Kafka\n\n{PARAGRAPHS['kafka']}\n",
    }
    for name, text in hostile.items():
        (folder / name).write_text(text)
    (folder / "line.jsonl").write_bytes(b'{"text": "' + b"x" * 30_000_000 + b'"}\n{"id": 2, "text": "Fine words."}\n')
    report = here.ingest(folder)
    assert report.added + report.folded + len(report.failed) == len(hostile) + 2
    assert here.row("good.md").chunks == 1
    assert here.row("line.jsonl#2")
    assert "longer than 20 MB" in next(one.reason for one in report.failed if "line.jsonl" in one.source)


# --- the verb ---------------------------------------------------------------------------------------------


def test_watching_follows_files_and_pages(tmp_path: Path, site: Site) -> None:
    """`quill ingest --watch` as a process of its own: one JSON line for each pass."""
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "kafka.md").write_text(f"# On Kafka\n\n{PARAGRAPHS['kafka']}\n")
    url = site.put("/lora", page("lora"))
    out = tmp_path / "out.jsonl"
    command = [
        sys.executable,
        "-m",
        "infra.cli",
        "ingest",
        str(notes),
        url,
        "--watch",
        "--every",
        "1",
        "--no-wait",
        "--json",
    ]
    with out.open("wb") as stdout:
        watcher = subprocess.Popen(
            [sys.executable, "-c", "from infra.cli import main; main()", *command[3:]],
            stdout=stdout,
            env={**os.environ, "QUILL_HOME": str(tmp_path / "home"), "QUILL_LOG_BACKEND": "embedded"},
            cwd=tmp_path,
        )
    try:
        passes = eventually(out, lambda found: sum(one["added"] for one in found) >= 2, watcher)
        assert passes[0]["failed"] == []
        (notes / "tulips.md").write_text(f"# On tulips\n\n{PARAGRAPHS['tulips']}\n")
        eventually(
            out, lambda found: any("tulips" in str(one) or one["added"] >= 1 for one in found[len(passes) :]), watcher
        )
        asked = len(site.statuses("/lora"))
        site.put("/lora", page("tulips", "<p>And more.</p>"))
        eventually(out, lambda _: len(site.statuses("/lora")) > asked, watcher)
    finally:
        watcher.send_signal(signal.SIGINT)
        assert watcher.wait(60) == 0


def eventually(
    file: Path, holds: Callable[[list[dict]], bool], watcher: subprocess.Popen[bytes], seconds: float = 60
) -> list[dict]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
        if holds(found):
            return found
        assert watcher.poll() is None
        time.sleep(0.1)
    raise AssertionError(file.read_text())
