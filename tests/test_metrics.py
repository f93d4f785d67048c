"""Measures of agreement, against DeepMind's surface-distance and against MONAI."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limner import metrics
from limner.metrics import _surfaces
from rounds import times

INF = float("inf")

# shape and spacing; several are thin, so that most elements lie at the border
GRIDS = (
    ((40, 50), None),
    ((30, 33), (0.4, 1.7)),
    ((1, 20), (2.0, 0.5)),
    ((2, 2), (1.0, 3.0)),
    ((18, 22, 20), None),
    ((12, 30, 26), (5.0, 0.7, 0.9)),
    ((1, 12, 15), (2.5, 1.0, 1.0)),
    ((3, 3, 3), (0.3, 0.4, 0.5)),
)


def blob(shape: tuple[int, ...], seed: int, quantile: float | None = None) -> np.ndarray:
    """A random mask of smooth parts, often cut by the border; never empty."""
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(0.3, 3.0))
    return field >= np.quantile(field, rng.uniform(0.1, 0.97) if quantile is None else quantile)


@pytest.fixture(
    params=[
        pytest.param((k, kind), id=f"{'x'.join(map(str, shape))}-{kind}")
        for k, (shape, _) in enumerate(GRIDS)
        for kind in (0, 1, 2, "same", "corner")
    ]
)
def pair(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray, Any]:
    """Two masks and their spacing."""
    k, kind = request.param
    shape, spacing = GRIDS[k]
    a = blob(shape, 10 * k)
    if kind == "same":
        return a, a.copy(), spacing
    if kind == "corner":
        corner = np.zeros(shape, dtype=bool)
        corner.flat[-1] = True
        return a, corner, spacing
    return blob(shape, 10 * k + kind), blob(shape, 1000 + 10 * k + kind), spacing


class SurfaceDistance:
    """DeepMind's package. Its use of old SciPy names warns."""

    def __init__(self, a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...] | None) -> None:
        from surface_distance import metrics as reference

        self._reference = reference
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.distances = reference.compute_surface_distances(a, b, spacing or (1,) * a.ndim)

    def hausdorff(self, percent: float) -> float:
        return float(self._reference.compute_robust_hausdorff(self.distances, percent))

    def nsd(self, tolerance: float) -> float:
        return float(self._reference.compute_surface_dice_at_tolerance(self.distances, tolerance))

    def assd(self) -> float:
        d = self.distances
        total = d["surfel_areas_gt"].sum() + d["surfel_areas_pred"].sum()
        one_way = d["distances_gt_to_pred"] @ d["surfel_areas_gt"]
        return float((one_way + d["distances_pred_to_gt"] @ d["surfel_areas_pred"]) / total)


class Monai:
    """MONAI's functions on one pair of masks. Importing and calling it warns."""

    def __init__(self, a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...] | None) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch
            from monai import metrics as reference
        self._reference = reference
        self._masks = [torch.from_numpy(m[None, None].astype(np.float32)) for m in (a, b)]
        self._spacing = list(spacing) if spacing else None

    def _call(self, name: str, **arguments: Any) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = getattr(self._reference, name)(
                *self._masks, include_background=True, **arguments
            )
        return float(value.reshape(-1)[0])

    def hausdorff(self, percentile: float) -> float:
        return self._call(
            "compute_hausdorff_distance", percentile=percentile, spacing=self._spacing
        )

    def assd(self) -> float:
        return self._call("compute_average_surface_distance", symmetric=True, spacing=self._spacing)

    def nsd(self, tolerance: float, *, subvoxels: bool) -> float:
        return self._call(
            "compute_surface_dice",
            class_thresholds=[tolerance],
            spacing=self._spacing,
            use_subvoxels=subvoxels,
        )

    def dice(self) -> float:
        return self._call("compute_dice")

    def iou(self) -> float:
        return self._call("compute_iou")


@pytest.mark.parametrize(
    "spacing", [(1.0, 1.0, 1.0), (5.0, 0.7, 0.7), (0.3, 2.0, 1.1), (1.0, 30.0, 0.2)]
)
def test_surfel_areas_of_all_neighbourhoods(spacing: tuple[float, ...]) -> None:
    from surface_distance import lookup_tables

    steps = np.array(spacing)
    areas = np.linalg.norm(_surfaces.surfel_normals(3) * (steps.prod() / steps), axis=2).sum(axis=1)
    expected = lookup_tables.create_table_neighbour_code_to_surface_area(spacing)
    np.testing.assert_allclose(areas, expected, rtol=1e-12, atol=1e-12)

    steps = steps[:2]
    lengths = np.linalg.norm(_surfaces.surfel_normals(2) * (steps.prod() / steps), axis=2).sum(
        axis=1
    )
    expected = lookup_tables.create_table_neighbour_code_to_contour_length(spacing[:2])
    np.testing.assert_allclose(lengths, expected, rtol=1e-12, atol=1e-12)


def test_surfel_areas_of_half_the_codes_are_those_of_marching_cubes() -> None:
    """The other independent source: scikit-image's triangulation, without looking at any table."""
    from skimage import measure

    areas = np.linalg.norm(_surfaces.surfel_normals(3), axis=2).sum(axis=1)
    for code in range(1, 255):
        assert areas[code] == pytest.approx(areas[255 - code])
        bits = np.array([code >> (7 - k) & 1 for k in range(8)], dtype=float).reshape(2, 2, 2)
        if bits.sum() <= 4:
            corners, faces, _, _ = measure.marching_cubes(bits, 0.5, method="lorensen")
            assert areas[code] == pytest.approx(measure.mesh_surface_area(corners, faces), abs=1e-6)


def test_surfels_equal_surface_distance(pair: tuple[np.ndarray, np.ndarray, Any]) -> None:
    a, b, spacing = pair
    reference = SurfaceDistance(a, b, spacing)
    ours = metrics.surface_distances(a, b, spacing)
    d = reference.distances
    np.testing.assert_allclose(ours.a_to_b, d["distances_gt_to_pred"], rtol=1e-12)
    np.testing.assert_allclose(ours.b_to_a, d["distances_pred_to_gt"], rtol=1e-12)
    assert ours.a_weights.sum() == pytest.approx(d["surfel_areas_gt"].sum())
    for percentile in (0, 50, 95, 99):
        value = metrics.hausdorff(a, b, spacing, percentile=percentile)
        assert value == pytest.approx(reference.hausdorff(percentile), abs=1e-9)
    assert metrics.hd95(a, b, spacing) == pytest.approx(reference.hausdorff(95), abs=1e-9)
    assert metrics.assd(a, b, spacing) == pytest.approx(reference.assd(), abs=1e-9)
    for tolerance in (0.0, 0.7, 1.0, 2.0, 2.1, 5.0):
        value = metrics.nsd(a, b, spacing, tolerance=tolerance)
        assert value == pytest.approx(reference.nsd(tolerance), abs=1e-9)


@pytest.mark.slow
def test_voxels_equal_monai(pair: tuple[np.ndarray, np.ndarray, Any]) -> None:
    a, b, spacing = pair
    reference = Monai(a, b, spacing)
    assert metrics.dice(a, b) == pytest.approx(reference.dice(), abs=1e-6)
    assert metrics.iou(a, b) == pytest.approx(reference.iou(), abs=1e-6)
    for percentile in (50, 95, 100):
        value = metrics.hausdorff(a, b, spacing, percentile=percentile, definition="voxels")
        assert value == pytest.approx(reference.hausdorff(percentile), rel=1e-5, abs=1e-6)
    value = metrics.assd(a, b, spacing, definition="voxels")
    assert value == pytest.approx(reference.assd(), rel=1e-5, abs=1e-6)
    # Not on a distance that occurs: MONAI rounds distances to 32 bits before it compares.
    for tolerance in (0.65, 1.123, 2.345):
        value = metrics.nsd(a, b, spacing, tolerance=tolerance, definition="voxels")
        assert value == pytest.approx(reference.nsd(tolerance, subvoxels=False), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2d", "3d"])
def test_real_masks(shared_data: Path, name: str) -> None:
    import nibabel
    from PIL import Image
    from scipy import ndimage

    cases: list[tuple[np.ndarray, tuple[float, ...] | None]] = []
    if name == "2d":
        for folder in ("photo_foot_ulcer", "us_fetal_head_hc18"):
            for path in sorted((shared_data / "2d" / folder / "masks").glob("*.png"))[:2]:
                cases.append((np.asarray(Image.open(path)) > 0, None))
    else:
        for path in sorted((shared_data / "3d/hippocampus_mr/labels").glob("*.nii.gz"))[:2]:
            labels = nibabel.load(path)
            cases.append((np.asarray(labels.dataobj) > 0, labels.header.get_zooms()[:3]))
        path = sorted((shared_data / "3d/sarcoma_ct/labels").glob("*.nii.gz"))[0]
        labels = nibabel.load(path)
        cases.append((np.asarray(labels.dataobj) > 0, labels.header.get_zooms()[:3]))
    assert cases
    for mask, zooms in cases:
        spacing = None if zooms is None else tuple(float(z) for z in zooms)
        for other in (
            ndimage.binary_dilation(mask),
            ndimage.binary_erosion(mask, iterations=2),
            np.roll(mask, 3, axis=-1),
        ):
            surfels, voxels = SurfaceDistance(mask, other, spacing), Monai(mask, other, spacing)
            ours = metrics.surface_distances(mask, other, spacing)
            assert ours.hausdorff(95) == pytest.approx(surfels.hausdorff(95), abs=1e-6)
            assert ours.assd() == pytest.approx(surfels.assd(), abs=1e-6)
            for tolerance in (1.0, 2.0):
                assert ours.nsd(tolerance) == pytest.approx(surfels.nsd(tolerance), abs=1e-6)
            ours = metrics.surface_distances(mask, other, spacing, definition="voxels")
            # MONAI interpolates between ranks in 32 bits, which shows where there are many.
            assert ours.hausdorff(95) == pytest.approx(voxels.hausdorff(95), rel=1e-4)
            assert ours.assd() == pytest.approx(voxels.assd(), rel=1e-5)
            assert ours.nsd(1.01) == pytest.approx(voxels.nsd(1.01, subvoxels=False), abs=1e-5)
            assert metrics.dice(mask, other) == pytest.approx(voxels.dice(), abs=1e-6)


@pytest.mark.slow
def test_subvoxel_nsd_of_monai_agrees() -> None:
    a, b = blob((20, 24, 22), 1), blob((20, 24, 22), 2)
    spacing = (2.0, 0.8, 1.1)
    expected = Monai(a, b, spacing).nsd(1.5, subvoxels=True)
    assert metrics.nsd(a, b, spacing, tolerance=1.5) == pytest.approx(expected, abs=1e-5)


def test_definitions_differ() -> None:
    """Under anisotropic spacing a count of voxels favours the finely sampled directions."""
    a, b = blob((12, 40, 40), 1, 0.8), blob((12, 40, 40), 2, 0.8)
    spacing = (5.0, 0.7, 0.7)
    for measure in (metrics.hd95, metrics.assd):
        surfels = measure(a, b, spacing)
        voxels = measure(a, b, spacing, definition="voxels")
        assert abs(surfels - voxels) > 0.01 * voxels


@pytest.mark.parametrize("definition", ["surfels", "voxels"])
@pytest.mark.parametrize("shape", [(9, 8), (5, 6, 7)])
def test_empty_masks(definition: Any, shape: tuple[int, ...]) -> None:
    empty, full = np.zeros(shape, dtype=bool), np.ones(shape, dtype=bool)
    assert metrics.dice(empty, empty) == metrics.iou(empty, empty) == 1.0
    assert metrics.hd95(empty, empty, definition=definition) == 0.0
    assert metrics.assd(empty, empty, definition=definition) == 0.0
    assert metrics.nsd(empty, empty, tolerance=1, definition=definition) == 1.0
    for a, b in ((empty, full), (full, empty)):
        assert metrics.dice(a, b) == metrics.iou(a, b) == 0.0
        for percentile in (0, 50, 95, 100):
            value = metrics.hausdorff(a, b, percentile=percentile, definition=definition)
            assert value == INF
        assert metrics.assd(a, b, definition=definition) == INF
        assert metrics.nsd(a, b, tolerance=100, definition=definition) == 0.0


@pytest.mark.parametrize("definition", ["surfels", "voxels"])
@given(grid=st.sampled_from(GRIDS), seed=st.integers(0, 10**6), scale=st.floats(0.1, 10))
@settings(max_examples=times(40))
def test_laws(definition: Any, grid: Any, seed: int, scale: float) -> None:
    shape, spacing = grid
    spacing = spacing or (1.0,) * len(shape)
    a, b = blob(shape, seed), blob(shape, seed + 1)
    there = metrics.surface_distances(a, b, spacing, definition=definition)
    back = metrics.surface_distances(b, a, spacing, definition=definition)
    np.testing.assert_array_equal(there.a_to_b, back.b_to_a)
    assert there.hausdorff(95) == back.hausdorff(95)
    assert there.assd() == pytest.approx(back.assd())
    assert 0 <= there.nsd(1.0) <= 1
    assert there.nsd(1.0) == pytest.approx(back.nsd(1.0))
    assert there.assd() <= there.hausdorff() + 1e-12
    assert there.hausdorff(50) <= there.hausdorff(95) <= there.hausdorff()
    assert there.nsd(there.hausdorff()) == pytest.approx(1.0)
    itself = metrics.surface_distances(a, a, spacing, definition=definition)
    assert itself.hausdorff() == itself.assd() == 0.0
    assert itself.nsd(0.0) == 1.0
    larger = metrics.surface_distances(a, b, [s * scale for s in spacing], definition=definition)
    np.testing.assert_allclose(larger.a_to_b, there.a_to_b * scale, atol=1e-9)
    padded = metrics.surface_distances(np.pad(a, 3), np.pad(b, 3), spacing, definition=definition)
    np.testing.assert_allclose(padded.a_to_b, there.a_to_b)
    d, j = metrics.dice(a, b), metrics.iou(a, b)
    assert d == pytest.approx(2 * j / (1 + j))


def test_known_values() -> None:
    a, b = np.zeros((2, 10, 20, 20), dtype=bool)
    a[2:8, 5:15, 5:15] = True
    b[2:8, 5:15, 7:17] = True
    assert metrics.dice(a, b) == pytest.approx(0.8)
    assert metrics.iou(a, b) == pytest.approx(2 / 3)
    assert metrics.hausdorff(a, b, (3, 1, 0.5)) == 1.0
    assert metrics.nsd(a, b, (3, 1, 0.5), tolerance=1.0) == 1.0
    area = metrics.surface_distances(a, a, (3, 1, 0.5)).a_weights.sum()
    box = 2 * (10 * 5 + 18 * 5 + 18 * 10)
    assert 0.9 * box < area < box  # marching cubes bevels the edges


def test_labels_and_lists_are_masks() -> None:
    a = [[0, 1, 2], [0, 0, 3]]
    b = np.array([[0, 1, 1], [0, 0, 0]], dtype=np.int64)
    assert metrics.dice(a, b) == pytest.approx(0.8)
    assert metrics.nsd(a, np.asarray(a, dtype=float), tolerance=0) == 1.0
    assert metrics.dice(np.ones(4), np.ones(4)) == 1.0


def test_wrong_arguments_are_refused() -> None:
    a = np.ones((4, 5), dtype=bool)
    for function in (metrics.dice, metrics.iou, metrics.hd95, metrics.assd):
        with pytest.raises(ValueError, match=r"shapes \(4, 5\) and \(5, 4\)"):
            function(a, a.T)
    with pytest.raises(ValueError, match="2D and 3D"):
        metrics.hd95(np.ones(3), np.ones(3))
    for spacing in ((1.0,), (1.0, 0.0), (1.0, -1.0), (1.0, float("nan")), (1.0, 1.0, 1.0)):
        with pytest.raises(ValueError, match="spacing"):
            metrics.hd95(a, a, spacing)
    with pytest.raises(ValueError, match="use 'surfels' or 'voxels'"):
        metrics.hd95(a, a, definition="edges")  # type: ignore[arg-type]
    for percentile in (-1, 101, float("nan")):
        with pytest.raises(ValueError, match="percentile"):
            metrics.hausdorff(a, a, percentile=percentile)
    for tolerance in (-1, float("nan"), INF):
        with pytest.raises(ValueError, match="tolerance"):
            metrics.nsd(a, a, tolerance=tolerance)


@pytest.mark.parametrize("factor", [1, 100_000])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.uint32])
def test_evaluate_scores_every_label(factor: int, dtype: Any) -> None:
    if factor * 3 > np.iinfo(dtype).max:
        pytest.skip("the labels do not fit the type")
    rng = np.random.default_rng(0)
    target = (rng.integers(0, 4, (6, 7, 8)) * factor).astype(dtype)
    prediction = np.where(rng.random(target.shape) < 0.8, target, 0).astype(dtype)
    prediction[target == 3 * factor] = 0
    spacing = (3.0, 1.0, 1.0)
    scores = metrics.evaluate(prediction, target, spacing, tolerance=1.0)
    assert list(scores) == [factor, 2 * factor, 3 * factor]
    for label, score in scores.items():
        a, b = prediction == label, target == label
        assert score == metrics.Scores(
            metrics.dice(a, b),
            metrics.iou(a, b),
            metrics.hd95(a, b, spacing),
            metrics.assd(a, b, spacing),
            metrics.nsd(a, b, spacing, tolerance=1.0),
        )
    assert scores[3 * factor] == metrics.Scores(0.0, 0.0, INF, INF, 0.0)
    chosen = metrics.evaluate(prediction, target, tolerance=1.0, labels=(7, factor))
    assert list(chosen) == [7, factor]
    assert chosen[7] == metrics.Scores(1.0, 1.0, 0.0, 0.0, 1.0)


def test_evaluate_takes_masks_and_refuses_probabilities() -> None:
    mask = blob((10, 12), 0)
    assert metrics.evaluate(mask, mask, tolerance=1)[1].dice == 1.0
    assert metrics.evaluate(mask, np.zeros_like(mask), tolerance=1) == {}
    negative = np.where(mask, -2, 0)
    assert metrics.evaluate(negative, negative, tolerance=1)[-2].nsd == 1.0
    with pytest.raises(ValueError, match="integer labels"):
        metrics.evaluate(mask * 0.5, mask, tolerance=1)
    with pytest.raises(ValueError, match="cannot be compared"):
        metrics.evaluate(mask, mask[:5], tolerance=1)


def test_import_costs_numpy_only() -> None:
    code = (
        "import sys, limner.metrics; print([m for m in ('scipy', 'skimage') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------- what is a mask


MEASURES = {
    "dice": metrics.dice,
    "iou": metrics.iou,
    "hausdorff": metrics.hausdorff,
    "hd95": metrics.hd95,
    "assd": metrics.assd,
    "nsd": lambda a, b: metrics.nsd(a, b, tolerance=1.0),
    "surface_distances": metrics.surface_distances,
    "evaluate": lambda a, b: metrics.evaluate(a, b, tolerance=1.0),
}


@pytest.mark.parametrize("name", MEASURES)
def test_labels_lists_and_arrays_are_the_same_masks(name: str) -> None:
    from limner.geometry import Geometry
    from limner.io import Image, Labels

    a, b = blob((12, 14), 1).astype(np.uint8), blob((12, 14), 2).astype(np.uint8)
    assert not (a == b).all()
    grid = Geometry(a.shape)
    expected = MEASURES[name](a, b)
    forms = (
        (Labels(grid, array=a), Labels(grid, masks={1: b > 0})),
        (Image(a, grid), b),
        (a.tolist(), b.tolist()),
    )
    for first, second in forms:
        found = MEASURES[name](first, second)
        if name == "surface_distances":
            np.testing.assert_array_equal(found.a_to_b, expected.a_to_b)
        else:
            assert found == expected


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize(
    "wrong",
    ["mask.png", None, object(), 1, True, np.float32(1), ["a", "b"], [None, 1], {1: [0, 1]}],
    ids=lambda v: type(v).__name__,
)
def test_what_is_no_mask_is_refused(name: str, wrong: Any) -> None:
    good = np.ones((3, 3), dtype=bool)
    for pair in ((wrong, wrong), (wrong, good), (good, wrong)):
        with pytest.raises(TypeError, match="numbers or booleans"):
            MEASURES[name](*pair)


# -- J and F of DAVIS ---------------------------------------------------------------------------


def outline(mask: np.ndarray) -> np.ndarray:
    """Pixels that differ from a neighbour to the right, below, or both, one by one."""
    found = np.zeros(mask.shape, dtype=bool)
    rows, columns = mask.shape
    for r, c in np.ndindex(*mask.shape):
        for down, right in ((0, 1), (1, 0), (1, 1)):
            # Beyond the last row (column) there is the same row (column) once more.
            other = mask[min(r + down, rows - 1), min(c + right, columns - 1)]
            found[r, c] |= other != mask[r, c]
    return found


def brute_f(a: np.ndarray, b: np.ndarray, radius: float) -> float:
    """F by comparing every pixel of an outline with every one of the other."""
    one, two = (np.argwhere(outline(m)) for m in (a, b))
    if not len(one) or not len(two):
        return float(len(one) == len(two))
    gaps = np.sqrt(((one[:, None] - two[None]) ** 2).sum(axis=-1))
    precision, recall = ((gaps.min(axis=k) <= radius).mean() for k in (1, 0))
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


@pytest.mark.parametrize("seed", range(12))
def test_the_boundary_f_measure_is_that_of_its_definition(seed: int) -> None:
    shape = ((40, 50), (64, 30), (9, 200), (1, 30))[seed % 4]
    a, b = blob(shape, seed), blob(shape, 100 + seed)
    radius = math.ceil(0.008 * math.hypot(*shape))
    assert metrics.boundary_f(a, b) == pytest.approx(brute_f(a, b, radius))
    assert metrics.boundary_f(a, b, tolerance=3) == pytest.approx(brute_f(a, b, 3))
    assert metrics.boundary_f(a, a) == 1.0
    assert metrics.boundary_f(a, b) == pytest.approx(metrics.boundary_f(b, a))


def test_the_boundary_f_measure_tolerates_a_small_shift() -> None:
    mask = np.zeros((200, 200), dtype=bool)
    mask[50:100, 60:120] = True  # 0.008 of the diagonal is 2.3 pixels, and 3 are near
    assert metrics.boundary_f(np.roll(mask, 3, axis=0), mask) == 1.0
    assert 0 < metrics.boundary_f(np.roll(mask, 4, axis=0), mask) < 1.0
    assert metrics.boundary_f(np.roll(mask, 60, axis=0), mask) == 0.0


def test_the_boundary_f_measure_of_nothing() -> None:
    nothing, full = np.zeros((30, 30), dtype=bool), np.ones((30, 30), dtype=bool)
    some = nothing.copy()
    some[5:9, 5:9] = True
    assert metrics.boundary_f(nothing, nothing) == 1.0
    assert metrics.boundary_f(full, full) == 1.0
    assert metrics.boundary_f(some, nothing) == metrics.boundary_f(nothing, some) == 0.0
    with pytest.raises(ValueError, match="2D"):
        metrics.boundary_f(np.zeros((2, 3, 4)), np.zeros((2, 3, 4)))
    with pytest.raises(ValueError, match="tolerance"):
        metrics.boundary_f(some, some, tolerance=-1)


def test_the_jaccard_index_is_intersection_over_union() -> None:
    a, b = np.zeros((10, 10), dtype=bool), np.zeros((10, 10), dtype=bool)
    a[:4], b[2:6] = True, True
    assert metrics.jaccard(a, b) == metrics.iou(a, b) == pytest.approx(1 / 3)
