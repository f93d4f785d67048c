"""The window of a CT image that a session and a preview use where the user names none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import limner
from limner.adapters.default_window import SOFT_TISSUE, choose_window
from limner.cli.__main__ import run
from limner.geometry import Geometry
from limner.io import write_image
from limner.io.image import Image
from limner.sessions.history.manifest import Options


def body(
    modality: str | None, *, dtype: str = "i2", lung: bool = False, **metadata: object
) -> Image:
    """A body of 40 HU in air, with an organ of 100 HU and a rib."""
    pixels = np.full((12, 40, 40), -1000, dtype)
    pixels[:, 8:32, 8:32] = 40
    pixels[:, 14:22, 14:22] = 100
    pixels[:, 8:10, 8:32] = 700
    pixels[:, 24:30, 9:31] = -800 if lung else 40
    grid = Geometry.from_spacing(pixels.shape, (2.0, 1.0, 1.0))
    return Image(pixels, grid, modality=modality, metadata=metadata)


HEADER = {"window_center": [40.0, 500.0], "window_width": [300.0, 2000.0]}


@pytest.mark.parametrize(
    ("image", "window", "limits", "source"),
    [
        (body("CT", **HEADER), None, (-110.0, 190.0), "header"),
        (body("CT", **HEADER), "lung", (-1350.0, 150.0), "given"),
        (body("CT", **HEADER), "robust", None, "robust"),
        (body("CT", window_center=[0.0], window_width=[0.0]), None, SOFT_TISSUE, "soft tissue"),
        (body("CT", window_center=[40.0]), None, SOFT_TISSUE, "soft tissue"),
        (body(None), None, SOFT_TISSUE, "soft tissue"),
        (body(None, dtype="f4"), None, SOFT_TISSUE, "soft tissue"),
        (body("CT", lung=True), None, None, "robust"),
        (body("MR", **HEADER), None, None, "robust"),
        (Image(np.arange(300, dtype="i2").reshape(3, 10, 10), Geometry((3, 10, 10))), None, None,
         "robust"),
        (Image(np.zeros((9, 9), "u1"), Geometry((9, 9)), modality="CT"), None, None, "robust"),
    ],
)  # fmt: skip
def test_a_window_is_asked_for_or_the_files_own_or_for_soft_tissue(
    image: Image, window: str | None, limits: tuple[float, float] | None, source: str
) -> None:
    assert choose_window(image, window) == (limits, source)
    with limner.open_session(image, "toy", window=window) as session:
        assert (session.options.window, session.options.window_source) == (limits, source)


def test_nobody_counts_as_having_asked_for_a_default() -> None:
    """Published models that scale CT in their own way go on doing so."""
    for window, asked in ((None, False), ((-100, 200), True)):
        with limner.open_session(body("CT"), "toy", window=window) as session:
            view = session.views.view(None)
            shown = view.crop(view.whole, (12, 40, 40))
            assert shown.windowed is asked
            assert shown.intensity == (window or SOFT_TISSUE)


def test_a_journal_and_its_manifest_bring_the_same_window_again(tmp_path: Path) -> None:
    journal, image = tmp_path / "a.limner", body("CT", **HEADER)
    with limner.open_session(image, "toy", journal=journal) as session:
        before = session.options
    with limner.resume(journal, image=image) as session:
        assert session.options == before
    old = replace(before, window=None, window_source=None).to_json()
    del old["window_source"]  # of a journal before there was a default
    assert Options.from_json(old).window is None


def test_the_command_line_says_which_window_it_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out, look = tmp_path / "ct.nii.gz", tmp_path / "m.nii.gz", tmp_path / "p.png"
    write_image(source, body(None))
    arguments = ["segment", str(source), "--click", "6,18,18", "--model", "toy", "-o", str(out)]
    assert run([*arguments, "--preview", str(look)]) == 0
    assert "window -160 to 240 (soft tissue, as this is CT; --window" in capsys.readouterr().err
    assert run([*arguments, "--window", "robust"]) == 0
    assert "soft tissue" not in capsys.readouterr().err
    again = [
        "segment",
        str(source),
        "--prompts",
        f"{out}.limner.json",
        "-o",
        str(tmp_path / "n.nii.gz"),
    ]
    assert run(again) == 0
    assert "soft tissue" not in capsys.readouterr().err


def test_previews_use_it_too() -> None:
    image, nothing = body("CT"), np.zeros((12, 40, 40), np.uint8)
    default = limner.render_overlay(image, nothing)
    assert np.array_equal(default, limner.render_overlay(image, nothing, window="abdomen"))
    assert not np.array_equal(default, limner.render_overlay(image, nothing, window="robust"))
