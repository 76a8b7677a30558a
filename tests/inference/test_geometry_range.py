# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint takes: inside its range silently, a little beyond with a warning, farther out not at all."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from progressive_cascade.errors import UserError
from progressive_cascade.geometry import ConeBeam, GeometryRange
from progressive_cascade.inference import reconstruct as module
from progressive_cascade.inference.acceptance import check_beam, take_beam, trained_range
from progressive_cascade.inference.first_look import first_look
from progressive_cascade.inference.opposite import detour, mirrored_views
from progressive_cascade.networks import ProgressiveCascade
from progressive_cascade.radiograph.fit import field_of
from tests.conftest import SMALL

RANGE = GeometryRange((600.0, 1900.0), (300.0, 430.0), turn=10.0, offset=30.0, opposite=True)
BEAM = SMALL["geometry"]
BEDSIDE = replace(BEAM, source_to_isocenter=800.0, source_to_detector=1000.0, views=("ap", "left_lateral"))


@cache
def _network(trained: GeometryRange | None) -> ProgressiveCascade:
    torch.manual_seed(0)
    return ProgressiveCascade(**{**SMALL, "stage": 1, "geometry_range": trained}).eval()


@pytest.fixture
def ranged() -> ProgressiveCascade:
    """A cascade that knows a range."""
    return _network(RANGE)


@pytest.fixture
def old() -> ProgressiveCascade:
    """A cascade that knows its own geometry alone."""
    return _network(None)


def _views(*views: str) -> ConeBeam:
    return replace(BEAM, views=views)


@pytest.mark.parametrize(
    "beam",
    [
        BEAM,
        BEDSIDE,
        replace(BEAM, source_to_isocenter=1900.0, source_to_detector=2280.0),
        replace(BEAM, detector_rotation=4.0, detector_offset=(30.0, -30.0)),
        _views("lao5_cranial3", "left_lateral"),
        _views("ap", "right_lateral"),
        _views("lao174", "rao86_caudal2"),
    ],
)
def test_what_lies_inside_the_range_is_taken_silently(ranged: ProgressiveCascade, beam: ConeBeam) -> None:
    """Distances, turns, offsets and the other side, at the borders and within."""
    assert check_beam(ranged, beam) == []


@pytest.mark.parametrize(
    ("beam", "said"),
    [
        (
            replace(BEAM, source_to_isocenter=1957.0, source_to_detector=2348.4),
            "distance from source to isocenter of pa and left_lateral is 1957.0 mm, 57.0 mm (3.0%) beyond the trained "
            "600 to 1900 mm",
        ),
        (_views("lao10.4", "left_lateral"), "turn of lao10.4 is 10.4 degrees, 0.4 degrees (4.0%) beyond the trained 0"),
        (
            replace(BEAM, pixel_spacing=(2.72, 2.72)),
            "at the isocenter of pa and left_lateral is 290.1 mm, 9.9 mm",
        ),
        (replace(BEAM, detector_offset=(0.0, 37.0)), "from the detector's middle of pa and left_lateral is 30.8 mm"),
    ],
)
def test_what_lies_a_little_beyond_is_warned_of(ranged: ProgressiveCascade, beam: ConeBeam, said: str) -> None:
    """One line each: quantity, views, value, share and trained range."""
    warnings = check_beam(ranged, beam)
    assert len(warnings) == 1
    assert said in warnings[0]
    assert "expect a worse result" in warnings[0]


@pytest.mark.parametrize(
    ("beam", "said"),
    [
        (
            replace(BEAM, source_to_isocenter=541.0, source_to_detector=949.0, pixel_spacing=(4.2, 4.2)),
            "xrays.json must lie in the range of geometries of the checkpoint: distance from source to isocenter of pa "
            "and left_lateral is 541.0 mm, 59.0 mm (9.8%) beyond the trained 600 to 1900 mm; give the true geometry",
        ),
        (
            _views("pa", "lao60"),
            "turn of lao60 is 30.0 degrees, 20.0 degrees (200.0%) beyond the trained 0 to 10",
        ),
        (replace(BEAM, pixel_spacing=(2.0, 2.0)), "is 213.3 mm, 86.7 mm (28.9%) beyond the trained 300 to 430 mm"),
        (_views("pa", "lao20"), "from two sides, 90 degrees apart as in training: pa and lao20 are 20 degrees apart"),
        (_views("pa", "ap"), "pa and ap are parallel, 90 degrees too few"),
        (_views("left_lateral", "pa"), "frontal first: left_lateral and pa are swapped"),
        (_views("right_lateral", "lao5"), "frontal first: right_lateral and lao5 are swapped"),
        (_views("pa"), "must have 2 views of 128 x 128 pixels like the checkpoint, got 1 of 128 x 128"),
        (replace(BEAM, detector_shape=(96, 128)), "like the checkpoint, got 2 of 96 x 128"),
    ],
)
def test_what_lies_farther_out_is_refused(ranged: ProgressiveCascade, beam: ConeBeam, said: str) -> None:
    """File, views, value, trained range, and by how much."""
    with pytest.raises(UserError) as error:
        check_beam(ranged, beam, "xrays.json")
    assert str(error.value).startswith("xrays.json must ")
    assert said in str(error.value)


def test_a_checkpoint_of_before_keeps_to_its_own_geometry(small_cascade, old: ProgressiveCascade) -> None:
    """Its state dict has no range; it loads, takes 2 per cent and the other side, warns of 5 more, refuses the rest."""
    state = {name: value for name, value in old.state_dict().items() if name != "range_values"}
    network = small_cascade(stage=1, geometry_range=RANGE)
    network.load_state_dict(state)
    assert network.geometry_range is None
    assert trained_range(network).source_to_isocenter == pytest.approx((1470.0, 1530.0))
    for beam in (BEAM, _views("ap", "right_lateral"), replace(BEAM, source_to_isocenter=1529.0)):
        assert check_beam(network, beam) == []
    near = replace(BEAM, source_to_isocenter=1560.0, source_to_detector=1872.0)
    assert "1560.0 mm, 30.0 mm (2.0%) beyond the trained 1470 to 1530 mm" in check_beam(network, near)[0]
    for beam in (BEDSIDE, _views("lao5_cranial3", "left_lateral"), _views("lao180", "left_lateral")):
        with pytest.raises(UserError, match="beyond the trained"):
            check_beam(network, beam)


def test_only_a_cascade_that_has_learnt_them_takes_opposite_views_as_they_are(
    ranged: ProgressiveCascade, old: ProgressiveCascade
) -> None:
    """Stage 1 of others takes an AP and a right lateral for a PA and a left lateral."""
    pair = _views("ap", "right_lateral")
    one_side = _network(replace(RANGE, opposite=False))
    assert detour(ranged, pair) is None
    assert detour(old, pair) == detour(one_side, pair) == BEAM
    assert mirrored_views(pair) == [1]
    assert mirrored_views(_views("lao176", "rao86")) == [0, 1]
    assert mirrored_views(_views("rao4", "lao95_cranial3")) == []


def test_learnt_opposite_views_are_told_to_stage_one(ranged: ProgressiveCascade, old: ProgressiveCascade) -> None:
    """With the same weights, stage 1 of a cascade that has learnt them sees other matrices, so looks otherwise."""
    image = np.random.default_rng(0).random((2, 128, 128)).astype(np.float32)
    pair = _views("ap", "left_lateral")
    as_learnt, as_usual = (first_look(network, image, pair).agreement_db for network in (ranged, old))
    assert list(as_learnt) == list(as_usual) == ["ap", "left_lateral"]
    assert as_learnt["ap"] != as_usual["ap"]
    assert first_look(ranged, image, BEAM).agreement_db == first_look(old, image, BEAM).agreement_db


def test_a_reconstruction_carries_range_and_warnings(
    ranged: ProgressiveCascade, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `reconstruct` met travels with the result."""
    monkeypatch.setattr(module, "VOLUME_SHAPE", (16, 16, 16))
    monkeypatch.setattr(module, "VOXEL_SIZE", 22.4)
    image = np.random.default_rng(0).random((2, 128, 128)).astype(np.float32)
    result = module.reconstruct(image, _views("lao10.2", "left_lateral"), network=ranged, refine=0)
    assert result.geometry_range == RANGE
    assert len(result.warnings) == 1
    assert "turn of lao10.2" in result.warnings[0]
    assert module.reconstruct(image, BEDSIDE, network=ranged, refine=0).warnings == ()


def test_presets_work_or_say_by_how_much_they_do_not(ranged: ProgressiveCascade, old: ProgressiveCascade) -> None:
    """On the model's detector, with their own rays; without a range nothing is brought there."""
    assert take_beam(ranged, BEAM) == (BEAM, [])
    for name in ("chest_stand", "bedside_ap", "xmed"):
        target, warnings = take_beam(ranged, ConeBeam.preset(name))
        assert warnings == []
        assert target.detector_shape == (128, 128)
        assert field_of(target) == pytest.approx(field_of(ConeBeam.preset(name)))
    for name, said in (
        ("x2ct", r"541.0 mm, 59.0 mm \(9.8%\) beyond the trained 600 to 1900"),
        ("c_arm", r"--preset must show 300 mm of the plane .* got 205.9 mm, 94.1 mm \(31.4%\) less"),
    ):
        with pytest.raises(UserError, match=said):
            take_beam(ranged, ConeBeam.preset(name), "--preset")
    with pytest.raises(UserError, match="like the checkpoint"):
        take_beam(old, ConeBeam.preset("chest_stand"))
