# SPDX-License-Identifier: Apache-2.0
"""Items are complete and sections disjoint, or the mistake is told."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from ignite.engine import Engine
from torch.utils.data import DataLoader

from progressive_cascade.ct.datalist import load_datalist
from progressive_cascade.errors import UserError
from progressive_cascade.inference.pairs import xray_pair_items
from progressive_cascade.io import read_json, save_json
from progressive_cascade.training.data import FIRST_SEEDS, phantom_items, steps_per_epoch, training_items


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


def test_cases_without_a_patient_are_patients_of_their_own(tmp_path: Path) -> None:
    """They go by the label's name, and are not taken for one shared patient."""
    _dataset(tmp_path, training=["a", "b"], test=["c"])
    datalist = read_json(tmp_path / "datalist.json")
    for section in ("training", "test"):
        datalist[section] = [{key: item[key] for key in ("label", "valid")} for item in datalist[section]]
    save_json(datalist, tmp_path / "datalist.json")
    assert [item["patient"] for item in load_datalist(tmp_path, "training")] == ["a", "b"]
    assert [item["patient"] for item in load_datalist(tmp_path, "test")] == ["c"]
    save_json({**datalist, "test": datalist["training"][:1]}, tmp_path / "datalist.json")
    with pytest.raises(UserError, match=r"must not share patients, got \['a'\]"):
        load_datalist(tmp_path, "training")


def test_a_dataset_that_cannot_be_split_is_refused(tmp_path: Path) -> None:
    """Nobody at all, and a single patient where another is to be held out."""
    save_json({"training": []}, tmp_path / "datalist.json")
    with pytest.raises(UserError, match=r"at least one case under 'training', got none$"):
        load_datalist(tmp_path, "training")
    _dataset(tmp_path, training=["a:p1", "b:p1"])
    with pytest.raises(UserError, match="under 'validation', got none; a single patient, 'p1', cannot be split"):
        load_datalist(tmp_path, "validation")


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


def test_training_items_are_cts_then_phantoms(tmp_path: Path) -> None:
    """Each once, and the section's own seeds unless another first one is named."""
    _dataset(tmp_path, training=["a", "b"])
    items = training_items(tmp_path, "training", num_phantoms=3)
    assert [item.get("case", item.get("seed")) for item in items] == ["a", "b", 0, 1, 2]
    assert training_items(None, "training", num_phantoms=2, first_seed=7) == phantom_items(2, 7)
    assert training_items("", "training", num_phantoms=1) == [{"seed": 0}]
    with pytest.raises(UserError, match="num_phantoms"):
        training_items(None, "training")


def test_cts_alone_are_mirrored(tmp_path: Path) -> None:
    """Each of them, however often it is repeated; phantoms are what they were."""
    _dataset(tmp_path, training=["a", "b"])
    items = training_items(tmp_path, num_phantoms=6, ct_share=0.5, mirror_cts=True)
    assert [item.get("mirrored", False) for item in items] == ["case" in item for item in items]
    assert training_items(None, num_phantoms=2, mirror_cts=True) == phantom_items(2)


@pytest.mark.parametrize(("share", "num_phantoms"), [(0.35, 1000), (0.35, 2), (0.5, 3), (0.9, 40), (0.02, 10)])
def test_the_share_of_cts_is_kept_and_no_case_is_left_out(tmp_path: Path, share: float, num_phantoms: int) -> None:
    """The rarer kind is repeated, evenly; the same call gives the same items."""
    _dataset(tmp_path, training=["a", "b", "c"])
    items = training_items(tmp_path, "training", num_phantoms=num_phantoms, ct_share=share)
    counts = Counter(item.get("case", item.get("seed")) for item in items)
    cts, phantoms = ([counts[key] for key in keys] for keys in ("abc", range(num_phantoms)))
    assert min(cts) >= 1 and max(cts) - min(cts) <= 1
    assert min(phantoms) >= 1 and max(phantoms) - min(phantoms) <= 1
    assert abs(sum(cts) - share * len(items)) <= 1
    assert items == training_items(tmp_path, "training", num_phantoms=num_phantoms, ct_share=share)


def test_a_share_of_one_kind_alone(tmp_path: Path) -> None:
    """0 is phantoms, 1 is CTs; without the other kind the share does not matter, and nonsense is refused."""
    _dataset(tmp_path, training=["a", "b"])
    assert training_items(tmp_path, num_phantoms=3, ct_share=0) == phantom_items(3)
    assert [item["case"] for item in training_items(tmp_path, num_phantoms=3, ct_share=1)] == ["a", "b"]
    assert [item["case"] for item in training_items(tmp_path, num_phantoms=0, ct_share=0.35)] == ["a", "b"]
    assert training_items(None, num_phantoms=3, ct_share=0.35) == phantom_items(3)
    for share in (-0.1, 1.5, 35, float("nan")):
        with pytest.raises(UserError, match=r"ct_share must lie in \[0, 1\]"):
            training_items(tmp_path, num_phantoms=3, ct_share=share)


def test_short_epochs_draw_from_all_cases_in_turn() -> None:
    """An engine's epochs of four cases go through all ten before one comes again."""
    loader = DataLoader(list(range(10)), batch_size=2, shuffle=True)
    assert [steps_per_epoch(loader, size) for size in (None, 1, 4, 5, 100)] == [5, 1, 2, 3, 50]
    epochs: dict[int, list[int]] = {}
    engine = Engine(lambda engine, batch: epochs.setdefault(engine.state.epoch, []).extend(batch.tolist()))
    engine.run(loader, max_epochs=5, epoch_length=steps_per_epoch(loader, 4))
    drawn = [case for epoch in epochs.values() for case in epoch]
    assert [len(epoch) for epoch in epochs.values()] == [4] * 5
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    with pytest.raises(UserError, match="epoch_size must be a positive number"):
        steps_per_epoch(loader, 0)


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


def test_phantoms_name_their_population_unless_it_is_basic():
    """Basic items stay as they were, so that caches last; others are patients of their own."""
    assert training_items(num_phantoms=1) == [{"seed": 0}]
    named = training_items(num_phantoms=2, populations={"clinical": 1.0})
    assert named == [{"seed": 0, "population": "clinical"}, {"seed": 1, "population": "clinical"}]
