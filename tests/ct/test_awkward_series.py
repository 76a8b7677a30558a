# SPDX-License-Identifier: Apache-2.0
"""DICOM series as hospitals hand them over: mended and said, or named."""

from __future__ import annotations

import csv
from collections.abc import Callable
from copy import deepcopy
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from progressive_cascade.ct import placement
from progressive_cascade.ct.files import read_ct, read_scan
from progressive_cascade.ct.placement import place_ct
from progressive_cascade.ct.prepare import prepare_dataset
from progressive_cascade.ct.series import find_dicom_series, read_dicom_series
from progressive_cascade.ct.sources import find_sources
from progressive_cascade.errors import UserError
from tests.support.ct_series import SHAPE, Slices, ct_slices, enhanced, fill, save_series
from tests.support.trunk import trunk_hu

pydicom = pytest.importorskip("pydicom")
sitk = pytest.importorskip("SimpleITK")

PADDED = (slice(0, 8), slice(0, 8))
Mend = Callable[[Slices], None]


def _hu() -> np.ndarray:
    """A trunk on coarse pixels, every slice another noise."""
    return np.rint(trunk_hu((120, 100, SHAPE[2]))[::2, ::2]).clip(-1024)


def _nothing(images: Slices) -> None:
    pass


def _reversed(images: Slices) -> None:
    images.reverse()
    for number, ds in enumerate(images):
        ds.InstanceNumber = number + 1


def _doubled(images: Slices) -> None:
    for ds in images[3:6]:
        images.append(deepcopy(ds))
        images[-1].SOPInstanceUID = pydicom.uid.generate_uid()


def _localizer(images: Slices) -> None:
    (ds,) = ct_slices(_hu()[:, :, :1], series=images[0].SeriesInstanceUID)
    ds.ImageType, ds.ImageOrientationPatient = ["ORIGINAL", "PRIMARY", "LOCALIZER"], [1, 0, 0, 0, 0, -1]
    images.insert(0, ds)


def _padded(images: Slices) -> None:
    """Corners that nobody measured hold a value that would be metal."""
    for k, ds in enumerate(images):
        hu = _hu()[:, :, k]
        hu[PADDED] = 40000
        fill(ds, hu)
        ds.add_new("PixelPaddingValue", "US", 41024)


def _half_slope(images: Slices) -> None:
    for k, ds in enumerate(images):
        ds.RescaleSlope = 0.5
        fill(ds, _hu()[:, :, k])


def _jpeg_2000(images: Slices) -> None:
    for ds in images:
        ds.compress(pydicom.uid.JPEG2000Lossless, generate_instance_uid=False)


def _two_series(images: Slices) -> None:
    images.extend(ct_slices(_hu(), series="1.2.9"))


def _feet_first(images: Slices) -> None:
    for ds in images:
        ds.PatientPosition = "FFS"
    _reversed(images)


def _prone(images: Slices) -> None:
    for ds in images:
        ds.PatientPosition, ds.ImageOrientationPatient = "HFP", [-1, 0, 0, 0, -1, 0]


def _no_spacing(images: Slices) -> None:
    for ds in images:
        del ds.SliceThickness


def _missing(images: Slices) -> None:
    del images[7]


def _jitter(images: Slices) -> None:
    images[5].ImagePositionPatient[2] += 1.5


def _variable(images: Slices) -> None:
    for k, ds in enumerate(images[12:]):
        ds.ImagePositionPatient[2] += 5.0 * k


def _one_slice(images: Slices) -> None:
    del images[1:]


def _tilted(images: Slices) -> None:
    images[:] = ct_slices(_hu(), tilt=12.0)


def _multi_frame(images: Slices) -> None:
    images[:] = [enhanced(images)]


# What is done to a plain series, the note that its manifest line has, and why it is skipped, if it is.
SEVENTEEN: dict[str, tuple[Mend, str, str]] = {
    "plain": (_nothing, "", ""),
    "missing slice": (_missing, "1 missing slices filled in from their neighbours, at z = 135.0 mm", ""),
    "duplicate slices": (_doubled, "3 slices there twice, used once", ""),
    "tilt 12 degrees": (_tilted, "", ""),
    "reversed order": (_reversed, "", ""),
    "localizer inside": (_localizer, "1 localizer images left out", ""),
    "padding value": (_padded, "1536 voxels (2.1%) were padding or not a number and are taken for air", ""),
    "slope 0.5": (_half_slope, "", ""),
    "JPEG 2000": (_jpeg_2000, "", ""),
    "two series in one folder": (_two_series, "", ""),
    "one slice": (_one_slice, "", "a single slice"),
    "jitter": (_jitter, "", "got one 1.50 mm out of line at z = 126.5 mm where slices are 5.00 mm apart"),
    "variable spacing": (_variable, "", "got gaps of 5.00 to 10.00 mm, the widest behind z = 160.0 mm"),
    "no SpacingBetweenSlices": (_no_spacing, "", ""),
    "feet first": (_feet_first, "", ""),
    "prone": (_prone, "", ""),
    "enhanced multi-frame": (_multi_frame, "", ""),
}


@pytest.fixture(scope="module")
def seventeen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each of the series in a folder of its own, of a patient of its own."""
    folder = tmp_path_factory.mktemp("seventeen")
    for number, (kind, (mend, _, _)) in enumerate(SEVENTEEN.items()):
        images = ct_slices(_hu(), series=f"1.2.{number + 100}")
        mend(images)
        for ds in images:
            ds.PatientID = kind
        save_series(images, folder / kind)
    return folder


@pytest.mark.parametrize("kind", SEVENTEEN)
def test_a_series_ends_in_its_sources_hu_or_is_named(kind: str, seventeen: Path) -> None:
    """Within 1 HU where it was measured, whatever came in between; or one line says what is wrong."""
    _, _, reason = SEVENTEEN[kind]
    found = find_dicom_series(seventeen / kind)
    assert len(found) == (2 if kind == "two series in one folder" else 1)
    for series in found:
        if reason:
            with pytest.raises(UserError) as refusal:
                read_dicom_series(series)
            assert reason in str(refusal.value)
            continue
        scan = read_dicom_series(series)
        assert scan.hu.shape == SHAPE
        measured = np.isfinite(scan.hu)
        assert measured[PADDED].all() == (kind != "padding value")
        if kind == "missing slice":
            measured[:, :, 7] = False
        assert measured.mean() > 0.95
        np.testing.assert_allclose(scan.hu[measured], _hu()[measured], atol=1)


@pytest.mark.usefixtures("small_cube")
def test_the_manifest_says_what_became_of_each_series(
    seventeen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line for each of the eighteen series in seventeen folders: mended and said, or skipped with the place."""
    prints = count()  # they show one patient, and here each shall count
    monkeypatch.setattr(placement, "_fingerprint", lambda hu: str(next(prints)))
    prepare_dataset(seventeen, tmp_path / "out", keep_names=True)
    with (tmp_path / "out" / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 18
    for kind, (_, note, reason) in SEVENTEEN.items():
        row = next(row for row in rows if Path(row["source"]).name == kind)
        assert reason in row["reason"], kind
        assert note in row["note"], kind
        assert (row["status"] == "skipped") == bool(reason), kind


@pytest.mark.parametrize("tilt", [0.0, 12.0])
def test_voxels_lie_where_they_were_scanned(tilt: float, tmp_path: Path) -> None:
    """Rows, columns and slices keep their places, sheared where the gantry leant."""
    _, affine = read_ct(save_series(ct_slices(_hu(), tilt=tilt), tmp_path))
    y, z = 40 - 6 * np.cos(np.deg2rad(tilt)), 100 + 5 * 7 - 6 * np.sin(np.deg2rad(tilt))
    np.testing.assert_allclose(affine @ [2, 1, 7, 1], [30 - 12, y, z + 12 * np.sin(np.deg2rad(tilt)), 1], atol=0.01)


def test_a_prone_patient_lies_where_the_header_says(tmp_path: Path) -> None:
    """Row and column directions are turned by half a circle, and so is the affine."""
    images = ct_slices(_hu())
    _prone(images)
    _, affine = read_ct(save_series(images, tmp_path))
    np.testing.assert_allclose(affine @ [1, 2, 3, 1], [36, 52, 115, 1], atol=0.01)


def test_a_tilted_series_is_sheared_into_the_same_patient() -> None:
    """A smooth patient scanned straight and at 12 degrees gives the same cube, to a few HU inside the body."""

    def patient(affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
        grid = np.stack([*np.meshgrid(*map(np.arange, shape), indexing="ij"), np.ones(shape)]).reshape(4, -1)
        x, y, z = (affine @ grid)[:3].reshape(3, *shape)
        inside = (x / 120) ** 2 + (y / 80) ** 2 < 1
        return np.where(inside, 100 * np.sin(x / 40) + 80 * np.cos(y / 30) + 120 * np.sin(z / 35), -1000.0)

    shape, cubes = (100, 90, 60), []
    for degrees in (0.0, 12.0):
        cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        affine = np.array([[3, 0, 0, 0], [0, 3 * cosine, 0, 0], [0, 3 * sine, 4, 0], [0, 0, 0, 1.0]])
        affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
        cubes.append(place_ct(patient(affine, shape), affine, shape=(32, 32, 32), spacing=5.6))
    straight, tilted = cubes
    core = (slice(10, 22), slice(10, 22), slice(10, 22))
    np.testing.assert_allclose(straight.affine, tilted.affine, atol=3)
    expected = patient(tilted.affine, (32, 32, 32))[core]
    assert np.abs(tilted.hu[core] - expected).max() < 12
    assert np.abs(straight.hu[core] - patient(straight.affine, (32, 32, 32))[core]).max() < 12


def test_a_padding_value_that_tissue_can_have_is_not_believed(tmp_path: Path) -> None:
    """A wrong tag must not make holes in the patient; the note says what was not done."""
    images = ct_slices(_hu())
    for ds in images:
        ds.add_new("PixelPaddingValue", "US", 1064)  # 40 HU
    scan = read_scan(save_series(images, tmp_path))
    np.testing.assert_allclose(scan.hu, _hu(), atol=1)
    assert scan.notes == ("the padding value 40 HU may be tissue and is not taken for padding",)


def test_two_slices_missing_together_are_named_with_their_place(tmp_path: Path) -> None:
    """What lies between is too far from either neighbour to be filled in."""
    images = ct_slices(_hu())
    del images[7:9]
    with pytest.raises(UserError, match=r"widest behind z = 130.0 mm \(2 slices missing there\?\)"):
        read_ct(save_series(images, tmp_path))


def test_frames_in_any_order_with_values_of_their_own_are_one_volume(tmp_path: Path) -> None:
    """Slope and place are read frame by frame, and a localizer frame is left out."""
    hu = _hu()
    images = ct_slices(hu)
    images[4].RescaleSlope = 0.5
    fill(images[4], hu[:, :, 4])
    images[0].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    images.insert(3, images.pop(9))
    scan = read_scan(save_series([enhanced(images)], tmp_path))
    np.testing.assert_allclose(scan.hu, hu[:, :, 1:], atol=1)
    np.testing.assert_allclose(scan.affine @ [0, 0, 0, 1], [30, 40, 105, 1], atol=0.01)
    assert scan.notes == ("1 localizer images left out",)


def test_two_phases_at_one_place_are_refused(tmp_path: Path) -> None:
    """Of two different images at one position neither is dropped silently, in files and in frames."""
    images = [*ct_slices(_hu()), *ct_slices(_hu() + 5)]
    for folder, stored in (("files", images), ("frames", [enhanced(images)])):
        (series,) = find_dicom_series(save_series(stored, tmp_path / folder))
        assert series.rejection == "24 positions hold two different images (several phases?)"


def test_of_two_series_in_one_folder_each_is_a_case(tmp_path: Path) -> None:
    """And a command that wants one CT says that there are two."""
    save_series([*ct_slices(_hu()), *ct_slices(_hu(), series="1.2.9")], tmp_path)
    assert len(find_sources(tmp_path)) == 2
    with pytest.raises(UserError, match="got 2 CT series"):
        read_ct(tmp_path)
