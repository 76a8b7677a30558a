# SPDX-License-Identifier: Apache-2.0
"""Laws of the yardstick of phantoms: errors are given to the right part, runs to the right row."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import phantom_gap  # pyright: ignore[reportMissingImports]
from gap import patients as gap_patients  # pyright: ignore[reportMissingImports]
from gap.figure import save_figure  # pyright: ignore[reportMissingImports]
from gap.shares import SHARES, body_of, error_parts  # pyright: ignore[reportMissingImports]


def chest() -> np.ndarray:
    """A box of flesh with a lung and a bone in it, in air."""
    hu = np.full((20, 20, 20), -1000.0)
    hu[3:17, 3:17, :] = 40
    hu[5:9, 6:14, 4:16] = -850
    hu[12:14, 9:11, :] = 700
    return hu


def test_body_holds_its_lungs_and_leaves_the_air_out():
    """What air from the sides cannot reach is body, even where an airway opens at an end."""
    hu = chest()
    hu[6, 8, :] = -1000
    np.testing.assert_array_equal(body_of(hu), body_of(chest()))
    assert body_of(hu).sum() == 14 * 14 * 20


@pytest.mark.parametrize(
    ("part", "where", "value"),
    [
        ("outline", np.s_[2, 3:17, :], 40.0),
        ("outline", np.s_[3, 3:17, :], -1000.0),
        ("lung_border", np.s_[9, 6:14, 4:16], -850.0),
        ("lung_border", np.s_[5, 6:14, 4:16], 40.0),
        ("bone", np.s_[12, 9, :], 300.0),
        ("soft", np.s_[15, 5:15, :], -90.0),
        ("lung", np.s_[6:8, 7:13, 5:15], -700.0),
        ("air", np.s_[0, 0, :], -900.0),
    ],
)
def test_error_goes_to_its_part(part, where, value):
    """An error of one kind is that kind's alone, and the parts add up to all of it."""
    wrong = chest()
    wrong[where] = value
    parts = error_parts(wrong, chest(), np.ones(wrong.shape, dtype=bool))
    assert parts[part] == pytest.approx(1.0)
    assert sum(parts[name] for name in SHARES) == pytest.approx(1.0)


def test_picture_shows_an_error_on_the_right_side(tmp_path: Path) -> None:
    """The patient's right (RAS: the upper end of x) lies on the left of each picture, as radiologists have it."""
    wrong = chest()
    wrong[15:17, 5:15, :] += 600  # far to the patient's right
    save_figure(wrong, chest(), title="a chest", path=tmp_path / "error.png")
    assert [path.name for path in tmp_path.iterdir()] == ["error.png"]
    shown = np.asarray(Image.open(tmp_path / "error.png").convert("RGB")).astype(int)
    red, green, blue = shown[:, 2 * shown.shape[1] // 3 :].transpose(2, 0, 1)
    columns = np.nonzero((red < 120) & (red - green > 80) & (red - blue > 50))[1]
    assert len(columns) > 100 and columns.max() < red.shape[1] / 2


def test_error_counts_valid_voxels_alone():
    """20.48 HU off everywhere it was scanned is 40 dB, whatever lies beyond."""
    truth = np.zeros((8, 8, 8))
    valid = np.ones(truth.shape, dtype=bool)
    valid[:, :, :2] = False
    wrong = truth + 20.48
    wrong[:, :, :2] = 1000
    assert error_parts(wrong, truth, valid)["psnr_db"] == pytest.approx(40.0)


def test_phantoms_are_painted_once(tmp_path, monkeypatch):
    """A second run of the same population takes every patient from the cache; fewer are the first of them."""
    monkeypatch.setattr(gap_patients, "_CHUNK", 1)
    first = gap_patients.load_phantoms("basic", 2, "half", tmp_path)
    monkeypatch.setattr(gap_patients, "generate_phantom", None)
    again = gap_patients.load_phantoms("basic", 1, "half", tmp_path)
    assert again.names == first.names[:1] == ["basic_0"]
    torch.testing.assert_close(again.hu, first.hu[:1])
    assert first.images.shape == (2, 2, 256, 256) and first.hu.shape == (2, 1, 32, 32, 32)


def test_table_keeps_thoraxes_apart_and_prints_the_spread():
    """Means over cases and seeds by group; the spread is that of the seeds' means."""
    parts = dict.fromkeys(SHARES, 0.0) | {"outline": 1.0}
    runs = [
        {
            "population": "basic",
            "seed": seed,
            "cases": {
                "thorax_a": {"psnr_db": 20.0 + seed, **parts},
                "thorax_b": {"psnr_db": 22.0 + seed, **parts},
                "abdomen_c": {"psnr_db": 10.0, **parts},
            },
        }
        for seed in (0, 1)
    ]
    rows = phantom_gap.table(runs).splitlines()
    assert rows[2].startswith("| basic | thorax (2) | 21.50 (1.00) | 100 % | 0 % |")
    assert rows[3].startswith("| basic | abdomen (1) | 10.00 (0.00) |")


def test_script_names_what_does_not_fit(tmp_path, capsys):
    """Without a dataset it stops with one line and exit code 2."""
    arguments = ["--dataset", str(tmp_path), "--cache", str(tmp_path), "--output", str(tmp_path / "gap.json")]
    assert phantom_gap.main(arguments) == 2
    assert str(tmp_path) in capsys.readouterr().err
