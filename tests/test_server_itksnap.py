"""ITK-SNAP's protocol: its call order replayed as its client sends it, against a session here."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

import limner
from limner import phantoms
from limner.prompts.convert import scribbles_from_mask
from limner.server.viewers.itksnap import make_itksnap_app, read_geometry
from served import Served, listen, serve


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="module")
def door(server: Served) -> Iterator[httpx.Client]:
    with (
        listen(make_itksnap_app(server.service)) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}/", timeout=60) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def image() -> limner.Image:
    found = phantoms.volume(3, (20, 48, 40)).image
    return limner.Image(found.array.astype(np.float32), found.geometry)


def metadata(image: limner.Image) -> dict[str, Any]:
    """As ITK-SNAP states it: x first."""
    affine, spacing = image.geometry.affine, image.geometry.spacing
    axes = affine[:3, :3] / spacing
    return {
        "dimensions": list(image.geometry.shape[::-1]),
        "spacing": list(spacing[::-1]),
        "origin": affine[:3, 3].tolist(),
        "direction": axes[:, ::-1].ravel().tolist(),
        "components_per_pixel": 1,
        "component_type": "float32",
    }


def send(door: httpx.Client, path: str, array: np.ndarray, facts: Any, **query: Any) -> Any:
    content = gzip.compress(array.astype(np.float32).tobytes())
    files = {
        "file": ("image.gz", content, "application/gzip"),
        "metadata": (None, json.dumps(facts), "application/json"),
    }
    return door.post(path, files=files, params=query)


def mask_of(answer: httpx.Response, shape: tuple[int, ...]) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["status"] == "success"
    values = np.frombuffer(gzip.decompress(base64.b64decode(found["result"])), np.int8)
    return values.reshape(shape) > 0


def test_the_call_order_of_itksnap_gives_the_masks_of_a_session_here(
    door: httpx.Client, image: limner.Image
) -> None:
    status = door.get("status").json()
    assert [int(n) for n in status["version"].split(".")] >= [0, 1, 2]
    models = {m["id"]: m for m in door.get("v2/models").json()["models"]}
    assert models["limner-3d"]["dimensions"] == 3
    number = door.get("v2/start_session/limner-3d").json()["session_id"]
    facts = metadata(image)
    upload = send(door, f"upload_raw/{number}", image.array, facts, filename="upload.nii.gz")
    assert upload.status_code == 200, upload.text
    drawn = np.zeros(image.shape)
    drawn[11, 20:28, 18] = 1
    with limner.open_session(image, "limner-3d", keep_masks=True) as session:
        path = f"v2/process_point_interaction/{number}?point=20&point=24&point=10"
        found = mask_of(door.get(f"{path}&foreground=true"), image.shape)
        session.add(limner.Click((10, 24, 20)))
        assert np.array_equal(found, session.predict().mask)
        assert found.any()
        path = f"process_scribble_interaction/{number}"
        found = mask_of(send(door, path, drawn, facts, foreground="false"), image.shape)
        for stroke in scribbles_from_mask(drawn > 0, positive=False):
            session.add(stroke)
        assert np.array_equal(found, session.predict().mask)
    drawn[11, 20:28, 14:22] = 1
    path = f"process_lasso_interaction/{number}"
    assert mask_of(send(door, path, drawn, facts, foreground="true"), image.shape).any()
    assert door.get(f"reset_interactions/{number}").json() == {"status": "success"}
    path = f"process_point_interaction/{number}?x=20&y=24&z=10&foreground=true"
    assert mask_of(door.get(path), image.shape).any()
    assert door.get(f"v2/end_session/{number}").status_code == 200
    assert door.get(path).status_code == 410


def test_a_2d_model_gets_one_slice(door: httpx.Client) -> None:
    picture = np.asarray(phantoms.image(3, (96, 80)).image.array, np.float32)
    number = door.get("v2/start_session/limner-2d").json()["session_id"]
    facts = {"dimensions": [80, 96], "components_per_pixel": 1}
    assert send(door, f"upload_raw/{number}", picture, facts).status_code == 200
    path = f"v2/process_point_interaction/{number}?point=40&point=48&foreground=true"
    found = mask_of(door.get(path), picture.shape)
    with limner.open_session(picture, "limner-2d", keep_masks=True) as session:
        session.add(limner.Click((48, 40)))
        assert np.array_equal(found, session.predict().mask)


def test_the_grid_is_that_of_the_image(image: limner.Image) -> None:
    assert read_geometry(metadata(image), image.shape).is_close(image.geometry)


def test_no_failure_comes_with_200(door: httpx.Client, image: limner.Image) -> None:
    number = door.get("v2/start_session/limner-3d").json()["session_id"]
    point = "process_point_interaction"
    assert door.get("v2/start_session/none").status_code == 404
    assert door.get(f"v2/{point}/xx?point=1&point=1&point=1").status_code == 410
    assert door.get(f"v2/{point}/{number}?point=1&point=1&point=1").status_code == 409
    facts = metadata(image)
    assert send(door, f"upload_raw/{number}", image.array[:5], facts).status_code == 422
    assert send(door, f"upload_raw/{number}", image.array, [1]).status_code == 400
    assert send(door, f"upload_raw/{number}", image.array, {}).status_code == 422
    huge = {**facts, "dimensions": [1 << 20] * 3}
    assert send(door, f"upload_raw/{number}", image.array, huge).status_code == 413
    assert door.post(f"upload_raw/{number}", content=b"x").status_code == 400
    assert send(door, f"upload_raw/{number}", image.array, facts).status_code == 200
    assert door.get(f"v2/{point}/{number}?point=1000&point=1&point=1").status_code == 422
    assert door.get(f"v2/{point}/{number}?point=1&point=1").status_code in (200, 422)
    assert door.get(f"v2/{point}/{number}?point=a").status_code == 422
