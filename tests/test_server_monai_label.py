"""MONAI Label's REST protocol: the real client class, against the session here."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import limner
from limner import phantoms
from limner.errors import PromptError
from limner.io import write_image
from limner.server.multipart import read_parts, write_parts
from limner.server.viewers.monai_label import read_prompts
from served import TOKEN, Served, serve


@pytest.fixture(scope="module")
def volume() -> limner.Image:
    return phantoms.volume(3, (20, 48, 40)).image


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, volume: limner.Image) -> Iterator[Served]:
    studies = tmp_path_factory.mktemp("studies")
    write_image(studies / "case 1.nii.gz", volume)
    with serve(tmp_path_factory.mktemp("state"), studies=studies) as running:
        yield running


@pytest.fixture
def client(server: Served, tmp_path: Path) -> Any:
    """The client class of the wheel, logged in."""
    pytest.importorskip("requests")
    found = pytest.importorskip("monailabel.client").MONAILabelClient(
        server.url, tmpdir=str(tmp_path)
    )
    assert found.auth_enabled()
    found.update_auth(found.auth_token("anybody", TOKEN))
    assert found.auth_valid_token()
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_client_segments_by_clicks(client: Any, server: Served, volume: limner.Image) -> None:
    info = client.info()
    assert isinstance(info["labels"], list)
    assert info["models"]["limner-3d"]["dimension"] == 3
    case = client.next_sample("first", {})["id"]
    params = {"foreground": [[20, 24, 10]], "background": [[4, 3, 2]]}
    file, result = client.infer("toy", case, params)
    assert result["label_names"] == {"object": 1}
    with limner.open_session(volume, "toy") as session:
        session.add(limner.Click((10, 24, 20)))
        session.add(limner.Click((2, 3, 4), positive=False))
        expected = session.predict().mask
    assert expected.any()
    assert np.array_equal(limner.read_labels(file, like=volume).to_array() > 0, expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_session_is_made_after_a_call_with_a_token(
    client: Any, volume: limner.Image, tmp_path: Path
) -> None:
    """The client then announces another boundary than it uses."""
    path = tmp_path / "my case.nii.gz"
    write_image(path, volume)
    client.infer("toy", client.next_sample("first", {})["id"], {"foreground": [[20, 24, 10]]})
    number = client.create_session(str(path))["session_id"]
    file, _ = client.infer("toy", "", {"foreground": [[20, 24, 10]]}, session_id=number)
    assert limner.read_labels(file, like=volume).to_array().any()
    assert client.get_session(number)["image"]
    client.remove_session(number)


def test_a_wrong_password_and_no_token_are_refused(server: Served) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    for method, path, body in (
        ("GET", "/info/", None),
        ("POST", "/auth/token", "username=a&password=b&grant_type=password"),
    ):
        connection.request(method, path, body)
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["error"]["type"]) == (401, "Refused")
        connection.close()


def test_coordinates_are_x_first_and_boxes_either_way_round() -> None:
    found = read_prompts({"foreground": [[5, 6, 7]], "roi": [9, 1, 2, 8, 3, 7]}, (20, 20, 20))
    assert found == [limner.Box((3, 2, 1), (8, 9, 10)), limner.Click((7, 6, 5))]
    assert read_prompts({"roi": [1, 2, 30, 40]}, (60, 80)) == [limner.Box((2, 1), (41, 31))]
    for wrong in ({}, {"foreground": [["x"]]}, {"foreground": 5}):
        with pytest.raises(PromptError):
            read_prompts(wrong, (20, 20, 20))


def test_forms_are_read_by_their_own_boundary() -> None:
    body, _ = write_parts(b'{"a":1}', "x.nrrd", b"\r\n--not the boundary\r\n\x00")
    parts = read_parts(body)
    assert parts["params"].content == b'{"a":1}'
    assert (parts["image"].filename, parts["image"].content) == (
        "x.nrrd",
        b"\r\n--not the boundary\r\n\x00",
    )
