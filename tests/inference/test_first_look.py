# SPDX-License-Identifier: Apache-2.0
"""Laws of the first look: picture and stage 1 are asked together; what is doubted is named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from progressive_cascade.geometry import ConeBeam
from progressive_cascade.inference import examine as examine_module
from progressive_cascade.inference import first_look as module
from progressive_cascade.inference.examine import examine
from progressive_cascade.inference.first_look import FirstLook, first_look
from progressive_cascade.inference.size import Size
from progressive_cascade.networks import ProgressiveCascade
from progressive_cascade.radiograph.pair import Pair

PAIR = Pair(np.zeros((2, 128, 128), np.float32), None, ConeBeam(detector_shape=(128, 128)), "display", mirror=0.999)


def _looked(mirrored_db: float | None, *, pa: float = 30.0) -> FirstLook:
    return FirstLook({"pa": pa, "left_lateral": 31.0}, mirrored_db)


@pytest.mark.parametrize(
    ("mirror", "mirrored_db", "expected"),
    [
        (0.999, 31.0, True),
        (0.999, None, True),
        (0.999, 28.0, False),
        (0.5, 33.0, True),
        (0.5, 31.0, False),
        (None, 33.0, True),
        (None, None, False),
        (0.0001, 32.0, False),
        (1.0, 29.9, True),
        (0.0, 40.0, True),
    ],
)
def test_mirror_takes_picture_and_stage(mirror: float | None, mirrored_db: float | None, expected: bool) -> None:
    """Both for it: called mirrored; either against it outweighs a little of the other."""
    assert _looked(mirrored_db).looks_mirrored(mirror) is expected


def test_doubts_name_the_views_below() -> None:
    """A view that is explained badly is named; so are grey levels whose slices differ."""
    assert _looked(None).doubts(calibrated=True) == [] == _looked(None).doubts(calibrated=False)
    (line,) = _looked(None, pa=26.0).doubts(calibrated=True)
    assert "pa 26.0 dB" in line and "left_lateral" not in line
    assert not _looked(None, pa=26.8).doubts(calibrated=False)
    (line,) = replace(_looked(None), slice_difference=0.06).doubts(calibrated=False)
    assert "two views do not fit" in line and "6%" in line


@pytest.mark.parametrize(("trust", "is_flipped", "is_warned"), [(None, 0, 1), ("tags", 0, 0), ("picture", 1, 0)])
def test_mirrored_frontal_is_decided_by_trust(
    monkeypatch: pytest.MonkeyPatch, trust: str | None, is_flipped: bool, is_warned: bool
) -> None:
    """Warned of; passed over with the tags, flipped and noted with the picture, and then looked at again."""
    asked: list[bool] = []

    def assemble(mirror_frontal: bool) -> Pair:
        asked.append(mirror_frontal)
        return replace(PAIR, mirror=1 - PAIR.mirror) if mirror_frontal and PAIR.mirror else PAIR

    monkeypatch.setattr(module, "first_look", lambda *_, mirrored, **__: _looked(33.0 if mirrored else None))
    monkeypatch.setattr(examine_module, "find_size", lambda *_: Size(1.0, 0.1, 0.1))
    pair = examine(assemble, None, trust)  # pyright: ignore[reportArgumentType]
    assert asked == ([False, True] if is_flipped else [False])
    assert bool(pair.notes) == bool(is_flipped) and bool(pair.warnings) == bool(is_warned)
    assert all("looks mirrored" in line for line in [*pair.notes, *pair.warnings])
    assert pair.first_agreement == {"pa": 30.0, "left_lateral": 31.0}


@pytest.mark.parametrize(
    ("known", "pa", "in_register", "is_moved"),
    [
        ("display", 20.0, True, True),
        ("display", 30.0, True, False),
        ("calibrated", 20.0, True, False),
        ("display", 20.0, False, False),
    ],
)
def test_grey_levels_that_are_explained_badly_are_brought_into_register(
    monkeypatch: pytest.MonkeyPatch, known: str, pa: float, in_register: bool, is_moved: bool
) -> None:
    """They alone; the doubts are those about the pair as it then is."""
    given = replace(PAIR, intensities=known)
    moved = replace(given, notes=["moved"])
    monkeypatch.setattr(examine_module, "register", lambda *_: moved)
    monkeypatch.setattr(examine_module, "find_size", lambda *_: Size(1.0, 0.1, 0.1))
    monkeypatch.setattr(examine_module, "look_at_pair", lambda _, pair: _looked(None, pa=pa if pair is given else 30.0))
    pair = examine(lambda _: given, None, "tags", in_register=in_register)  # pyright: ignore[reportArgumentType]
    assert bool(pair.notes) == is_moved
    assert bool(pair.warnings) == (pa < 25 and not is_moved)


def test_mirror_image_is_what_the_flipped_pair_scores(small_cascade: type[ProgressiveCascade]) -> None:
    """The frontal's mirror image scores what it does where the pair is given so, grey levels after any tone curve."""
    network = small_cascade().eval()
    beam = ConeBeam(detector_shape=(128, 128), pixel_spacing=(3.36, 3.36))
    image = np.random.default_rng(0).random((2, 128, 128)).astype(np.float32) + np.linspace(0, 3, 128)[None, None]
    image = image.astype(np.float32)
    flipped = np.stack((image[0, :, ::-1], image[1]))
    for calibrated in (True, False):
        both = first_look(network, image, beam, calibrated=calibrated, mirrored=True)
        other = first_look(network, flipped, beam, calibrated=calibrated)
        assert both.mirrored_db == pytest.approx(other.agreement_db["pa"], abs=1e-3)
        assert other.mirrored_db is None and (other.slice_difference is None) == calibrated


def test_a_view_without_a_patient_is_looked_at(small_cascade: type[ProgressiveCascade]) -> None:
    """Grey levels that are all air have no tone curve; they are compared as they are."""
    beam = ConeBeam(detector_shape=(128, 128), pixel_spacing=(3.36, 3.36))
    image = np.random.default_rng(0).random((2, 128, 128)).astype(np.float32)
    image[1] = 0
    found = first_look(small_cascade().eval(), image, beam, calibrated=False)
    assert not np.isnan(list(found.agreement_db.values())).any() and found.slice_difference == 2.0
