# SPDX-License-Identifier: Apache-2.0
"""Files are complete or absent, and what is wrong with one is told in one line."""

from __future__ import annotations

import gzip
import stat
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from progressive_cascade.errors import UserError
from progressive_cascade.io import atomic_path, nifti_stem, read_json, read_nifti, save_json, save_nifti

AFFINE = np.array([[-1.4, 0, 0, 10], [0, 2, 0, -5], [0, 0, 3, 7], [0, 0, 0, 1.0]])


def _volume(dtype: str = "int16") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, (4, 5, 6)).astype(dtype)


@pytest.mark.parametrize("dtype", ["int16", "float32", "uint8"])
def test_nifti_survives_writing_and_reading(tmp_path: Path, dtype: str) -> None:
    """Values and affine come back, and both affines of the header are the scanner's, in mm."""
    path = tmp_path / "deep" / "ct.nii.gz"
    save_nifti(_volume(dtype), AFFINE, path)
    array, affine = read_nifti(path)
    np.testing.assert_array_equal(array, _volume(dtype))
    np.testing.assert_allclose(affine, AFFINE, atol=1e-5)
    header = nib.load(path).header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    assert header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(header.get_qform(), header.get_sform(), atol=1e-5)


def test_nifti_reads_as_the_smallest_type_that_holds_it(tmp_path: Path) -> None:
    """Integers of 16 bits stay integers; scaled values become float32."""
    save_nifti(_volume("uint8"), AFFINE, tmp_path / "a.nii.gz")
    assert read_nifti(tmp_path / "a.nii.gz")[0].dtype == np.int16
    image = nib.Nifti1Image(_volume("int16"), AFFINE)
    image.header.set_slope_inter(1.0, -1024.0)
    nib.save(image, tmp_path / "b.nii")
    array, _ = read_nifti(tmp_path / "b.nii")
    assert array.dtype == np.float32


def test_atomic_path_leaves_nothing_behind_on_failure(tmp_path: Path) -> None:
    """An exception inside the block removes the temporary file and keeps the older one."""
    path = tmp_path / "ct.nii.gz"
    path.write_text("older")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.name.endswith(".nii.gz")
        temporary.write_text("half")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["ct.nii.gz"]
    assert path.read_text() == "older"


def test_written_files_have_ordinary_permissions(tmp_path: Path) -> None:
    """Others can read a result as any other file the user makes."""
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    save_json({}, tmp_path / "a.json")
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


def test_an_unwritable_folder_is_one_clear_error(tmp_path: Path) -> None:
    """A folder that cannot be made is named."""
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file must be writable"):
        save_nifti(_volume(), AFFINE, tmp_path / "file" / "ct.nii.gz")
    with pytest.raises(UserError, match="writable"):
        save_json({}, tmp_path)


def test_only_storable_types_and_suffixes_are_written(tmp_path: Path) -> None:
    """float64 is refused as a type, another suffix as a user's mistake."""
    with pytest.raises(TypeError, match="float64"):
        save_nifti(_volume("float64"), AFFINE, tmp_path / "a.nii.gz")
    with pytest.raises(UserError, match=r"\.nii"):
        save_nifti(_volume(), AFFINE, tmp_path / "a.mha")


def _truncated(path: Path) -> None:
    save_nifti(np.random.default_rng(0).normal(size=(40, 40, 40)).astype("float32"), AFFINE, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _nan(path: Path) -> None:
    volume = _volume("float32")
    volume[0, 0, 0] = np.nan
    save_nifti(volume, AFFINE, path)


def _singular(path: Path) -> None:
    image = nib.Nifti1Image(_volume(), None)
    image.header.set_sform(np.diag([1.0, 0, 1, 1]), code=1)
    nib.save(image, path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"no image"), "readable NIfTI"),
        (lambda path: path.write_bytes(gzip.compress(b"no image")), "readable NIfTI"),
        (lambda path: path.touch(), "readable NIfTI"),
        (_truncated, "readable NIfTI"),
        (lambda path: save_nifti(_volume()[0], AFFINE, path), "3 dimensions"),
        (lambda path: save_nifti(np.stack([_volume()] * 2, -1), AFFINE, path), "3 dimensions"),
        (_nan, "NaN or infinity in 1 voxels"),
        (_singular, "invertible affine"),
    ],
)
def test_an_unusable_image_is_one_clear_error(tmp_path: Path, make, message: str) -> None:
    """The message names the file and what was expected."""
    path = tmp_path / "ct.nii.gz"
    make(path)
    with pytest.raises(UserError, match=message) as caught:
        read_nifti(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_a_file_not_found_error(tmp_path: Path) -> None:
    """Images and JSON files alike."""
    for read in (read_nifti, read_json):
        with pytest.raises(FileNotFoundError, match=r"absent\.nii"):
            read(tmp_path / "absent.nii")


def test_trailing_axes_of_length_one_are_dropped(tmp_path: Path) -> None:
    """A radiograph may be (column, row, 1), a CT may have one time point."""
    save_nifti(_volume()[..., None], AFFINE, tmp_path / "ct.nii.gz")
    assert read_nifti(tmp_path / "ct.nii.gz")[0].shape == (4, 5, 6)
    save_nifti(_volume()[..., :1], AFFINE, tmp_path / "pa.nii.gz")
    assert read_nifti(tmp_path / "pa.nii.gz", num_dimensions=2)[0].shape == (4, 5)


def test_json_survives_writing_and_reading(tmp_path: Path) -> None:
    """Text beyond ASCII included; broken JSON names the file."""
    save_json({"a": [1, 2.5, "µ"]}, tmp_path / "a.json")
    assert read_json(tmp_path / "a.json") == {"a": [1, 2.5, "µ"]}
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(UserError, match=r"b\.json"):
        read_json(tmp_path / "b.json")


def test_stem_drops_both_nifti_suffixes_only() -> None:
    """Dots inside a name stay."""
    assert nifti_stem("a/b.1.nii.gz") == "b.1"
    assert nifti_stem("b.1.nii") == "b.1"
