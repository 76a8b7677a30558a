# SPDX-License-Identifier: Apache-2.0
"""A CT becomes the cube it should: in place, complete, without the table; and an archive becomes a dataset."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from progressive_cascade.body import find_field_of_view
from progressive_cascade.data import load_datalist
from progressive_cascade.dicom import find_dicom_series, read_ct
from progressive_cascade.errors import UserError
from progressive_cascade.io import read_json, read_nifti, save_nifti
from progressive_cascade.placement import PreparedCase, place_ct, prepare_case
from progressive_cascade.preparation import Split, find_sources, prepare_dataset

REAL_CT = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "ct"
GRID = (64, 64, 64)
SPACING = 5.6
PIXEL, SLICE = 3.0, 5.0
CENTER = np.array([30.0, -100.0, -500.0])


def _affine(shape: tuple[int, int, int] = (120, 100, 40)) -> np.ndarray:
    affine = np.diag([PIXEL, PIXEL, SLICE, 1.0])
    affine[:3, 3] = CENTER - affine.diagonal()[:3] * (np.array(shape) - 1) / 2
    return affine


def _thorax(shape: tuple[int, int, int] = (120, 100, 40), *, shift_mm: float = 0.0, noise: float = 8.0) -> np.ndarray:
    """An elliptic trunk with lungs, a spine, an arm to the right, and a table under it; around the array's middle."""
    x, y = np.meshgrid(*((np.arange(n) - (n - 1) / 2) * PIXEL for n in shape[:2]), indexing="ij")
    x = x - shift_mm
    hu = np.full(shape[:2], -1000.0)
    hu[(x / 120) ** 2 + (y / 80) ** 2 < 1] = 40
    for side in (-1, 1):
        hu[((x + side * 55) / 40) ** 2 + ((y - 5) / 50) ** 2 < 1] = -850
    hu[np.hypot(x, y + 50) < 15] = 400
    hu[np.hypot(x - 145, y) < 20] = 40
    hu[(np.abs(y + 95) < 4) & (np.abs(x) < 140)] = 100
    volume = np.repeat(hu[:, :, None], shape[2], axis=2)
    return volume + np.random.default_rng(0).normal(scale=noise, size=shape) if noise else volume


def _place(hu: np.ndarray, affine: np.ndarray | None = None, **options) -> PreparedCase:
    return place_ct(
        hu.astype(np.float32), _affine(hu.shape) if affine is None else affine, **options, shape=GRID, spacing=SPACING
    )


def _at(case: PreparedCase, offset: tuple[float, float, float]) -> int:
    """HU at a point given relative to the trunk's centre [mm]."""
    index = np.linalg.solve(case.affine, [*(CENTER + offset), 1.0])[:3]
    return int(case.hu[tuple(np.rint(index).astype(int))])


@pytest.fixture(scope="module")
def thorax() -> PreparedCase:
    return _place(_thorax())


def test_the_table_goes_and_the_patient_stays(thorax: PreparedCase) -> None:
    """Table: air; trunk, lungs, spine and the separate arm: as scanned."""
    assert _at(thorax, (0, -95, 0)) == -1000
    assert abs(_at(thorax, (0, 0, 0)) - 40) < 30
    assert abs(_at(thorax, (55, 5, 0)) + 850) < 30
    assert _at(thorax, (0, -50, 0)) > 300
    assert abs(_at(thorax, (145, 0, 0)) - 40) < 30


def test_the_table_stays_on_request() -> None:
    """Without removal it is still there."""
    assert _at(_place(_thorax(), remove_table=False), (0, -95, 0)) > -200


def test_the_cube_stays_in_the_patients_world() -> None:
    """Wherever the trunk lies in the scan, its centre keeps its world position, up to a voxel."""
    for shift in (0.0, 24.0):
        case = _place(_thorax(shift_mm=shift))
        spine = np.argwhere(case.hu[:, :, 32] > 250).mean(axis=0)
        world = case.affine[:2, :2] @ spine + case.affine[:2, 3]
        np.testing.assert_allclose(world, CENTER[:2] + np.array([shift, -50]), atol=SPACING / 2)


def test_the_isocenter_is_the_bodys_centre_across_and_the_scans_along() -> None:
    """Trunk and arm span -120 to 165 mm; the scan's middle is its centre."""
    np.testing.assert_allclose(_place(_thorax()).isocenter, CENTER + np.array([22.5, 0, 0]), atol=PIXEL)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, -1, 1), (1, -1, -1)])
def test_orientation_of_the_file_does_not_matter(thorax: PreparedCase, axes, flips) -> None:
    """Any order and direction of the axes gives the same cube."""
    reorder = np.zeros((4, 4))
    reorder[3, 3] = 1
    for new, (old, flip) in enumerate(zip(axes, flips, strict=True)):
        reorder[old, new] = flip
        reorder[old, 3] = 0 if flip > 0 else (120, 100, 40)[old] - 1
    stored = _thorax().transpose(axes)[tuple(slice(None, None, flip) for flip in flips)]
    case = _place(stored, _affine() @ reorder)
    np.testing.assert_allclose(case.affine, thorax.affine, atol=1e-6)
    assert (np.abs(case.hu - thorax.hu) <= 1).all()


def test_a_linear_ramp_is_resampled_exactly() -> None:
    """HU that grow linearly with the world's z are still right in every scanned voxel of the body."""
    hu = _thorax(noise=0)
    ramp = np.arange(40) * 2.0
    hu = np.where(hu == 40, ramp, hu)
    case = _place(hu)
    z = case.affine[2, 2] * np.arange(64) + case.affine[2, 3]
    expected = (z - _affine()[2, 3]) / SLICE * 2
    inside = case.valid[32, 32] > 0
    x, y, _ = np.rint(np.linalg.solve(case.affine, [*CENTER, 1.0])[:3]).astype(int)
    scanned = inside & (expected >= 0) & (expected <= 78)
    np.testing.assert_allclose(case.hu[x, y, scanned], expected[scanned], atol=1)


def test_fine_detail_is_averaged_not_aliased() -> None:
    """A checkerboard finer than the grid comes out as its mean."""
    hu = _thorax(noise=0)
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
    hu = _thorax((120, 100, 120))
    hu[:, :, :80] = np.where(hu[:, :, :80] < -800, np.where(np.abs(hu[:, :, :80] + 850) < 60, 40, -1000), hu[:, :, :80])
    middle, lungs = (_place(hu, center=center) for center in ("scan", "lungs"))
    assert middle.isocenter[2] == pytest.approx(CENTER[2])
    assert lungs.isocenter[2] == pytest.approx(CENTER[2] + (600 - 64 * SPACING) / 2)
    assert lungs.repeated_mm == 0
    assert lungs.valid[32, 32].all()


def test_the_padding_of_a_round_field_of_view_is_air_and_not_valid() -> None:
    """Whatever constant the scanner padded with."""
    hu = _thorax((120, 120, 40))
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
    assert find_field_of_view(np.where(_thorax(noise=0) < -900, -1024, 40)).all()


def test_a_cut_body_is_called_truncated(thorax: PreparedCase) -> None:
    """A field of view narrower than the trunk; lungs that reach its edge stay lung."""
    cut = _thorax()[35:85]
    affine = _affine()
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
        _place(change(_thorax()), _affine())


def test_an_unknown_center_is_refused() -> None:
    """The choices are named."""
    with pytest.raises(UserError, match="scan, lungs"):
        _place(_thorax(), center="heart")


def _write_dicom(folder: Path, hu: np.ndarray, *, patient: str, modality: str = "CT", skip: int | None = None) -> None:
    """Writes a CT series of axial slices, feet to head, as a scanner would."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True)
    series, study, frame = (generate_uid() for _ in range(3))
    affine = np.diag([-1, -1, 1, 1]) @ _affine(hu.shape)
    for k in range(hu.shape[2]):
        if k == skip:
            continue
        meta = pydicom.dataset.FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid()
        ds = pydicom.Dataset()
        ds.file_meta = meta
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.FrameOfReferenceUID = series, study, frame
        ds.Modality, ds.PatientID, ds.ImageType = modality, patient, ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.Rows, ds.Columns = hu.shape[1], hu.shape[0]
        # RAS columns run to the right, DICOM's x to the left.
        ds.ImageOrientationPatient = [-1, 0, 0, 0, -1, 0]
        ds.ImagePositionPatient = [float(v) for v in (affine @ [0, 0, k, 1])[:3]]
        ds.PixelSpacing, ds.SliceThickness, ds.InstanceNumber = [PIXEL, PIXEL], SLICE, hu.shape[2] - k
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
        ds.PixelData = (np.rint(hu[:, :, k].T) + 1024).clip(0).astype(np.uint16).tobytes()
        ds.save_as(folder / f"{k:03}.dcm", enforce_file_format=True)


def test_a_dicom_series_reads_as_the_nifti_of_the_same_ct(tmp_path: Path) -> None:
    """Values and world position agree."""
    pytest.importorskip("SimpleITK")
    hu = _thorax((40, 30, 24)).round()
    _write_dicom(tmp_path / "a", hu, patient="P1")
    array, affine = read_ct(tmp_path)
    np.testing.assert_allclose(affine, _affine(hu.shape), atol=1e-4)
    np.testing.assert_array_equal(array, hu.clip(-1024))


def test_a_dicom_series_with_a_missing_slice_is_refused(tmp_path: Path) -> None:
    """A gap would deform the patient."""
    pytest.importorskip("SimpleITK")
    _write_dicom(tmp_path / "a", _thorax((40, 30, 24)), patient="P1", skip=7)
    with pytest.raises(UserError, match="evenly spaced"):
        read_ct(tmp_path)


def test_dicom_series_that_are_no_ct_are_found_with_a_reason(tmp_path: Path) -> None:
    """Every series of the tree is listed, and each knows its patient."""
    pytest.importorskip("SimpleITK")
    _write_dicom(tmp_path / "x" / "a", _thorax((24, 20, 4)), patient="P1")
    _write_dicom(tmp_path / "x" / "b", _thorax((24, 20, 4)), patient="P 2", modality="MR")
    found = {series.patient: series.rejection for series in find_dicom_series(tmp_path)}
    assert found == {"P1": None, "P 2": "modality MR"}
    assert [source.patient for source in find_sources(tmp_path)] == ["P1", "P_2"]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients, one of them with two CTs, and one file that is no image."""
    folder = tmp_path_factory.mktemp("archive")
    hu = _thorax((60, 50, 24)).astype(np.int16)
    affine = _affine() @ np.diag([2, 2, 1.5, 1])
    for name in ("p1_a", "p1_b", "p2_a"):
        save_nifti(hu[:, :, :2] if name == "p1_b" else hu, affine, folder / f"{name}.nii.gz")
    (folder / "p3_a.nii.gz").write_bytes(b"broken")
    return folder


def test_an_archive_becomes_a_dataset_with_a_manifest(archive: Path, tmp_path: Path) -> None:
    """Good cases are listed by section, bad ones have a reason, and files agree with the datalist."""
    split = Split(training=("p1",), test=("p2",))
    seen: list[str] = []
    prepare_dataset(archive, tmp_path, split=split, patient_pattern=r"p\d", progress=lambda row: seen.append(row.case))
    assert seen == ["p1_a", "p1_b", "p2_a", "p3_a"]
    with (tmp_path / "manifest.csv").open() as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert [rows[case]["split"] for case in seen] == ["training", "", "test", ""]
    assert "100 mm" in rows["p1_b"]["reason"]
    assert "not named" in rows["p3_a"]["reason"]
    item = load_datalist(tmp_path, "training")[0]
    label, affine = read_nifti(item["label"])
    valid, valid_affine = read_nifti(item["valid"])
    assert label.shape == valid.shape == (256, 256, 256)
    np.testing.assert_allclose(affine, valid_affine)
    assert read_json(tmp_path / "datalist.json")["numTraining"] == 1


def test_an_archive_with_nothing_usable_is_one_clear_error(archive: Path, tmp_path: Path) -> None:
    """The manifest still tells why."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "p3.nii.gz").write_bytes(b"broken")
    with pytest.raises(UserError, match="usable CT"):
        prepare_dataset(tmp_path / "in", tmp_path / "out")
    assert "readable NIfTI" in (tmp_path / "out" / "manifest.csv").read_text()
    with pytest.raises(UserError, match=r"unknown .*nobody"):
        prepare_dataset(archive, tmp_path / "out", split=Split(test=("nobody",)))


def test_sources_are_missing_empty_or_named_uniquely(archive: Path, tmp_path: Path) -> None:
    """File names that repeat in folders are told apart by the folder, which is then the patient."""
    with pytest.raises(FileNotFoundError, match="absent"):
        find_sources(tmp_path / "absent")
    with pytest.raises(UserError, match="neither"):
        find_sources(tmp_path)
    for name in ("a/ct.nii.gz", "b/ct.nii.gz", "b/ct 2.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = {(source.case, source.patient) for source in find_sources(tmp_path)}
    assert found == {("a_ct", "a"), ("b_ct", "b"), ("b_ct_2", "b")}
    with pytest.raises(UserError, match="regular expression"):
        find_sources(archive, patient_pattern="(")


def test_split_is_seeded_disjoint_and_complete() -> None:
    """Same seed, same sections; every patient in one; fractions kept; training never empty."""
    patients = {f"p{i}" for i in range(50)}
    sections = Split(seed=3).assign(patients)
    assert sections == Split(seed=3).assign(patients)
    assert sections != Split(seed=4).assign(patients)
    assert set(sections) == patients
    assert [list(sections.values()).count(s) for s in ("training", "validation", "test")] == [40, 5, 5]
    for number, expected in ((1, ["training"]), (2, ["test", "training"]), (3, ["test", "training", "validation"])):
        assert sorted(Split().assign({f"p{i}" for i in range(number)}).values()) == expected


def test_split_keeps_named_patients_and_refuses_contradictions() -> None:
    """Named sections are not drawn for; a patient named twice or impossible fractions are errors."""
    sections = Split(validation=("p1",), test=("p2",)).assign({f"p{i}" for i in range(9)})
    assert [p for p, s in sections.items() if s != "training"] == ["p1", "p2"]
    assert not Split(training=("p1",)).wants("p2")
    with pytest.raises(UserError, match="p1"):
        Split(training=("p1",), test=("p1",))
    with pytest.raises(UserError, match="fractions"):
        Split(validation_fraction=0.5, test_fraction=0.5)


@pytest.mark.skipif(not REAL_CT.is_dir(), reason="no real CTs beside the checkout (shared/data/ct)")
def test_a_real_ct_keeps_its_thin_chest_wall_and_loses_its_table() -> None:
    """Lungs behind a wall thinner than the table top stay; behind the back there is air."""
    source = REAL_CT / "thorax_TCGA-34-2605.nii.gz"
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
