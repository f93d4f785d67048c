"""nnInteractive v2: the real client of 3D Slicer and napari, against the session here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import limner
from limner import phantoms
from limner.errors import FormatError
from limner.geometry import Geometry
from limner.prompts.convert import scribbles_from_mask
from limner.server.failures import Refused
from limner.server.packed_nnia import pack_nnia, unpack_nnia
from served import TOKEN, Served, serve

remote = pytest.importorskip("nnInteractive.inference.remote")
serialization = pytest.importorskip("nnInteractive.inference.remote.serialization")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="module")
def array() -> np.ndarray:
    return np.ascontiguousarray(phantoms.volume(3, (20, 48, 40)).image.array)


@pytest.fixture
def client(server: Served, array: np.ndarray) -> Iterator[Any]:
    """With an image and a mask, as viewers begin."""
    session = remote.nnInteractiveRemoteInferenceSession(server.url, api_key=TOKEN)
    session.set_do_autozoom(True)
    session.set_image(array[None], {"spacing": np.array([3.0, 1.0, 1.0])})
    session.set_target_buffer(np.zeros(array.shape, np.uint8))
    yield session
    session.close()


def local(array: np.ndarray) -> limner.Session:
    """The same session here."""
    image = limner.Image(array, Geometry.from_spacing(array.shape, (3.0, 1.0, 1.0)))
    return limner.open_session(image, keep_masks=True)


def test_all_interactions_give_the_masks_of_a_session_here(client: Any, array: np.ndarray) -> None:
    crop = np.zeros((1, 9, 9), np.uint8)
    crop[0, 4, 1:8] = 1
    drawn = np.zeros(array.shape, bool)
    drawn[11:12, 20:29, 16:25] = crop
    with local(array) as session:

        def same() -> None:
            assert np.array_equal(client.target_buffer > 0, session.predict().mask)

        client.add_point_interaction((np.float64(10.4), 24, 20), True)
        session.add(limner.Click((10, 24, 20)))
        same()
        assert client.target_buffer.any()
        client.add_bbox_interaction([[5, 15], [10.2, 29.8], [8, 30]], True)
        session.add(limner.Box((5, 10, 8), (15, 30, 30)))
        same()
        client.add_point_interaction((2, 3, 4), False)
        session.add(limner.Click((2, 3, 4), positive=False))
        same()
        client.add_scribble_interaction(crop, True, interaction_bbox=[[11, 12], [20, 29], [16, 25]])
        for stroke in scribbles_from_mask(drawn, positive=True):
            session.add(stroke)
        same()
        client.add_scribble_interaction(drawn, False)
        for stroke in scribbles_from_mask(drawn, positive=False):
            session.add(stroke)
        same()
        for count in (1, 1, 1, 1):
            assert client.undo()
            for _ in range(count):
                session.undo()
            same()
        assert client.undo()
        assert not client.target_buffer.any()
        assert not client.undo()


def test_a_lasso_is_taken_and_undone(client: Any, array: np.ndarray) -> None:
    drawn = np.zeros(array.shape, bool)
    drawn[10, 15:32, 12:28] = True
    client.add_lasso_interaction(drawn, True)
    first = client.target_buffer.copy()
    assert first.any()
    client.add_lasso_interaction(drawn, False)
    assert client.undo()
    assert np.array_equal(client.target_buffer, first)


def test_queued_interactions_are_answered_by_predict(client: Any) -> None:
    client.add_point_interaction((10, 24, 20), True, run_prediction=False)
    assert not client.target_buffer.any()
    client._predict()
    assert client.target_buffer.any()


def test_another_segment_keeps_the_one_before(
    client: Any, server: Served, array: np.ndarray
) -> None:
    client.add_point_interaction((10, 24, 20), True)
    first = client.target_buffer.copy()
    client.reset_interactions()
    start = np.zeros(array.shape, np.uint8)
    start[8:12, 8:20, 8:20] = 1
    client.add_initial_seg_interaction(start)
    assert np.array_equal(client.target_buffer, start)
    client.add_point_interaction((10, 14, 14), True)
    second = client.target_buffer.copy()
    assert second.any()
    assert client.undo()
    assert np.array_equal(client.target_buffer, start)
    session_id = server.client.sessions()[-1]["id"]
    kept = server.client.resume(session_id).export()
    assert np.array_equal(kept.mask(1), first > 0)


def test_one_slice_is_worked_on_as_a_2d_image(server: Served) -> None:
    picture = np.asarray(phantoms.image(3, (96, 80)).image.array)
    session = remote.nnInteractiveRemoteInferenceSession(server.url, api_key=TOKEN)
    try:
        session.set_image(picture[None, None], {"spacing": [1, 1, 1]})
        session.set_target_buffer(np.zeros((1, *picture.shape), np.uint8))
        session.add_bbox_interaction([[0, 1], [30, 60], [20, 60]], True)
        with limner.open_session(picture, keep_masks=True) as here:
            here.add(limner.Box((30, 20), (60, 60)))
            assert np.array_equal(session.target_buffer[0] > 0, here.predict().mask)
    finally:
        session.close()


def test_leases_are_told_and_end(client: Any) -> None:
    assert client.heartbeat() > 0
    assert client.lease_status()["remaining_seconds"] > 0
    assert client.license
    assert len(client.preferred_scribble_thickness) == 3


def test_wrong_tokens_and_leases_are_refused(server: Served) -> None:
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        remote.nnInteractiveRemoteInferenceSession(server.url, api_key="wrong")
    session = remote.nnInteractiveRemoteInferenceSession(server.url, api_key=TOKEN)
    with pytest.raises(httpx.HTTPStatusError, match="409"):
        session._post_json("/add_point_interaction", {"coordinates": [1, 2, 3]})
    session.close()
    headers = {"Authorization": f"Bearer {TOKEN}"}
    answer = httpx.post(f"{server.url}/undo", json={}, headers=headers)
    assert answer.status_code == 410
    assert "lease" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("add_point_interaction", {}),
        ("add_point_interaction", {"coordinates": [1, 2]}),
        ("add_point_interaction", {"coordinates": ["x", 2, None]}),
        ("add_bbox_interaction", {"bbox_coords": [[1, 2]]}),
        ("add_bbox_interaction", {"bbox_coords": 5}),
        ("set_target_buffer", {"shape": [1], "dtype": "uint8"}),
        ("set_target_buffer", {"shape": [20, 48, 40], "dtype": "object"}),
        ("predict", [1]),
    ],
)
def test_what_is_malformed_is_a_4xx_with_a_detail(client: Any, path: str, body: Any) -> None:
    answer = client._http.post(f"/{path}", content=json.dumps(body))
    assert 400 <= answer.status_code < 500
    assert answer.json()["detail"]


@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    dtype=st.sampled_from(["bool", "uint8", "int16", "float32", "uint64"]),
)
def test_arrays_are_read_and_written_as_the_client_does(shape: list[int], dtype: str) -> None:
    values = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    ours, theirs = pack_nnia(values), serialization.pack_array(values)
    assert np.array_equal(serialization.unpack_array(ours), values)
    found = unpack_nnia(theirs, max_values=10**6, ndim=len(shape))
    assert found.dtype == values.dtype
    assert np.array_equal(found, values)


@given(content=st.binary(max_size=80), cut=st.integers(0, 200))
def test_damaged_arrays_are_refused(content: bytes, cut: int) -> None:
    whole = pack_nnia(np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    for damaged in (content, b"NNIA\1" + content, whole[: cut % len(whole)]):
        with pytest.raises((FormatError, Refused)):
            unpack_nnia(damaged, max_values=1000, ndim=3)


def test_a_large_claim_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    whole = bytearray(pack_nnia(np.zeros((1, 1, 1), np.uint8)))
    whole[13:21] = (1 << 60).to_bytes(8, "little")
    with pytest.raises(Refused, match="more than"):
        unpack_nnia(bytes(whole), max_values=1000, ndim=3)
