# SPDX-License-Identifier: Apache-2.0
"""Laws of the benchmark of radiographs: wrong pairs are wrong as named, and what was noticed is counted as it was."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from progressive_cascade.phantom import generate_phantom

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from conditions.wrong_pairs import KINDS, make_pair
from published.radiographs import RADIOGRAPH_TABLES, is_noticed

QUIET = {
    **{"refused": "", "notes": [], "warnings": [], "agreement_db": [40.0, 41.0], "slice_difference": 0.01},
    **{"kind": "right", "upright": True, "mirror": 1e-6, "mirrored_db": None},
}


@pytest.fixture(scope="module")
def pool() -> list[np.ndarray]:
    return [generate_phantom(seed, shape=(64, 64, 64), spacing=5.6).hu for seed in (1, 2)]


def test_right_pair_is_the_upright_one(pool: list[np.ndarray]) -> None:
    """Line integrals of a right pair are what they should look like."""
    given = make_pair(pool, "right", 0)
    for one, true in zip(given.radiographs, given.upright, strict=True):
        np.testing.assert_array_equal(one.pixels, true)


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_pair_differs_from_the_right_one(pool: list[np.ndarray], kind: str) -> None:
    """Pixels, order or size are not what the same patient's right pair has; grey levels rise to 12 bits."""
    wrong = make_pair(pool, kind, 0)
    same = [
        one.pixels.shape == true.shape and np.array_equal(one.pixels, true)
        for one, true in zip(wrong.radiographs, wrong.upright, strict=True)
    ]
    first, second = (one.spacing for one in wrong.radiographs)
    assert (not all(same)) or first != second or kind == "two_patients"
    assert make_pair(pool, kind, 1).radiographs[0].pixels.max() == 4095


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, False),
        ({"refused": "two laterals"}, True),
        ({"notes": ["pa.png looks inverted and was put right"]}, True),
        ({"notes": ["turned, and left mirrored"], "upright": False, "kind": "transposed"}, False),
        ({"mirror": 0.9999, "mirrored_db": 41.0}, True),
        ({"mirror": 0.9999, "mirrored_db": 37.0}, False),
        ({"warnings": ["the body leaves the frontal"]}, False),
        ({"agreement_db": [40.0, 20.0]}, True),
        ({"slice_difference": 0.3}, True),
        ({"kind": "wrong_size", "notes": ["moved up by 6 mm: so the first stage explains them best"]}, False),
    ],
)
def test_noticed_is_what_was_done_or_said(change: dict, expected: bool) -> None:
    """A body that leaves the field is no mistake of the pair."""
    assert is_noticed({**QUIET, "calibrated": True, **change}) is expected


def test_tables_show_every_row() -> None:
    """A form, a confusion and a pair each end in their table."""
    form = {"known": "display", "seconds": 0.2, "difference_hu": 0.5, "psnr_db": 20.0, "plain_psnr_db": 20.1}
    confusion = np.diag(np.arange(32))
    confusion[0, 8] = 5
    pair = {**QUIET, "calibrated": True, "kind": "right", "half": 0}
    report = {
        "forms": [{**form, "form": "NIfTI, way 1 of 8"}, {**form, "form": "CR"}],
        "orientation": {"confusion": confusion.tolist()},
        "reading": [
            {"form": "DICOM, RLE", "seconds": 1.26, "decoding": 0.5, "megabytes": 30.2, "rms_difference": 1e-3}
        ],
        "pairs": [pair, {**pair, "notes": ["turned"], "kind": "turned"}],
    }
    texts = {name: "\n".join(table(report)) for name, table in RADIOGRAPH_TABLES.items()}
    assert "| CR | display | 0.50 | -0.10 | 0.2 |" in texts["radiographs forms"]
    assert "| frontal | 245 | 98.0 % | 2.0 % |" in texts["radiographs orientation"]
    assert "| DICOM, RLE | 30 | 0.5 | 1.3 | 0.0010 |" in texts["radiographs reading"]
    assert "as one answer 100.0 % (99.2 to 100.0) are right" in texts["radiographs orientation"]
    assert "| turned |" in texts["radiographs pairs"] and "1 of 1" in texts["radiographs pairs"]
    assert "| all that are wrong | 1 of 1 | – | 1 of 1 | – | 100.0 % (20.7 to 100.0) |" in texts["radiographs pairs"]


def test_missed_pairs_stand_with_what_speaks_for_and_against_them() -> None:
    """A mirrored frontal that passes has its log odds; a right pair that is not warned of has no row."""
    quiet = {**QUIET, "calibrated": True, "half": 1}
    mirrored = {**quiet, "kind": "mirrored", "upright": False, "mirror": 0.6, "mirrored_db": 39.5}
    rows = RADIOGRAPH_TABLES["radiographs missed"]({"pairs": [quiet, mirrored]})
    expected = "| mirrored, unnoticed | other CTs and phantoms | line integrals | +0.4 | -1.0 | 1.0 % | 40.0, 41.0 |"
    assert rows[5:] == [expected]
