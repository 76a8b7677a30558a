# SPDX-License-Identifier: Apache-2.0
"""Items are complete and sections disjoint, or the mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from progressive_cascade.data import FIRST_SEEDS, load_datalist, phantom_items, training_items, xray_pair_items
from progressive_cascade.errors import UserError
from progressive_cascade.io import save_json


def _dataset(folder: Path, **sections: list[str]) -> Path:
    """A dataset folder of empty files; items are `case` or `case:patient`."""
    datalist = {}
    for section, names in sections.items():
        items = []
        for name in names:
            case, _, patient = name.partition(":")
            files = {"label": f"ct/{case}.nii.gz", "valid": f"valid/{case}.nii.gz"}
            for path in files.values():
                (folder / path).parent.mkdir(exist_ok=True)
                (folder / path).touch()
            items.append({**files, "patient": patient or case})
        datalist[section] = items
    save_json(datalist, folder / "datalist.json")
    return folder


def test_datalist_gives_absolute_paths_and_names(tmp_path: Path) -> None:
    """Every item can be loaded from anywhere."""
    items = load_datalist(_dataset(tmp_path, training=["a:p1", "b:p1"], test=["c"]), "training")
    assert [item["case"] for item in items] == ["a", "b"]
    assert {item["patient"] for item in items} == {"p1"}
    assert all(
        Path(item[key]).is_absolute() and Path(item[key]).is_file() for item in items for key in ("label", "valid")
    )


def test_a_patient_in_two_sections_is_refused(tmp_path: Path) -> None:
    """A leak between training and test would make every number a lie."""
    with pytest.raises(UserError, match=r"must not share patients, got \['p1'\]"):
        load_datalist(_dataset(tmp_path, training=["a:p1"], test=["b:p1"]), "test")


def test_an_incomplete_dataset_is_refused(tmp_path: Path) -> None:
    """Missing datalist, missing file, missing key, empty section, unknown section, another structure."""
    with pytest.raises(FileNotFoundError, match="datalist"):
        load_datalist(tmp_path, "training")
    _dataset(tmp_path, training=["a"], validation=[])
    with pytest.raises(UserError, match="validation"):
        load_datalist(tmp_path, "validation")
    with pytest.raises(UserError, match="section"):
        load_datalist(tmp_path, "train")
    (tmp_path / "valid" / "a.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"valid/a\.nii\.gz"):
        load_datalist(tmp_path, "training")
    save_json({"training": [{"label": "ct/a.nii.gz"}]}, tmp_path / "datalist.json")
    with pytest.raises(UserError, match="'valid'"):
        load_datalist(tmp_path, "training")
    save_json([], tmp_path / "datalist.json")
    with pytest.raises(UserError, match="section names"):
        load_datalist(tmp_path, "training")


def test_phantoms_of_different_sections_never_coincide() -> None:
    """Even with a hundred thousand of each."""
    seeds = [item["seed"] for section in FIRST_SEEDS for item in training_items(None, section, num_phantoms=100_000)]
    assert len(set(seeds)) == 300_000


def test_training_items_mix_repeated_cts_and_phantoms(tmp_path: Path) -> None:
    """CTs first, as often as asked, then phantoms."""
    _dataset(tmp_path, training=["a", "b"])
    items = training_items(tmp_path, "training", num_phantoms=3, ct_repeats=2)
    assert [item.get("case", item.get("seed")) for item in items] == ["a", "b", "a", "b", 0, 1, 2]
    assert training_items(None, "training", num_phantoms=2, first_seed=7) == phantom_items(2, 7)
    assert training_items("", "training", num_phantoms=1) == [{"seed": 0}]
    with pytest.raises(UserError, match="num_phantoms"):
        training_items(None, "training")


def test_xray_pairs_are_found_in_the_folder_and_below(tmp_path: Path) -> None:
    """Geometry is optional; other folders are passed over."""
    for folder in ("p1", "p2", "other"):
        (tmp_path / folder).mkdir()
    for path in ("p1/pa", "p1/lateral", "p2/pa", "p2/lateral"):
        (tmp_path / f"{path}.nii.gz").touch()
    (tmp_path / "p2" / "geometry.json").touch()
    items = xray_pair_items(tmp_path)
    assert [(item["case"], item["geometry"]) for item in items] == [
        ("p1", None),
        ("p2", str(tmp_path / "p2" / "geometry.json")),
    ]
    assert [item["case"] for item in xray_pair_items(tmp_path / "p1")] == ["p1"]


def test_an_incomplete_pair_is_refused(tmp_path: Path) -> None:
    """No folder, no pair, half a pair."""
    with pytest.raises(FileNotFoundError, match="absent"):
        xray_pair_items(tmp_path / "absent")
    with pytest.raises(UserError, match="got none"):
        xray_pair_items(tmp_path)
    (tmp_path / "pa.nii.gz").touch()
    with pytest.raises(UserError, match=r"only pa\.nii\.gz"):
        xray_pair_items(tmp_path)
