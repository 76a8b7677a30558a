# SPDX-License-Identifier: Apache-2.0
"""Laws of grain, slices and noise, on a block of one tissue."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from progressive_cascade.phantom import LABELS
from progressive_cascade.phantom.patient import Scanner
from progressive_cascade.phantom.raster import Canvas
from progressive_cascade.phantom.scanner import acquire

CLEAR = Scanner(noise=0.0, kernel=0.3, blur=1e-3, thickness=1e-3, interval=1.4, grain=0.0)


def scan(
    scanner: Scanner,
    *,
    size: int = 48,
    spacing: float = 1.4,
    name: str = "muscle",
    seed: int = 0,
    half_width: float = 0.4,
) -> Canvas:
    """A block of tissue in air, which is denser above its middle, as a scanner shows it."""
    canvas = Canvas((size, size, size), spacing)
    inside = [torch.from_numpy(np.abs(c) < half_width * size * spacing) for c in canvas.coordinates]
    block = inside[0][:, None, None] & inside[1][None, :, None] & inside[2]
    canvas.hu[block] = 40.0
    canvas.labels[block] = LABELS[name]
    canvas.hu[:, :, size // 2 :] += 60.0 * block[:, :, size // 2 :]
    body = torch.full([len(axis) for axis in canvas.lattice.axes], -60.0)
    acquire(canvas, scanner, np.random.default_rng(seed), body=body)
    return canvas


def middle(canvas: Canvas) -> np.ndarray:
    """Well inside the lower half."""
    size = canvas.shape[0]
    part = slice(size // 4, -(size // 4))
    return canvas.hu[part, part, size // 6 : size // 2 - 4].numpy()


def test_clear_scanner_shows_what_is_there():
    """Without grain, noise, blur and thickness nothing changes, and labels never do."""
    canvas = scan(CLEAR)
    np.testing.assert_allclose(middle(canvas), 40.0, atol=1e-3)
    assert canvas.hu[:, :, 30].max() == pytest.approx(100.0, abs=1e-3)
    assert torch.equal(canvas.labels, scan(replace(CLEAR, noise=20.0, grain=1.0, thickness=5.0)).labels)


def test_noise_has_its_level_and_no_mean():
    """Noise of 20 HU deviates by about as much in flesh, averages to nothing, and leaves the air around alone."""
    canvas = scan(replace(CLEAR, noise=20.0))
    assert 10 < middle(canvas).std() < 24 and abs(middle(canvas).mean() - 40) < 1.5
    assert (canvas.hu[0] == -1000).all()


def test_patient_who_fills_the_grid_is_scanned():
    """A body that reaches the grid's border has its noise up to there."""
    noise = scan(replace(CLEAR, noise=20.0), half_width=0.6).hu[:, :, 4:20] - 40
    assert 10 < noise[0].std() < 24 and 10 < noise[:, -1].std() < 24


def test_sharper_kernel_leaves_neighbours_less_alike():
    """The noise of a soft kernel goes on into the next voxel, that of a sharp one does not."""

    def alike(kernel: float) -> float:
        noise = middle(scan(replace(CLEAR, noise=20.0, kernel=kernel))) - 40
        return float((noise[1:] * noise[:-1]).mean() / (noise**2).mean())

    assert alike(0.16) > alike(0.42) + 0.25


def test_thick_slices_average_along_the_body_alone():
    """A step from 40 to 100 HU along the body is spread over about 5 mm, its middle and far values kept."""
    sharp, thick = scan(CLEAR).hu[24, 24], scan(replace(CLEAR, thickness=5.0, interval=3.0)).hu[24, 24]
    spread = [int(((profile > 45) & (profile < 95)).sum()) for profile in (sharp, thick)]
    assert spread[0] <= 2 and 4 <= spread[1] <= 6  # a sharp step may fall between two slices
    assert thick[16] == pytest.approx(40.0, abs=0.5) and thick[31] == pytest.approx(100.0, abs=0.5)


def test_grain_belongs_to_its_tissue():
    """Spongy bone is grainier than the liver; twice the strength is twice the grain."""
    bone, liver = (middle(scan(replace(CLEAR, grain=1.0), name=name)).std() for name in ("vertebra", "liver"))
    assert bone > 4 * liver > 4
    assert middle(scan(replace(CLEAR, grain=2.0), name="vertebra")).std() == pytest.approx(2 * bone, rel=1e-3)


@pytest.mark.parametrize("scanner", [replace(CLEAR, noise=20.0, kernel=0.2), replace(CLEAR, grain=1.0)])
def test_coarser_grid_shows_the_same_noise_averaged(scanner):
    """Averages over eight voxels of 1.4 mm follow the voxels of 2.8 mm."""
    scanner = replace(scanner, interval=2.8, thickness=2.8)
    fine, coarse = scan(scanner, name="vertebra").hu, scan(scanner, size=24, spacing=2.8, name="vertebra").hu
    averaged = fine.reshape(24, 2, 24, 2, 24, 2).mean((1, 3, 5))
    inner = np.s_[5:-5, 5:-5, 5:10]
    assert np.corrcoef(averaged[inner].ravel(), coarse[inner].ravel())[0, 1] > 0.9
    assert 0.8 < averaged[inner].std() / coarse[inner].std() < 1.25
