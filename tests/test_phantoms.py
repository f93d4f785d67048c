"""Generated images: the same for the same seed, with the truth they claim."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from limner import phantoms
from limner.phantoms import Phantom

MAKERS = {
    "grey": lambda seed: phantoms.image(seed, (96, 120)),
    "color": lambda seed: phantoms.image(seed, (96, 120), color=True),
    "ct": lambda seed: phantoms.volume(seed, (24, 40, 44)),
    "mr": lambda seed: phantoms.volume(seed, (24, 40, 44), hounsfield=False),
    "sequence": lambda seed: phantoms.sequence(seed, (9, 64, 72)),
}
every_maker = pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)


@every_maker
def test_same_seed_same_phantom(maker) -> None:
    first, again, other = maker(3), maker(3), maker(4)
    assert np.array_equal(first.image.array, again.image.array)
    assert np.array_equal(first.truth, again.truth)
    assert first.image.geometry == again.image.geometry
    assert not np.array_equal(first.truth, other.truth)


@every_maker
def test_truth_fits_the_image(maker) -> None:
    phantom: Phantom = maker(5)
    assert phantom.truth.shape == phantom.image.geometry.shape
    assert phantom.truth.dtype == np.uint8
    assert set(np.unique(phantom.truth)) == {0, *phantom.names}
    assert len(phantom.names) >= 2
    assert phantom.labels.name(1) == phantom.names[1]
    assert phantom.image.array.std() > 1


@every_maker
def test_objects_differ_from_their_surroundings(maker) -> None:
    phantom = maker(6)
    array = phantom.image.array.astype(float)
    grey = array if phantom.image.num_channels is None else array.mean(axis=-1)
    target = phantom.truth == 1
    ring = ndimage.binary_dilation(target, iterations=4) & (phantom.truth == 0)
    assert abs(np.median(grey[target]) - np.median(grey[ring])) > 0.5 * grey[target].std()


def test_a_generator_is_advanced() -> None:
    rng = np.random.default_rng(0)
    first, second = (phantoms.image(rng, (32, 32)) for _ in range(2))
    assert not np.array_equal(first.image.array, second.image.array)


def test_kinds_types_and_ranges() -> None:
    ct = phantoms.volume(1, (24, 40, 44))
    assert ct.image.dtype == np.int16
    assert ct.image.modality == "CT"
    air = ct.image.array[:, 0, 0]
    assert ct.image.array.min() >= -1024
    assert abs(float(air.mean()) + 1000) < 40
    liver = ct.image.array[ct.truth == 1].astype(float)
    assert 60 < np.median(liver) < 160
    assert phantoms.volume(1, (24, 40, 44), hounsfield=False).image.dtype == np.uint16
    picture = phantoms.image(1, (40, 50), color=True)
    assert picture.image.shape == (40, 50, 3)
    assert picture.image.dtype == np.uint8
    assert not picture.image.geometry.has_spacing
    assert phantoms.sequence(1, (3, 40, 40)).image.kind == "video"


def test_volumes_are_anisotropic_and_oblique() -> None:
    tilted = phantoms.volume(2, (16, 32, 32), spacing=(5.0, 1.0, 1.5)).image.geometry
    assert np.allclose(tilted.spacing, (5.0, 1.0, 1.5))
    assert tilted.is_orthogonal
    assert np.abs(tilted.direction).max(axis=0).min() < 0.9999
    straight = phantoms.volume(2, (16, 32, 32), oblique=False).image.geometry
    assert straight.orientation == "SPL"
    assert np.allclose(np.abs(straight.direction).max(axis=0), 1.0)


def test_partial_volume_makes_soft_borders() -> None:
    """Where two tissues share a pixel its intensity lies between theirs."""
    phantom = phantoms.volume(8, (24, 48, 48))
    spine = phantom.truth == 4
    core = ndimage.binary_erosion(spine, iterations=2)
    rim = spine & ~ndimage.binary_erosion(spine)
    array = phantom.image.array.astype(float)
    assert array[rim].mean() < array[core].mean() - 30


def test_the_sequence_moves_and_deforms() -> None:
    phantom = phantoms.sequence(4, (13, 96, 96))
    areas = (phantom.truth == 1).sum(axis=(1, 2))
    assert areas.min() > 50
    assert areas.max() > 1.15 * areas.min()
    centres = [ndimage.center_of_mass(frame == 1) for frame in phantom.truth]
    steps = np.linalg.norm(np.diff(centres, axis=0), axis=1)
    assert np.linalg.norm(np.subtract(centres[-1], centres[0])) > 4
    assert steps.max() < 10  # no jumps between frames
    assert phantoms.sequence(4, (1, 32, 32)).truth.shape == (1, 32, 32)


@pytest.mark.parametrize(
    "call",
    [
        lambda: phantoms.image(0, (4, 40)),
        lambda: phantoms.image(0, (40, 40, 40)),
        lambda: phantoms.volume(0, (40, 40)),
        lambda: phantoms.sequence(0, (0, 40, 40)),
    ],
)
def test_impossible_shapes_are_refused(call) -> None:
    with pytest.raises(ValueError, match=r"not|least"):
        call()
