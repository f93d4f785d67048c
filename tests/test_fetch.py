"""Getting and keeping weights files: every download here is from a server in this process."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from limner import models
from limner.checkpoints import _http, store
from limner.checkpoints import fetch as fetching
from limner.checkpoints.cards import WeightsCard
from limner.checkpoints.fetch import fetch
from limner.cli.__main__ import run
from limner.errors import CheckpointError
from limner.models import ModelCard, Variant
from limner.models.toy import CARD, Toy

CONTENT_BYTES = 700_000


def make_file(path: Path, seed: int = 0) -> bytes:
    """A weights file that reads as one (see test_checkpoints)."""
    values = np.random.default_rng(seed).standard_normal(CONTENT_BYTES // 4).astype("<f4")
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuJ"
        + len(values).to_bytes(4, "little")
        + b"tQK\x00J"
        + len(values).to_bytes(4, "little")
        + b"\x85K\x01\x85\x89}tR"
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", b"\x80\x02}X\x01\x00\x00\x00w" + tensor + b"s.")
        archive.writestr("w/data/0", values.tobytes())
    return path.read_bytes()


@dataclass
class Site:
    """What the server has, how it misbehaves, and what it was asked."""

    url: str
    files: dict[str, bytes]
    etag: str | None = '"one"'
    drop_after: list[int] = field(default_factory=list)  # bytes, one entry per answer
    codes: list[int] = field(default_factory=list)  # answered before anything else
    ranges: bool = True
    length: bool = True
    kind: str = "application/octet-stream"
    redirects: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        return [path for path, _, _ in self.asked]


class _Handler(http.server.BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        site = self.site
        wanted = self.headers["Range"]
        site.asked.append((self.path, wanted, self.headers["Authorization"]))
        if site.codes:
            self.send_error(site.codes.pop(0))
            return
        if self.path in site.redirects:
            self.send_response(302)
            self.send_header("Location", site.redirects[self.path])
            for name, value in site.headers.items():
                self.send_header(name, value)
            self.end_headers()
            return
        if self.path not in site.files:
            self.send_error(404)
            return
        self._send(site.files[self.path], wanted)

    def _send(self, content: bytes, wanted: str | None) -> None:
        site, start = self.site, 0
        same = self.headers["If-Range"] in (None, site.etag)
        if wanted and site.ranges and same:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Type", site.kind)
        if site.etag is not None:
            self.send_header("ETag", site.etag)
        if site.length:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if site.drop_after:
            body = body[: site.drop_after.pop(0)]
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Quiet."""


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is part of the tests."""


@pytest.fixture
def serve() -> Iterator[Any]:
    """Start servers; each is told what it has."""
    servers = []

    def start(**files: bytes) -> Site:
        handler = type("Handler", (_Handler,), {})
        server = _Server(("127.0.0.1", 0), handler)
        site = Site(
            f"http://127.0.0.1:{server.server_port}", {f"/{k}": v for k, v in files.items()}
        )
        handler.site = site
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return site

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store; no settings of the person who runs the tests."""
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING", "LIMNER_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub-home"))
    monkeypatch.setenv("LIMNER_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(fetching, "_FIRST_PAUSE_S", 0.0)
    return tmp_path / "weights"


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    return make_file(tmp_path / "original.pth")


def card_of(content: bytes, *sources: str, **changes: Any) -> WeightsCard:
    digest = hashlib.sha256(content).hexdigest()
    card = WeightsCard("net.pth", sources, "CC0-1.0", len(content), digest)
    return replace(card, **changes)


def quickly(card: WeightsCard, folder: Path, **options: Any) -> Path:
    return fetch(card, folder, first_pause_s=0.0, **options)


def left_in(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()} - {".net.pth.lock"}


def test_a_download_is_whole_recorded_and_reported(
    serve: Any, content: bytes, folder: Path
) -> None:
    site = serve(net=content)
    said: list[tuple[int, int | None]] = []
    path = quickly(
        card_of(content, f"{site.url}/net"), folder, progress=lambda *now: said.append(now)
    )
    assert path == folder / "net.pth" == store.locate("net.pth")
    assert path.read_bytes() == content
    assert said[-1] == (len(content), len(content))
    assert [done for done, _ in said] == sorted(done for done, _ in said)
    record = store.record_of(path)
    assert record is not None
    assert record.sha256 == hashlib.sha256(content).hexdigest()
    assert (record.source, record.licence) == (f"{site.url}/net", "CC0-1.0")
    assert left_in(folder) == {"net.pth", "net.pth.json"}


def test_dropped_connections_are_resumed_where_they_ended(
    serve: Any, content: bytes, folder: Path
) -> None:
    site = serve(net=content)
    site.drop_after = [300_000, 0, 1, 200_000]
    assert quickly(card_of(content, f"{site.url}/net"), folder).read_bytes() == content
    ranges = [wanted for _, wanted, _ in site.asked]
    assert ranges == [None, "bytes=300000-", "bytes=300000-", "bytes=300001-", "bytes=500001-"]


def test_an_interrupted_download_goes_on_in_the_next_call(
    serve: Any, content: bytes, folder: Path
) -> None:
    site = serve(net=content)
    card = card_of(content, f"{site.url}/net")

    def interrupt(done: int, total: int | None) -> None:
        if done > 200_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quickly(card, folder, progress=interrupt)
    assert store.locate("net.pth") is None
    part = store.partial_files(folder / "net.pth")[0].stat().st_size
    assert part > 200_000
    assert quickly(card, folder).read_bytes() == content
    assert site.asked[-1][1] == f"bytes={part}-"


def test_a_complete_part_is_not_fetched_again(serve: Any, content: bytes, folder: Path) -> None:
    site = serve(net=content)
    folder.mkdir()
    part, record = store.partial_files(folder / "net.pth")
    part.write_bytes(content)
    facts = {"url": f"{site.url}/net", "validator": site.etag, "total": len(content)}
    record.write_text(json.dumps(facts))
    assert quickly(card_of(content, f"{site.url}/net"), folder).read_bytes() == content
    assert len(site.asked) == 1
    assert left_in(folder) == {"net.pth", "net.pth.json"}


@pytest.mark.parametrize("way", ["changed", "no ranges", "longer part", "no validator"])
def test_a_part_of_another_file_is_not_continued(
    way: str, serve: Any, content: bytes, folder: Path
) -> None:
    site = serve(net=content)
    card = card_of(content, f"{site.url}/net")
    folder.mkdir()
    part, record = store.partial_files(folder / "net.pth")
    part.write_bytes(b"\0" * (len(content) + 5 if way == "longer part" else 1000))
    etag = '"old"' if way == "changed" else site.etag
    facts = {"url": f"{site.url}/net", "validator": etag, "total": len(content)}
    record.write_text(json.dumps(facts | ({"validator": None} if way == "no validator" else {})))
    site.ranges = way != "no ranges"
    assert quickly(card, folder).read_bytes() == content


def test_a_wrong_hash_is_refused_and_nothing_stays(
    serve: Any, content: bytes, folder: Path
) -> None:
    site = serve(net=content)
    card = card_of(content, f"{site.url}/net", sha256="0" * 64)
    with pytest.raises(CheckpointError, match="SHA-256") as caught:
        quickly(card, folder)
    assert "limner models add NAME FILE" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert left_in(folder) == set()


def test_a_wrong_size_is_refused_before_it_is_fetched(
    serve: Any, content: bytes, folder: Path
) -> None:
    site = serve(net=content)
    with pytest.raises(CheckpointError, match="the one wanted has 5"):
        quickly(card_of(content, f"{site.url}/net", size=5), folder)
    assert left_in(folder) == set()


def test_without_a_known_hash_a_file_must_at_least_be_weights(
    serve: Any, content: bytes, folder: Path
) -> None:
    site = serve(net=content[:-300], words=b"not found, sorry")
    unknown = {"sha256": None, "size": None}
    for name, words in (("net", "cut off"), ("words", "no weights")):
        with pytest.raises(CheckpointError, match=words):
            quickly(card_of(content, f"{site.url}/{name}", **unknown), folder)
    site.length, site.etag = False, None
    site.files["/net"] = content
    assert quickly(card_of(content, f"{site.url}/net", **unknown), folder).read_bytes() == content


@pytest.mark.parametrize("how", ["type", "bytes"])
def test_a_web_page_is_recognised(how: str, serve: Any, content: bytes, folder: Path) -> None:
    site = serve(net=b"<!DOCTYPE html>\n<html>Virus scan warning</html>")
    site.kind = "text/html; charset=utf-8" if how == "type" else "application/octet-stream"
    with pytest.raises(CheckpointError, match="web page"):
        quickly(card_of(content, f"{site.url}/net", size=None), folder)


def test_failing_servers_are_asked_again_and_missing_files_are_not(
    serve: Any, content: bytes, folder: Path
) -> None:
    site, other = serve(net=content), serve()
    site.codes = [503, 429, 500]
    card = card_of(content, f"{other.url}/net", f"{site.url}/net")
    assert quickly(card, folder).read_bytes() == content
    assert len(other.asked) == 1
    assert len(site.asked) == 4
    site.codes = [503] * 20
    store.remove("net.pth")
    with pytest.raises(CheckpointError, match=r"404.*503, again and again"):
        quickly(card, folder)
    assert len(site.asked) == 4 + fetching._TRIES


@pytest.mark.parametrize("code", [401, 403])
def test_a_login_is_explained(code: int, serve: Any, content: bytes, folder: Path) -> None:
    site = serve()
    site.codes = [code]
    with pytest.raises(CheckpointError, match="HF_TOKEN"):
        quickly(card_of(content, f"{site.url}/net"), folder)


def test_no_network_is_said_at_once(content: bytes, folder: Path) -> None:
    with pytest.raises(CheckpointError, match="refuses connections"):
        quickly(card_of(content, "http://127.0.0.1:9/net"), folder)
    with pytest.raises(CheckpointError, match="no such host"):
        quickly(card_of(content, "http://nowhere.invalid/net"), folder)


def test_a_silent_server_is_given_up(
    serve: Any, content: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    monkeypatch.setattr(_http, "STALL_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/net"
        with pytest.raises(CheckpointError, match="silent"):
            quickly(card_of(content, url), folder)


def test_redirects_are_followed_and_tokens_shown_to_no_other_host(
    serve: Any, content: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, store_of_hub = serve(), serve(blob=content)
    hub.redirects = {"/a/b/resolve/main/w/net.pth": f"{store_of_hub.url}/blob"}
    monkeypatch.setenv("HF_ENDPOINT", hub.url + "/")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert quickly(card_of(content, "hf:a/b/w/net.pth"), folder).read_bytes() == content
    assert hub.asked[0][2] == "Bearer secret"
    assert store_of_hub.asked[0][2] is None
    plain = serve(net=content)
    store.remove("net.pth")
    quickly(card_of(content, f"{plain.url}/net"), folder)
    assert plain.asked[0][2] is None


def test_the_hash_that_the_hub_states_is_checked(
    serve: Any, content: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = serve(blob=content)
    hub.redirects = {"/a/b/resolve/v%2F1/net.pth": "/blob"}
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    card = card_of(content, "hf:a/b/net.pth@v/1", sha256=None, size=None)
    hub.headers = {"X-Linked-Etag": f'"{"0" * 64}"'}
    with pytest.raises(CheckpointError, match="SHA-256"):
        quickly(card, folder)
    hub.headers = {"X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"'}
    assert quickly(card, folder).read_bytes() == content


def test_the_cache_of_the_hub_comes_first_and_offline_is_obeyed(
    serve: Any, content: bytes, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = serve()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    card = card_of(content, "hf:a/b/net.pth")
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE"):
        quickly(card, folder)
    cache = tmp_path / "hub-home" / "hub" / "models--a--b"
    commit = "ab" * 20
    for part in ("refs", "blobs", f"snapshots/{commit}"):
        (cache / part).mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit)
    (cache / "blobs" / "x").write_bytes(content)
    (cache / "snapshots" / commit / "net.pth").symlink_to(cache / "blobs" / "x")
    assert quickly(card, folder).read_bytes() == content
    assert not folder.joinpath("net.pth").is_symlink()
    store.remove("net.pth")
    pinned = replace(card, sources=(f"hf:a/b/net.pth@{commit}",))
    assert quickly(pinned, folder).read_bytes() == content
    assert not hub.asked


def test_mirrors_are_asked_first_in_three_layouts(
    serve: Any, content: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = card_of(content, "https://weights.example/deep/file.pth?x=1")
    for layout in ("net.pth", "weights.example/deep/file.pth?x=1", "deep/file.pth?x=1"):
        site = serve(**{f"m/{layout}": content})
        monkeypatch.setenv("LIMNER_MIRROR", f"{serve().url} {site.url}/m/")
        assert quickly(card, folder).read_bytes() == content
        assert site.paths[-1] == f"/m/{layout}"
        store.remove("net.pth")


def test_local_addresses_and_folders_as_mirrors(
    content: bytes, folder: Path, tmp_path: Path
) -> None:
    share = tmp_path / "a share"
    share.mkdir()
    (share / "net.pth").write_bytes(content)
    card = card_of(content, (share / "net.pth").as_uri())
    assert quickly(card, folder).read_bytes() == content
    store.remove("net.pth")
    nowhere = card_of(content, "https://nowhere.invalid/x")
    assert quickly(nowhere, folder, mirrors=[str(share)]).read_bytes() == content
    store.remove("net.pth")
    (share / "net.pth").write_bytes(content[:-9])
    with pytest.raises(CheckpointError, match="bytes where the file has"):
        quickly(card, folder)
    with pytest.raises(CheckpointError, match="does not exist"):
        quickly(card_of(content, (share / "none.pth").as_uri()), folder)


def test_proxies_of_the_environment_are_used(
    serve: Any, content: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = serve()
    proxy.files["http://behind.invalid/net"] = content
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", "")
    assert quickly(card_of(content, "http://behind.invalid/net"), folder).read_bytes() == content


def test_a_full_disk_is_said_before_anything_is_fetched(
    serve: Any, content: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = serve(net=content)
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(CheckpointError, match=r"MB free.*LIMNER_WEIGHTS"):
        quickly(card_of(content, f"{site.url}/net"), folder)
    assert not site.asked
    with pytest.raises(CheckpointError, match="MB free"):
        quickly(card_of(content, f"{site.url}/net", size=None), folder)


def test_a_folder_that_cannot_be_made_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="LIMNER_WEIGHTS"):
        quickly(card_of(content, "http://127.0.0.1:9/net"), tmp_path / "file" / "weights")


def test_two_processes_do_not_write_one_file(serve: Any, content: bytes, folder: Path) -> None:
    site = serve(net=content)
    card = card_of(content, f"{site.url}/net")
    folder.mkdir()
    with (
        fetching._alone(folder / "net.pth"),
        pytest.raises(CheckpointError, match="Another process"),
    ):
        quickly(card, folder)
    assert quickly(card, folder).read_bytes() == content


@pytest.mark.parametrize("source", ["hf:only-one", "ftp://x/y", "no/such/file", "hf:a/b"])
def test_odd_sources_are_refused(source: str, content: bytes, folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"hf:owner/repository/file"):
        quickly(card_of(content), folder, source=source)


# ---------------------------------------------------------------- the folder


def test_where_weights_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LIMNER_WEIGHTS", "~/w")
    assert store.weights_folder() == Path.home() / "w"
    monkeypatch.delenv("LIMNER_WEIGHTS")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert store.weights_folder() == tmp_path / "limner" / "weights"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert store.weights_folder() == Path.home() / ".local" / "share" / "limner" / "weights"


def test_adding_copies_and_removing_leaves_nothing(
    content: bytes, folder: Path, tmp_path: Path
) -> None:
    card, original = card_of(content), tmp_path / "original.pth"
    path = store.add(card, original)
    original.write_bytes(b"trained on")
    assert path.read_bytes() == content
    record = store.record_of(path)
    assert record is not None
    assert (record.source, record.size) == (str(original), len(content))
    other = make_file(original, seed=1)
    assert store.add(card, original).read_bytes() == other
    assert left_in(folder) == {"net.pth", "net.pth.json"}
    assert store.remove("net.pth")
    killed = folder / ".net.pth-abc.part"  # a copy that was never finished
    killed.write_bytes(b"half")
    os.utime(killed, (0, 0))
    assert not store.remove("net.pth")
    assert left_in(folder) == set()


def test_what_is_no_weights_file_is_not_added(content: bytes, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "page.pth").write_text("<html>")
    with pytest.raises(CheckpointError, match="web page"):
        store.add(card_of(content), tmp_path / "page.pth")
    assert store.locate("net.pth") is None


# ---------------------------------------------------------------- models and commands


@dataclass(frozen=True, eq=False)
class _Built(Toy):
    """A toy with weights."""

    card: ModelCard = CARD


def _build(*, weights: Path | None = None, device: str = "auto", exact: bool = False) -> Toy:
    from limner.checkpoints.digest import sha256_of

    assert weights is not None
    if b"unfit" in weights.read_bytes()[-200:]:
        raise CheckpointError(f"{weights} is of another network: it is unfit.")
    return _Built(replace(FAKE, weights_sha256=sha256_of(weights)))


FAKE = replace(CARD, name="fake/net")


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch, content: bytes, serve: Any) -> Site:
    """A model that needs a file, and the server that has it."""
    site: Site = serve(net=content)
    cards = (
        card_of(content, f"{site.url}/net"),
        WeightsCard("older.pth", (), "CC-BY-NC-4.0", note="ask the authors"),
    )
    tables = {
        "fake": {"net": Variant(FAKE, _build, cards)},
        "shy": {"shy": Variant(replace(CARD, name="shy"), _build, cards[1:])},
        "toy": {"toy": Variant(CARD, lambda **options: Toy())},
    }
    monkeypatch.setattr(models, "list_families", lambda: tuple(tables))
    monkeypatch.setattr(models, "_variants", tables.__getitem__)
    return site


def test_a_model_without_its_weights_says_how_to_get_them(family: Site) -> None:
    with pytest.raises(CheckpointError) as caught:
        models.create_model("fake/net")
    for words in ("fetch fake/net", "models add fake/net FILE", "--weights FILE"):
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="ask the authors; then limner models add shy FILE"):
        models.create_model("shy")


def test_fetch_where_use_and_remove(
    family: Site, content: bytes, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["models", "where", "fake/net"]) == 2
    assert "fetch fake/net" in capsys.readouterr().err
    assert run(["models", "fetch", "fake/net"]) == 0
    said = capsys.readouterr()
    assert "CC0-1.0" in said.out
    assert str(folder / "net.pth") in said.out
    assert run(["models", "where", "fake/net"]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "net.pth")
    model = models.create_model("fake/net")
    assert model.card.weights_sha256 == hashlib.sha256(content).hexdigest()
    assert run(["models", "fetch", "fake/net"]) == 0
    assert "already" in capsys.readouterr().out
    assert len(family.asked) == 1
    assert run(["models", "remove", "fake/net"]) == 0
    assert run(["models", "where", "net.pth"]) == 2


def test_fetch_from_another_address(
    family: Site, content: bytes, serve: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    other = serve(copy=content, wrong=b"x")
    assert run(["models", "fetch", "fake/net", "--from", f"{other.url}/wrong"]) == 2
    assert "limner models add fake/net FILE" in capsys.readouterr().err
    assert run(["models", "fetch", "fake/net", "--from", f"{other.url}/copy"]) == 0
    assert not family.asked


def test_add_checks_that_the_file_fits(
    family: Site, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.pth"
    make_file(mine, seed=4)
    with zipfile.ZipFile(mine, "a") as archive:
        archive.comment = b"unfit"
    assert run(["models", "add", "fake/net", str(mine)]) == 2
    assert "unfit" in capsys.readouterr().err
    assert store.locate("net.pth") is None
    assert run(["models", "add", "fake/net", str(mine), "--no-check"]) == 0
    assert "other weights than the published" in capsys.readouterr().out
    assert run(["models", "add", "fake/net", str(tmp_path / "original.pth")]) == 0
    assert "other weights" not in capsys.readouterr().out
    named = tmp_path / "older.pth"
    make_file(named, seed=5)
    assert run(["models", "add", "fake/net", str(named)]) == 0
    assert (folder / "older.pth").exists()
    assert run(["models", "add", "fake/net", str(tmp_path / "none")]) == 2


def test_kept_weights_that_were_changed_are_not_used(family: Site, folder: Path) -> None:
    assert run(["models", "fetch", "fake/net"]) == 0
    damaged = bytearray((folder / "net.pth").read_bytes())
    damaged[1000] ^= 1
    (folder / "net.pth").write_bytes(damaged)
    with pytest.raises(CheckpointError, match="has changed"):
        models.create_model("fake/net")
    (folder / "net.pth.json").unlink()  # as somebody's own file
    assert models.create_model("fake/net").card.weights_sha256 is not None


def test_the_list_says_where_weights_are(
    family: Site, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert run(["models"]) == 0
    text = capsys.readouterr().out
    assert "weights: not here (1 MB, CC0-1.0 or CC-BY-NC-4.0); limner models fetch" in text
    assert run(["models", "fetch", "fake/net"]) == 0
    capsys.readouterr()
    assert run(["models"]) == 0
    assert f"weights: {folder / 'net.pth'} (CC0-1.0" in capsys.readouterr().out
    assert run(["models", "--json"]) == 0
    facts = {m["name"]: m for m in json.loads(capsys.readouterr().out)}
    assert facts["fake/net"]["weights"] == "here"
    assert facts["fake/net"]["weights_path"] == str(folder / "net.pth")
    assert facts["fake/net"]["weights_files"][1]["licence"] == "CC-BY-NC-4.0"
    assert facts["shy"]["weights"] == "missing"
    assert facts["toy"]["weights"] == "not needed"


def test_commands_about_models_that_need_no_file(
    family: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["models", "fetch", "toy"]) == 2
    assert "needs no weights" in capsys.readouterr().err
    assert run(["models", "fetch", "shy"]) == 2
    assert "ask the authors; then: limner models add shy FILE" in capsys.readouterr().err
    assert run(["models", "fetch", "nothing"]) == 2
    assert run(["models", "remove", "fake/net"]) == 0
    assert "no weights of fake/net" in capsys.readouterr().out


def test_an_interrupted_fetch_says_that_it_goes_on(
    family: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_http, "_read_some", interrupted)
    assert run(["models", "fetch", "fake/net"]) == 130
    assert "the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["toy", "limner-2d"])
def test_optimize_runs_a_model_once_and_says_how_long(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["models", "optimize", name]) == 0
    said = capsys.readouterr().out
    assert name in said
    assert re.search(r"first answer \d+\.\d\d s", said)
