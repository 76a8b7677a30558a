# SPDX-License-Identifier: Apache-2.0
"""Laws of the yardstick of texture: what patches hold, what is shown of them, and when they can be told."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import texture  # pyright: ignore[reportMissingImports]
from gap.patches import SIZE, TISSUES, VIEWS, draw_patches, look  # pyright: ignore[reportMissingImports]


def patches(seed: int, level: float) -> torch.Tensor:
    """Three patches of white noise."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(40, level, (3, 1, SIZE, SIZE, SIZE)).astype(np.float32))


def test_patches_hold_their_tissue_where_the_scanner_measured():
    """Flesh on one side, lung on the other, half of it measured: every patch is flesh, and lies in that half."""
    hu = np.full((96, 40, 72), -850.0)
    hu[:48] = 40 + np.arange(72)  # the height is written in the flesh
    valid = np.zeros(hu.shape, dtype=bool)
    valid[:, :, :36] = True
    drawn = draw_patches(hu, valid, TISSUES["soft"], count=9, seed=0)
    assert len(drawn) == 9 and drawn.shape[1:] == (SIZE, SIZE, SIZE) and drawn.dtype == np.int16
    for patch in drawn:
        assert ((patch >= -150) & (patch <= 150)).mean() >= TISSUES["soft"].share
        assert patch.max() < 40 + 36
    assert (draw_patches(hu, valid, TISSUES["lung"], count=3, seed=0) == -850).mean() > 0.7
    assert len(draw_patches(hu, valid, TISSUES["bone"], count=3, seed=0)) == 0


def test_views_take_shortcuts_away():
    """Without its mean a patch has none; at one level its fine part deviates by 1; coarse averages keep the mean."""
    cubes = patches(0, 12.0)
    torch.testing.assert_close(look(cubes, "no mean").mean((2, 3, 4)), torch.zeros(3, 1), atol=1e-3, rtol=0)
    torch.testing.assert_close(look(cubes, "fine, one level").std((2, 3, 4)), torch.ones(3, 1))
    torch.testing.assert_close(look(cubes, "coarse").mean((2, 3, 4)), cubes.mean((2, 3, 4)))
    torch.testing.assert_close(look(cubes, "fine").mean((2, 3, 4)), torch.zeros(3, 1), atol=0.2, rtol=0)
    assert look(cubes, "three numbers").shape == (3, 3)
    with pytest.raises(ValueError, match=f"view must be one of {', '.join(VIEWS)}, got 'all'"):
        look(cubes, "all")


def test_classifier_tells_other_noise_and_not_the_same():
    """Three numbers tell noise of 12 HU from 3; of the same noise they know no more than chance allows."""
    options = {"view": "three numbers", "folds": 3, "steps": 40, "batch": 8}
    quiet, loud = [patches(seed, 3.0) for seed in range(3)], [patches(seed, 12.0) for seed in range(3, 6)]
    accuracy, tested = texture.measure(quiet, loud, **options)
    assert accuracy == [1.0, 1.0, 1.0] and tested == 18
    again, _ = texture.measure(quiet, [patches(seed, 3.0) for seed in range(6, 9)], **options)
    assert 0.2 < np.mean(again) < 0.8


def test_table_prints_the_folds_spread():
    """One row for each population and view; a tissue that was not measured stays empty."""
    run = {"population": "basic", "view": "whole", "tissue": "lung", "accuracy": [0.9, 0.8, 1.0]}
    assert texture.table([run]).splitlines()[2] == "| basic | whole |  | 90 % (80 to 100) |  |"


def test_script_names_what_does_not_fit(tmp_path, capsys):
    """Without a dataset it stops with one line and exit code 2."""
    arguments = ["--dataset", str(tmp_path), "--cache", str(tmp_path), "--output", str(tmp_path / "texture.json")]
    assert texture.main(arguments) == 2
    assert str(tmp_path) in capsys.readouterr().err
