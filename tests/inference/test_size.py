# SPDX-License-Identifier: Apache-2.0
"""Laws of the size of true line integrals: found where stage 1 explains them best, believed where nobody told it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch

from progressive_cascade.geometry import ConeBeam
from progressive_cascade.inference import examine as examine_module
from progressive_cascade.inference import size as module
from progressive_cascade.inference.examine import examine
from progressive_cascade.inference.first_look import Explained, FirstLook
from progressive_cascade.inference.reconstruct import load_cascade
from progressive_cascade.inference.size import Size, at_size, find_size
from progressive_cascade.paths import bundle_root
from progressive_cascade.phantom import generate_phantom
from progressive_cascade.physics.simulate import expose
from progressive_cascade.radiograph.pair import Pair

BEAM = ConeBeam(detector_shape=(128, 128), pixel_spacing=(3.36, 3.36))
IMAGE = np.random.default_rng(0).uniform(1, 4, (2, 128, 128)).astype(np.float32)
PAIR = Pair(IMAGE, None, BEAM, "calibrated")
NETWORK = cast(Any, None)


def _explaining(patch: pytest.MonkeyPatch, true: float, floor: float = 0.1) -> list[float]:
    """Stage 1 explains what is so many times as large; the sizes it was asked for are listed."""
    asked: list[float] = []

    def explain(_: Any, images: np.ndarray, beam: ConeBeam, *, calibrated: bool, weights: np.ndarray) -> Explained:
        assert calibrated
        size = beam.pixel_spacing[0] / BEAM.pixel_spacing[0]
        asked.append(round(size, 2))
        missed = np.hypot(floor, 5 * (size - true)).astype(np.float32)
        return Explained(cast(Any, None), images - missed, images, weights > 0.5)

    patch.setattr(module, "explain_pairs", explain)
    patch.setattr(module, "detour", lambda *_: None)
    return asked


@pytest.mark.parametrize("true", [0.86, 0.93, 0.995, 1.0, 1.008, 1.04, 1.13])
def test_the_best_size_is_found(monkeypatch: pytest.MonkeyPatch, true: float) -> None:
    """Between the steps, too; where the told one is right, in five passes."""
    asked = _explaining(monkeypatch, true)
    found = find_size(NETWORK, PAIR)
    assert found.size == pytest.approx(true, abs=0.003)
    assert found.left == pytest.approx(np.hypot(0.1, 5 * min(abs(true - size) for size in asked)), rel=1e-3)
    assert found.told == pytest.approx(np.hypot(0.1, 5 * (true - 1)), rel=1e-3)
    assert len(asked) == len(set(asked)) <= (5 if abs(true - 1) < 0.01 else 13)


def test_no_size_is_believed_beyond_what_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the best would be a quarter larger, something else is wrong."""
    _explaining(monkeypatch, 1.25)
    assert find_size(NETWORK, PAIR).size == 1.0


def test_what_counts_is_what_shows_the_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels without weight have no say."""
    _explaining(monkeypatch, 1.04)
    weights = np.ones_like(IMAGE)
    weights[:, :, :64] = 0
    spoilt = np.where(weights > 0, IMAGE, 50.0).astype(np.float32)
    assert find_size(NETWORK, replace(PAIR, image=spoilt, weights=weights)).size == pytest.approx(1.04, abs=0.003)


def test_a_wrong_distance_is_seen_by_the_shipped_stage() -> None:
    """A phantom: right, its size is 1; a patient 5 % farther from the source than told has 1.05, and so undone is 1."""
    network = load_cascade(bundle_root() / "models" / "stage1_best.pt")
    phantom = generate_phantom(2_000_003, shape=(128, 128, 128), spacing=2.8)
    hu = torch.from_numpy(phantom.hu.astype(np.float32))[None, None]
    told = ConeBeam()
    taken = replace(told, source_to_isocenter=1.05 * told.source_to_isocenter)
    right, wrong = (
        Pair(expose(hu, beam, affine=phantom.affine)[0].numpy(), None, told, "calibrated") for beam in (told, taken)
    )
    assert find_size(network, right).size == pytest.approx(1.0, abs=0.01)
    found = find_size(network, wrong)
    assert found.size == pytest.approx(1.05, abs=0.01) and found.is_doubtful and found.left < 0.7 * found.told
    assert find_size(network, at_size(wrong, found.size)).size == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    ("size", "told", "asked", "is_resized", "is_warned"),
    [
        (1.0, True, False, False, False),
        (1.015, True, False, False, False),
        (1.06, True, False, False, True),
        (1.06, True, True, True, False),
        (1.06, False, False, True, False),
        (0.985, False, False, True, False),
        (1.006, False, False, False, False),
        (1.006, True, True, True, False),
        (1.002, False, True, False, False),
    ],
)
def test_it_is_believed_where_nobody_told_it(
    monkeypatch: pytest.MonkeyPatch, size: float, told: bool, asked: bool, is_resized: bool, is_warned: bool
) -> None:
    """Told lengths that do not fit are warned of, assumed ones corrected; who asks is believed to want it."""
    looked = FirstLook({"pa": 40.0, "left_lateral": 40.0})
    monkeypatch.setattr(examine_module, "look_at_pair", lambda *_: looked)
    monkeypatch.setattr(examine_module, "find_size", lambda *_: Size(size, 0.1, 0.1 if size == 1 else 0.2))
    given = replace(PAIR, lengths_told=told)
    pair = examine(lambda _: given, NETWORK, "tags", resize=asked)
    assert (not np.array_equal(pair.image, IMAGE)) == is_resized == bool(pair.notes)
    assert bool(pair.warnings) == is_warned
    said = [line for line in [*pair.notes, *pair.warnings] if f"best at {size:.3f} times their size" in line]
    assert len(said) == is_resized + is_warned
    grey = replace(given, intensities="display")
    monkeypatch.setattr(examine_module, "find_size", lambda *_: pytest.fail("grey levels tell no size"))
    assert examine(lambda _: grey, NETWORK, "tags", resize=asked).image is grey.image


def test_other_sizes_count_only_where_they_explain_more() -> None:
    """A flat valley says nothing."""
    assert not Size(1.1, 0.199, 0.2).is_doubtful and Size(1.1, 0.1, 0.2).is_doubtful
    assert Size(1.015, 0.199, 0.2).is_off(0.01) and not Size(1.015, 0.1, 0.2).is_doubtful
    assert not Size(1.015, 0.1, 0.2).is_off(0.02) and not Size(1.015, 0.21, 0.2).is_off(0.01)
