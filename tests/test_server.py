"""The server: own API, doors, uploads, slices, exports, progress, and what a crash leaves."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture

import limner
from dicom_makers import save_series
from limner import phantoms
from limner.cli.__main__ import run
from limner.errors import SessionError
from limner.io import write_image
from limner.server.api.exports import EXPORTS
from limner.sessions.wire import voxels_to_json
from rounds import times
from served import TOKEN, Served, serve


@pytest.fixture(scope="module")
def volume() -> limner.Image:
    return phantoms.volume(3, (20, 48, 40)).image


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, volume: limner.Image) -> Iterator[Served]:
    studies = tmp_path_factory.mktemp("studies")
    write_image(studies / "a.nii.gz", volume)
    (studies / "deep").mkdir()
    write_image(studies / "deep" / "b.png", phantoms.image(1, (60, 50)).image)
    rng = np.random.default_rng(5)
    (studies / "ct").mkdir()
    save_series(studies / "ct", rng.normal(0, 300, (12, 40, 36)).astype(np.int16))
    (studies / "notes.txt").write_text("no image")
    (studies / "out.nii.gz").symlink_to("/etc/hostname")
    with serve(tmp_path_factory.mktemp("state"), studies=studies, max_json=1 << 20) as running:
        yield running


def ask(
    server: Served,
    method: str,
    path: str,
    body: Any = None,
    *,
    content: bytes | None = None,
    **headers: str,
) -> tuple[int, dict[str, str], bytes]:
    """One request, with the token unless another authorization is given."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    sent = {"Authorization": f"Bearer {TOKEN}"}
    if body is not None:
        content = json.dumps(body).encode()
        sent["Content-Type"] = "application/json"
    sent.update({k.replace("_", "-"): v for k, v in headers.items()})
    try:
        connection.request(method, path, content, sent)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def told(content: bytes) -> str:
    """The message of an error."""
    return str(json.loads(content)["error"]["message"])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": ""}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": f"Basic {TOKEN}"}, 401),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example:80"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost"}, 200),
    ],
)
def test_token_host_and_origin_are_checked(
    server: Served, headers: dict[str, str], status: int
) -> None:
    assert ask(server, "GET", "/api/v1/models", **headers)[0] == status


def test_a_page_of_the_server_itself_may_call_it(server: Served) -> None:
    own = f"127.0.0.1:{server.port}"
    assert ask(server, "GET", "/api/v1/models", Host=own, Origin=f"http://{own}")[0] == 200


def test_health_needs_no_token_and_metrics_do(server: Served) -> None:
    assert ask(server, "GET", "/healthz", Authorization="")[0] == 200
    assert ask(server, "GET", "/metrics", Authorization="")[0] == 401
    text = ask(server, "GET", "/metrics")[2].decode()
    assert 'limner_requests_total{method="GET",status="401"}' in text
    assert "limner_prediction_seconds_count" in text


def test_the_document_is_openapi_3_1_and_names_every_route(server: Served) -> None:
    found = json.loads(ask(server, "GET", "/api/v1/openapi.json")[2])
    assert found["openapi"].startswith("3.1")
    assert "/api/v1/sessions/{session}/propagations/{number}/events" in found["paths"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("GET", "/api/v1/nothing", None, 404, "Not Found"),
        ("GET", "/api/v1/sessions/x", None, 404, "no session"),
        ("GET", "/api/v1/sessions/..%2f..%2fetc", None, 404, "Not Found"),
        ("GET", "/api/v1/cases/..%2f..%2fetc%2fpasswd", None, 404, "Not Found"),
        ("GET", "/api/v1/cases/u-..", None, 404, "no case"),
        ("DELETE", "/api/v1/models", None, 405, "Method Not Allowed"),
        ("POST", "/api/v1/sessions", {"case": "u-0"}, 404, "no case"),
        ("POST", "/api/v1/sessions", {"case": "u-0", "weights": "/tmp/x"}, 422, "weights"),
        ("POST", "/api/v1/sessions", [1], 422, "body"),
        ("POST", "/api/v1/cases?filename=a.exe", None, 422, "no suffix"),
        ("POST", "/api/v1/cases?filename=a.nhdr", None, 422, "no suffix"),
    ],
)
def test_what_is_wrong_is_one_line_of_json(
    server: Served, method: str, path: str, body: Any, status: int, words: str
) -> None:
    found, headers, content = ask(server, method, path, body)
    assert (found, headers["content-type"]) == (status, "application/json")
    assert words in told(content)
    assert "Traceback" not in content.decode()


def test_a_body_that_is_too_large_is_refused(server: Served) -> None:
    huge = b"[" + b" " * (2 << 20) + b"]"
    kind = {"Content_Type": "application/json"}
    assert ask(server, "POST", "/api/v1/sessions", content=huge, **kind)[0] == 413


def test_studies_are_listed_by_opaque_ids_and_links_lead_nowhere(server: Served) -> None:
    names = {c["name"]: c["id"] for c in server.client.cases() if c["origin"] == "study"}
    assert set(names) == {"a.nii.gz", "ct", "deep/b.png"}
    assert not any("nii" in i or "/" in i for i in names.values())


def test_slices_come_as_they_are_stored(server: Served, volume: limner.Image) -> None:
    case = next(c["id"] for c in server.client.cases() if c["name"] == "a.nii.gz")
    image = server.client.image(case)
    assert image.geometry.is_close(volume.geometry)
    assert image.dtype == volume.dtype
    assert np.array_equal(image.slice_at(7), volume.array[7])
    assert np.array_equal(image.array, volume.array)
    _, headers, content = ask(server, "GET", f"/api/v1/cases/{case}/slices/5?axis=2")
    facts = json.loads(headers["x-meta"])
    values = np.frombuffer(zlib.decompress(content), facts["dtype"]).reshape(facts["shape"])
    assert np.array_equal(values, volume.array[:, :, 5])
    assert ask(server, "GET", f"/api/v1/cases/{case}/slices/5?form=png")[2][:4] == b"\x89PNG"
    assert ask(server, "GET", f"/api/v1/cases/{case}/slices/99")[0] == 422


def test_changed_boxes_add_up_to_the_mask(server: Served, volume: limner.Image) -> None:
    with server.open_session(volume, "toy") as session:
        mask = np.zeros(volume.shape, bool)
        for click in (limner.Click((10, 24, 20)), limner.Click((2, 3, 4), positive=False)):
            session.add(click)
            path = f"/api/v1/sessions/{session.id}/predict"
            found = json.loads(ask(server, "POST", path, {"object_id": 1})[2])
            if found["box"] is not None:
                place = tuple(slice(a, b) for a, b in zip(*found["box"], strict=True))
                voxels = zlib.decompress(base64.b64decode(found["voxels"]))
                mask[place] = np.frombuffer(voxels, np.uint8).reshape(mask[place].shape)
        assert mask.any()
        assert np.array_equal(mask, session.predict().mask)


@pytest.mark.parametrize("form", EXPORTS)
def test_every_format_is_exported(server: Served, form: str, tmp_path: Path) -> None:
    """On a series of DICOM files, whose segmentations need them; pictures of a picture."""
    wanted = "deep/b.png" if form == "png" else "ct"
    case = next(c["id"] for c in server.client.cases() if c["name"] == wanted)
    with server.client.open_case(case, "toy") as session:
        size = session.image.geometry.shape
        session.add(limner.Box(tuple(n // 4 for n in size), tuple(n // 2 for n in size)))
        session.predict()
        status, _, content = ask(
            server, "GET", f"/api/v1/sessions/{session.id}/export?format={form}"
        )
        assert status == 200, content
        path = tmp_path / f"x.{form}"
        path.write_bytes(content)
        source = limner.read(server.service.cases.find(case).path)
        found = limner.read_labels(path, like=source).to_array() > 0
        expected = session.labels > 0
        assert expected.any()
        if form == "rtstruct.dcm":  # contours
            assert limner.metrics.dice(found, expected) > 0.98
        else:
            assert np.array_equal(found, expected)


def test_an_unknown_format_is_refused(server: Served, volume: limner.Image) -> None:
    with server.open_session(volume, "toy") as session:
        path = f"/api/v1/sessions/{session.id}/export?format=exe"
        assert "seg.nrrd" in told(ask(server, "GET", path)[2])


def test_progress_is_sent_as_events_and_stops(server: Served) -> None:
    sequence = phantoms.sequence(4, (8, 48, 48))
    with server.open_session(sequence.image, "toy") as session:
        session.add(limner.MaskPrompt(sequence.truth[2] == 1), frame=2)
        base = f"/api/v1/sessions/{session.id}/propagations"
        number = json.loads(ask(server, "POST", base, {})[2])["id"]
        text = ask(server, "GET", f"{base}/{number}/events")[2].decode()
        events = [block.split("\n") for block in text.strip().split("\n\n")]
        assert [e[0] for e in events] == ["event: frame"] * 7 + ["event: end"]
        assert json.loads(events[0][1].removeprefix("data: "))["frame"] == 3
        number = json.loads(ask(server, "POST", base, {"again": True})[2])["id"]
        assert ask(server, "DELETE", f"{base}/{number}")[0] == 200
        assert ask(server, "GET", f"{base}/{number}/events")[0] == 404


def test_a_file_is_uploaded_read_apart_and_used(server: Served, volume: limner.Image) -> None:
    picture = phantoms.image(5, (30, 40)).image
    data = io.BytesIO()
    Picture.fromarray(np.asarray(picture.array, np.uint8)).save(data, "PNG")
    name = "..%2F..%2Fevil%2Fmy%20picture.png"
    status, _, answer = ask(
        server, "POST", f"/api/v1/cases?filename={name}", content=data.getvalue()
    )
    facts = json.loads(answer)
    assert (status, facts["name"]) == (201, "my picture.png")
    with server.client.open_case(facts["id"], "toy") as session:
        session.add(limner.Click((15, 20)))
        assert session.predict().mask.any()


def test_uploads_that_cannot_be_read_leave_nothing(server: Served) -> None:
    before = set(server.service.settings.state.rglob("*"))
    status, _, answer = ask(server, "POST", "/api/v1/cases?filename=a.nii.gz", content=b"\x1f\x8bx")
    assert status == 422
    assert str(server.service.settings.state) not in told(answer)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../x.dcm", b"no dicom")
    assert ask(server, "POST", "/api/v1/cases?filename=a.zip", content=bomb.getvalue())[0] == 422
    assert set(server.service.settings.state.rglob("*")) == before


@pytest.mark.parametrize(
    ("change", "content", "words"),
    [
        ({}, b"no zlib", "not zlib"),
        ({}, zlib.compress(b"abc"), "missing"),
        ({}, zlib.compress(bytes(1 << 20)), "more voxels"),
        ({"dtype": "O"}, b"", "dtype"),
        ({"kind": "thing"}, b"", "kind"),
        ({"num_channels": 0}, b"", "channels"),
        ({"geometry": {}}, b"", "facts"),
    ],
)
def test_voxels_that_are_not_what_they_claim_are_refused(
    server: Served, change: dict[str, Any], content: bytes, words: str
) -> None:
    facts = {**voxels_to_json(phantoms.image(1, (8, 9)).image), **change}
    found = ask(server, "POST", "/api/v1/cases/voxels", content=content, X_Meta=json.dumps(facts))
    assert found[0] == 422
    assert words in told(found[2])


def test_sizes_are_refused_before_memory_is_taken(server: Served) -> None:
    facts = voxels_to_json(phantoms.volume(1, (8, 8, 8)).image)
    facts["geometry"]["shape"] = [100_000, 100_000, 100_000]
    found = ask(server, "POST", "/api/v1/cases/voxels", content=b"", X_Meta=json.dumps(facts))
    assert found[0] == 413


def test_sessions_are_listed_described_and_resumed_by_another_client(
    server: Served, volume: limner.Image
) -> None:
    session = server.open_session(volume, "toy", name="case 7")
    session.add(limner.Click((10, 24, 20)))
    mask = session.predict().mask
    session.close()
    path = f"/api/v1/sessions/{session.id}"
    assert json.loads(ask(server, "PATCH", path, {"status": "done"})[2])["status"] == "done"
    assert ask(server, "PATCH", path, {"status": "?"})[0] == 422
    with limner.connect(server.url, TOKEN) as other:
        kept = {s["id"]: s for s in other.sessions()}[session.id]
        assert (kept["name"], kept["status"]) == ("case 7", "done")
        again = other.resume(session.id)
        assert np.array_equal(again.image.array, volume.array)
        assert np.array_equal(again.predict().mask, mask)
        again.undo()
        again.redo()
        again.discard()
        with pytest.raises(SessionError, match="no session"):
            other.resume(session.id)


def test_sessions_that_are_not_used_go_to_disk_and_come_back(
    tmp_path: Path, volume: limner.Image
) -> None:
    with serve(tmp_path, max_live=2) as server:
        sessions = [server.open_session(volume, "toy") for _ in range(5)]
        for k, session in enumerate(sessions):
            session.add(limner.Click((10, 20 + k, 20)))
        masks = [session.predict().mask for session in sessions]
        assert server.service.sessions.num_live <= 2
        assert server.service.sessions.num_put_to_disk >= 3
        for session, mask in zip(sessions, masks, strict=True):
            session.undo()
            session.redo()
            assert np.array_equal(session.predict().mask, mask)


def test_errors_of_a_session_are_the_same_as_here(server: Served, volume: limner.Image) -> None:
    with server.open_session(volume, "toy") as far, limner.open_session(volume, "toy") as near:
        for wrong in (
            lambda s: s.add(limner.Click((99, 0, 0))),
            lambda s: s.undo(),
            lambda s: s.predict(object_id=0),
            lambda s: s.name(1, " "),
        ):
            said = []
            for session in (far, near):
                with pytest.raises(Exception) as caught:
                    wrong(session)
                said.append((type(caught.value), str(caught.value)))
            assert said[0] == said[1]


def test_connecting_says_what_is_wrong(server: Served) -> None:
    with pytest.raises(SessionError, match="token is needed"):
        limner.connect(server.url, "wrong")
    with pytest.raises(SessionError, match="cannot be reached"):
        limner.connect("http://127.0.0.1:9", TOKEN)
    with pytest.raises(ValueError, match="address"):
        limner.connect("ftp://x", TOKEN)


def test_the_command_line_segments_on_a_server(
    server: Served, volume: limner.Image, tmp_path: Path
) -> None:
    write_image(tmp_path / "v.nii.gz", volume)
    base = ["segment", str(tmp_path / "v.nii.gz"), "--model", "toy", "--click", "10,24,20"]
    far = ["--server", server.url, "--token", TOKEN]
    assert run([*base, "-o", str(tmp_path / "far.nii.gz"), *far]) == 0
    assert run([*base, "-o", str(tmp_path / "near.nii.gz")]) == 0
    masks = [limner.read_labels(tmp_path / f"{n}.nii.gz").to_array() for n in ("far", "near")]
    assert np.array_equal(*masks)
    facts = json.loads((tmp_path / "far.nii.gz.limner.json").read_text())
    assert facts["image"]["path"] == str(tmp_path / "v.nii.gz")
    assert run([*base, "-o", str(tmp_path / "x.nii.gz"), *far, "--device", "cuda"]) == 2


def test_a_server_for_others_asks_for_a_token(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--host", "0.0.0.0", "--no-token", "--state", "/nonexistent"]) == 2
    assert "must ask for a token" in capsys.readouterr().err


def start(state: Path) -> tuple[subprocess.Popen[str], str]:
    """``limner serve`` as a program; returns it with its address."""
    command = [sys.executable, "-m", "limner", "serve", "--port", "0", "--state", str(state)]
    environment = {**os.environ, "LIMNER_TOKEN": TOKEN}
    program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert program.stdout is not None
    line = program.stdout.readline()
    return program, line.split()[3]


@pytest.mark.long
@pytest.mark.slow
def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    image = phantoms.image(3, (96, 80)).image
    acknowledged: list[limner.Click] = []
    session_id = ""
    for number in range(times(1) + 1):
        program, url = start(tmp_path)
        try:
            with limner.connect(url, TOKEN) as client:
                if number == 0:
                    session = client.open_session(image, "toy")
                    session_id = session.id
                else:
                    session = client.resume(session_id, image=image)
                    kept = session.prompts
                    assert kept[: len(acknowledged)] == tuple(acknowledged)
                    assert len(kept) <= len(acknowledged) + 1  # one may have been on its way
                    acknowledged = list(kept)
                timer = threading.Timer(0.2 + 0.05 * (number % 3), program.kill)
                timer.start()
                try:
                    while True:
                        click = limner.Click((len(acknowledged) % 90, 40))
                        session.add(click)
                        acknowledged.append(click)
                        if len(acknowledged) % 5 == 0:
                            session.predict()
                except SessionError:
                    pass
                timer.join()
        finally:
            program.kill()
            program.wait()
            assert program.stdout is not None
            program.stdout.close()
    assert len(acknowledged) > 2


@pytest.mark.slow
def test_a_server_that_is_asked_to_stop_ends_in_order(tmp_path: Path) -> None:
    program, url = start(tmp_path)
    with limner.connect(url, TOKEN) as client:
        session = client.open_session(phantoms.image(3, (96, 80)).image, "toy")
        session.add(limner.Click((48, 40)))
        program.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 30
        while program.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
    assert program.returncode == 0
    assert program.stdout is not None
    program.stdout.close()
    assert not list(tmp_path.rglob("*.lock"))


def test_wrong_prompts_are_named_by_kind(server: Served, volume: limner.Image) -> None:
    with server.open_session(volume, "toy") as session:
        path = f"/api/v1/sessions/{session.id}/prompts"
        for prompt in ({"kind": "spell"}, {"kind": "click"}, {"kind": "click", "at": "x"}):
            status, _, answer = ask(server, "POST", path, {"prompt": prompt})
            assert (status, json.loads(answer)["error"]["type"]) == (422, "PromptError")
