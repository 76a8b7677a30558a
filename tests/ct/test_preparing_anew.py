# SPDX-License-Identifier: Apache-2.0
"""A dataset that is prepared anew: the old one stays until the new one is whole, and no cache mixes both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.data.dataset import PersistentDataset

from progressive_cascade.ct.datalist import load_datalist
from progressive_cascade.ct.prepare import prepare_dataset
from progressive_cascade.io import read_nifti, save_nifti
from tests.support.cube import place_coarsely
from tests.support.trunk import trunk_affine, trunk_hu


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two CTs, which are placed on few voxels."""
    place_coarsely(monkeypatch)
    for number, name in enumerate("ab"):
        save_nifti(trunk_hu().astype(np.int16) + np.int16(number), trunk_affine(), tmp_path / "in" / f"{name}.nii.gz")
    return tmp_path / "in"


def _content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_interrupted_run_leaves_the_old_dataset(archive: Path, tmp_path: Path) -> None:
    """Lists and voxels are those of before, though the first new CT was finished."""
    prepare_dataset(archive, tmp_path / "out")
    before = _content(tmp_path / "out")
    save_nifti(trunk_hu(shift_mm=20).astype(np.int16), trunk_affine(), archive / "a.nii.gz")

    def stop(row: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(archive, tmp_path / "out", progress=stop)
    assert {name: value for name, value in _content(tmp_path / "out").items() if not name.startswith(".")} == before
    prepare_dataset(archive, tmp_path / "out")
    after = _content(tmp_path / "out")
    assert set(after) == set(before)
    assert after["ct/a.nii.gz"] != before["ct/a.nii.gz"]


def test_a_cache_of_cases_is_not_taken_for_a_new_dataset(archive: Path, tmp_path: Path) -> None:
    """MONAI's cache knows a case by its item; after a new `prepare` into the same place it reads the new voxels."""

    def cached() -> list[np.ndarray]:
        items = load_datalist(tmp_path / "out", "training")
        read = PersistentDataset(items, lambda item: read_nifti(item["label"])[0], cache_dir=tmp_path / "cache")
        return [np.asarray(voxels) for voxels in read]

    prepare_dataset(archive, tmp_path / "out")
    (before,) = cached()
    np.testing.assert_array_equal(cached()[0], before)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    for path in archive.iterdir():
        save_nifti(trunk_hu(shift_mm=20).astype(np.int16), trunk_affine(), path)
        save_nifti(np.flip(trunk_hu(shift_mm=20), 2).astype(np.int16), trunk_affine(), archive / "a.nii.gz")
    prepare_dataset(archive, tmp_path / "out")
    (after,) = cached()
    assert np.abs(after.astype(int) - before).max() > 500
