# SPDX-License-Identifier: Apache-2.0
"""Laws of looking at a picture: all sixteen ways are one, and a picture is put right as it was seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from progressive_cascade.radiograph import orientation
from progressive_cascade.radiograph.orientation import OrientationNet, as_picture, copies, look_at
from progressive_cascade.radiograph.record import Radiograph
from progressive_cascade.radiograph.upright import make_upright
from progressive_cascade.training import orientation as training
from progressive_cascade.training.orientation import accuracy, train_orientation, vary
from tests.support.radiographs import grey, phantom_pair


class _Template(nn.Module):
    """Knows one picture of each kind: a copy's score is its correlation with it."""

    def forward(self, picture: Tensor) -> Tensor:
        known = torch.stack([as_picture(grey(view))[0, 0] for view in phantom_pair()])
        every = copies(picture)[:, :, 0].flatten(2)
        return (every @ known.flatten(1).T / 64**2 * 4000).flatten(1)


def test_network_is_the_same_for_every_copy():
    """Turning a picture moves its scores and changes none."""
    torch.manual_seed(0)
    network, picture = OrientationNet().eval(), torch.randn(1, 1, 64, 64)
    scores = network(picture).reshape(16, 2)
    others = network(torch.rot90(picture, 1, (2, 3))).reshape(16, 2)
    torch.testing.assert_close(others[[3, 0, 1, 2]], scores[:4], rtol=1e-4, atol=1e-5)
    assert sum(value.numel() for value in network.parameters()) * 4 < 1e6


@pytest.mark.parametrize("view", range(2))
@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("way", range(8))
def test_picture_is_put_right(monkeypatch: pytest.MonkeyPatch, way: int, inverted: bool, view: int):
    """Whichever way an untagged picture lies, it ends up as it is read; a note says what was done.

    A frontal's mirror image is not proved by its picture: how probable it is is told, and it is flipped when asked to.
    """
    monkeypatch.setattr(orientation, "load_orientation_net", _Template)
    truth = grey(phantom_pair()[view]).astype(np.float32)
    stored = np.rot90(truth[:, ::-1] if way & 4 else truth, way % 4)
    stored = np.ascontiguousarray(-stored if inverted else stored)
    one = Radiograph("a", stored, np.ones(stored.shape, dtype=bool), "display")
    kind, is_mirrored = ("frontal", "lateral")[view], view == 0 and way >= 4
    upright = make_upright(one, kind)
    assert np.array_equal(upright.radiograph.pixels, truth[:, ::-1] if is_mirrored else truth)
    assert bool(upright.notes) == (way % 4 != 0 or (way != 0 and view == 1) or inverted)
    assert not upright.assumptions and not upright.warnings
    assert upright.mirror == pytest.approx(float(is_mirrored), abs=1e-3) if view == 0 else upright.mirror is None
    if is_mirrored:
        flipped = make_upright(one, kind, mirror=True)
        np.testing.assert_array_equal(flipped.radiograph.pixels, truth)
        assert flipped.mirror == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize(
    ("trust", "is_turned", "is_warned"), [(None, False, True), ("tags", False, False), ("picture", True, False)]
)
def test_contradiction_is_decided_by_trust(
    monkeypatch: pytest.MonkeyPatch, trust: str, is_turned: bool, is_warned: bool
):
    """Tags that say upright of a turned picture: warned of, unless the user says whom to trust."""
    monkeypatch.setattr(orientation, "load_orientation_net", _Template)
    truth = grey(phantom_pair()[0]).astype(np.float32)
    one = Radiograph("a", np.rot90(truth, 2), np.ones(truth.shape, dtype=bool), "display", directions=("L", "F"))
    upright = make_upright(one, "frontal", trust)
    assert np.array_equal(upright.radiograph.pixels, truth) == is_turned
    assert bool(upright.warnings) == is_warned
    right = make_upright(replace(one, directions=("R", "H")), "frontal")
    assert not right.warnings and np.array_equal(right.radiograph.pixels, truth)


def test_without_weights_nothing_is_seen(monkeypatch: pytest.MonkeyPatch):
    """A bundle whose network was not trained looks at nothing, and the orientation is an assumption."""
    monkeypatch.setattr(orientation, "load_orientation_net", lambda: None)
    assert look_at(phantom_pair()[0]) is None
    one = Radiograph("a", grey(phantom_pair()[0]), np.ones((128, 128), dtype=bool), "display")
    assert "lies as a pa is read" in make_upright(one, "frontal").assumptions[0]


def test_training_learns_two_pictures():
    """Thirty steps on one patient: the two views, turned and varied, are told apart, far above chance."""
    images = torch.nn.functional.interpolate(torch.from_numpy(phantom_pair())[:, None], (96, 96), mode="area")
    kinds = torch.tensor([0, 1])
    assert vary(images, torch.Generator().manual_seed(0)).shape == (2, 1, 64, 64)
    network, _ = train_orientation(images, kinds, steps=30, batch_size=4)
    assert accuracy(network, images, kinds, repeats=8) > 0.3


def test_cut_field_leaves_air_outside():
    """Every column of voxels is kept whole or is air, and the middle is kept."""
    hu = np.random.default_rng(0).integers(-1000, 1000, (64, 64, 64))
    for seed in range(4):
        cut = training.cut_field(hu, np.random.default_rng(seed))
        kept = (cut == hu).all(axis=2)
        assert (cut[~kept] == -1024).all()
        assert kept[20:44, 20:44].all() and 0.1 < kept.mean() < 1


def test_mirror_image_of_a_ct_gives_laterals_alone(monkeypatch: pytest.MonkeyPatch):
    """Its frontal would show the heart on the patient's right; its lateral is a right lateral in a mirror."""
    hu = np.broadcast_to(np.arange(64.0)[:, None, None], (64, 64, 64))
    taken: list[tuple[bool, int]] = []

    def simulate(volume: np.ndarray, num: int, _: np.random.Generator) -> tuple[Tensor, Tensor]:
        taken.append((bool(volume[20, 32, 32] > volume[40, 32, 32]), num))
        return torch.full((2 * num, 1, 1, 1), float(taken[-1][0])), torch.tensor([0, 1] * num)

    monkeypatch.setattr(training, "simulate_pictures", simulate)
    images, kinds = training.examine_often(hu, 12, np.random.default_rng(0))
    assert sum(num for is_mirrored, num in taken if not is_mirrored) == 24
    of_mirrored = images.flatten() == 1
    assert of_mirrored.sum() == 6 and (kinds[of_mirrored] == 1).all()
