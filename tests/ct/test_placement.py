# SPDX-License-Identifier: Apache-2.0
"""A CT becomes the cube it should: in place, complete, without the table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from progressive_cascade.ct.body import find_field_of_view
from progressive_cascade.ct.placement import PreparedCase, place_ct, prepare_case
from progressive_cascade.errors import UserError
from progressive_cascade.io import read_nifti
from tests.support.trunk import CENTER, PIXEL, SLICE, trunk_affine, trunk_hu

GRID = (64, 64, 64)
SPACING = 5.6


def _place(hu: np.ndarray, affine: np.ndarray | None = None, **options) -> PreparedCase:
    return place_ct(
        hu.astype(np.float32),
        trunk_affine(hu.shape) if affine is None else affine,
        **options,
        shape=GRID,
        spacing=SPACING,
    )


def _at(case: PreparedCase, offset: tuple[float, float, float]) -> int:
    """HU at a point given relative to the trunk's centre [mm]."""
    index = np.linalg.solve(case.affine, [*(CENTER + offset), 1.0])[:3]
    return int(case.hu[tuple(np.rint(index).astype(int))])


@pytest.fixture(scope="module")
def thorax() -> PreparedCase:
    return _place(trunk_hu())


def test_the_table_goes_and_the_patient_stays(thorax: PreparedCase) -> None:
    """Table: air; trunk, lungs, spine and the separate arm: as scanned."""
    assert _at(thorax, (0, -95, 0)) == -1000
    assert abs(_at(thorax, (0, 0, 0)) - 40) < 30
    assert abs(_at(thorax, (55, 5, 0)) + 850) < 30
    assert _at(thorax, (0, -50, 0)) > 300
    assert abs(_at(thorax, (145, 0, 0)) - 40) < 30


def test_the_table_stays_on_request() -> None:
    """Without removal it is still there."""
    assert _at(_place(trunk_hu(), remove_table=False), (0, -95, 0)) > -200


def test_the_cube_stays_in_the_patients_world() -> None:
    """Wherever the trunk lies in the scan, its centre keeps its world position, up to a voxel."""
    for shift in (0.0, 24.0):
        case = _place(trunk_hu(shift_mm=shift))
        spine = np.argwhere(case.hu[:, :, 32] > 250).mean(axis=0)
        world = case.affine[:2, :2] @ spine + case.affine[:2, 3]
        np.testing.assert_allclose(world, CENTER[:2] + np.array([shift, -50]), atol=SPACING / 2)


def test_the_isocenter_is_the_bodys_centre_across_and_the_scans_along() -> None:
    """Trunk and arm span -120 to 165 mm; the scan's middle is its centre."""
    np.testing.assert_allclose(_place(trunk_hu()).isocenter, CENTER + np.array([22.5, 0, 0]), atol=PIXEL)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, -1, 1), (1, -1, -1)])
def test_orientation_of_the_file_does_not_matter(thorax: PreparedCase, axes, flips) -> None:
    """Any order and direction of the axes gives the same cube."""
    reorder = np.zeros((4, 4))
    reorder[3, 3] = 1
    for new, (old, flip) in enumerate(zip(axes, flips, strict=True)):
        reorder[old, new] = flip
        reorder[old, 3] = 0 if flip > 0 else (120, 100, 40)[old] - 1
    stored = trunk_hu().transpose(axes)[tuple(slice(None, None, flip) for flip in flips)]
    case = _place(stored, trunk_affine() @ reorder)
    np.testing.assert_allclose(case.affine, thorax.affine, atol=1e-6)
    assert (np.abs(case.hu - thorax.hu) <= 1).all()


def test_a_linear_ramp_is_resampled_exactly() -> None:
    """HU that grow linearly with the world's z are still right in every scanned voxel of the body."""
    hu = trunk_hu(noise=0)
    ramp = np.arange(40) * 2.0
    hu = np.where(hu == 40, ramp, hu)
    case = _place(hu)
    z = case.affine[2, 2] * np.arange(64) + case.affine[2, 3]
    expected = (z - trunk_affine()[2, 3]) / SLICE * 2
    inside = case.valid[32, 32] > 0
    x, y, _ = np.rint(np.linalg.solve(case.affine, [*CENTER, 1.0])[:3]).astype(int)
    scanned = inside & (expected >= 0) & (expected <= 78)
    np.testing.assert_allclose(case.hu[x, y, scanned], expected[scanned], atol=1)


def test_fine_detail_is_averaged_not_aliased() -> None:
    """A checkerboard finer than the grid comes out as its mean."""
    hu = trunk_hu(noise=0)
    checker = np.indices(hu.shape).sum(axis=0) % 2 * 400.0 - 200
    case = _place(np.where(hu == 40, hu + checker, hu))
    x, y, z = np.rint(np.linalg.solve(case.affine, [*CENTER, 1.0])[:3]).astype(int)
    assert np.abs(case.hu[x - 1 : x + 2, y - 3 : y + 4, z - 9 : z + 9] - 40.0).max() < 110


def test_a_short_ct_goes_on_with_its_end_slices(thorax: PreparedCase) -> None:
    """Beyond 200 mm the last slices repeat, marked as not valid, and the manifest's number says how much."""
    assert thorax.z_extent_mm == 200
    assert thorax.repeated_mm == pytest.approx(64 * SPACING - 200)
    x, y = np.rint(np.linalg.solve(thorax.affine, [*CENTER, 1.0])[:2]).astype(int)
    assert thorax.valid[x, y].sum() * SPACING == pytest.approx(200, abs=SPACING)
    assert (thorax.hu[:, :, 0] == thorax.hu[:, :, 1]).all()
    assert thorax.hu[x, y, 0] > 0
    assert thorax.valid[x, y, 0] == 0


def test_a_long_ct_is_cropped_around_its_middle_or_its_lungs() -> None:
    """`center` decides what a cube shorter than the scan shows; it never leaves the scan."""
    hu = trunk_hu((120, 100, 120))
    hu[:, :, :80] = np.where(hu[:, :, :80] < -800, np.where(np.abs(hu[:, :, :80] + 850) < 60, 40, -1000), hu[:, :, :80])
    middle, lungs = (_place(hu, center=center) for center in ("scan", "lungs"))
    assert middle.isocenter[2] == pytest.approx(CENTER[2])
    assert lungs.isocenter[2] == pytest.approx(CENTER[2] + (600 - 64 * SPACING) / 2)
    assert lungs.repeated_mm == 0
    assert lungs.valid[32, 32].all()


def test_the_padding_of_a_round_field_of_view_is_air_and_not_valid() -> None:
    """Whatever constant the scanner padded with."""
    hu = trunk_hu((120, 120, 40))
    x, y = np.indices(hu.shape[:2]) - 59.5
    outside = np.hypot(x, y) > 59
    for padding in (-2000, -3024, -1024):
        padded = hu.clip(-1023)
        padded[outside] = padding
        case = _place(padded)
        assert case.hu[0, 0, 32] == -1000
        assert case.valid[:, :, 32].mean() == pytest.approx(
            np.pi / 4 * (120 * PIXEL) ** 2 / (64 * SPACING) ** 2, abs=0.05
        )


def test_constant_air_around_a_body_is_not_padding() -> None:
    """A CT whose background was set to -1024 was scanned there all the same."""
    assert find_field_of_view(np.where(trunk_hu(noise=0) < -900, -1024, 40)).all()


def test_a_cut_body_is_called_truncated(thorax: PreparedCase) -> None:
    """A field of view narrower than the trunk; lungs that reach its edge stay lung."""
    cut = trunk_hu()[35:85]
    affine = trunk_affine()
    affine[:3, 3] += (35 * PIXEL, 0, 0)
    case = _place(cut, affine)
    assert thorax.truncated == 0
    assert case.truncated > 0.05
    assert abs(_at(case, (65, 5, 0)) + 850) < 60


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda hu: np.interp(hu, (-1000, 400), (0, 255)), "grey levels"),
        (lambda hu: hu + 1024, "-1024 offset"),
        (lambda hu: np.where(hu > 300, np.nan, hu), "NaN"),
        (lambda hu: hu[:, :, :19], "100 mm"),
        (lambda hu: hu[0], "3 dimensions"),
        (lambda hu: np.full_like(hu, -1000), "body"),
    ],
)
def test_what_is_no_ct_of_a_body_is_refused(change, message: str) -> None:
    """With the reason."""
    with pytest.raises(UserError, match=message):
        _place(change(trunk_hu()), trunk_affine())


def test_an_unknown_center_is_refused() -> None:
    """The choices are named."""
    with pytest.raises(UserError, match="scan, lungs"):
        _place(trunk_hu(), center="heart")


def test_a_real_ct_keeps_its_thin_chest_wall_and_loses_its_table(real_cts: Path) -> None:
    """Lungs behind a wall thinner than the table top stay; behind the back there is air."""
    source = real_cts / "thorax_TCGA-34-2605.nii.gz"
    case = prepare_case(source)
    hu, affine = read_nifti(source)
    lung = np.array([[120.0, -20.0, z] for z in (-190.0, -150.0)])
    for point in np.c_[lung * (-1, 1, 1), np.ones(2)]:
        there = tuple(np.rint(np.linalg.solve(affine, point)[:3]).astype(int))
        here = tuple(np.rint(np.linalg.solve(case.affine, point)[:3]).astype(int))
        assert hu[there] < -700
        assert abs(float(case.hu[here]) - float(hu[there])) < 250
        assert case.hu[here] != -1000
    body = case.hu > -500
    assert np.flatnonzero(body.any(axis=(0, 2)))[[0, -1]].tolist() == pytest.approx([47, 205], abs=12)
