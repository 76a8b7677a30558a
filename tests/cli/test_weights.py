# SPDX-License-Identifier: Apache-2.0
"""Which shipped weights a pair takes: the chest stand's where they know its geometry, else those of any geometry."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from progressive_cascade import ConeBeam
from progressive_cascade.cli import build_parser
from progressive_cascade.cli.radiographs import learnt, read_pair
from progressive_cascade.cli.weights import Weights
from progressive_cascade.errors import GeometryError
from progressive_cascade.inference.examine import examine
from progressive_cascade.inference.reconstruct import check_beam, default_checkpoint, load_cascade, wide_checkpoint
from progressive_cascade.networks import ProgressiveCascade


def _work(beam: ConeBeam):
    def work(options: argparse.Namespace, network: ProgressiveCascade) -> tuple[Path | None, bool]:
        check_beam(network, beam)
        return options.checkpoint, network.geometry_range is not None

    return work


@pytest.fixture(scope="module")
def shipped() -> Weights:
    """The shipped weights, each loaded once."""
    return Weights(None, "cpu")


def test_a_chest_stand_takes_its_own_weights(shipped: Weights) -> None:
    """No detour where the better weights fit; the options stay as they are."""
    options = argparse.Namespace(checkpoint=None)
    assert shipped.run(options, _work(ConeBeam())) == (None, False)
    assert options.checkpoint is None


@pytest.mark.parametrize("beam", [ConeBeam.preset("bedside_ap"), ConeBeam(800.0, 1000.0)])
def test_another_geometry_takes_the_wide_weights_and_says_so(
    shipped: Weights, beam: ConeBeam, capsys: pytest.CaptureFixture[str]
) -> None:
    """The work is told which weights it has, so that its record names them."""
    assert shipped.run(argparse.Namespace(checkpoint=None), _work(beam)) == (wide_checkpoint(), True)
    assert "taking the weights any_geometry.pt" in capsys.readouterr().out


def test_what_no_weights_take_is_refused_in_the_words_of_the_wide_ones(shipped: Weights) -> None:
    """The source half a metre from the patient: the range that is named is the wide one."""
    with pytest.raises(GeometryError, match=r"541.0 mm, 59.0 mm .* beyond the trained 600 to 1900 mm"):
        shipped.run(argparse.Namespace(checkpoint=None), _work(ConeBeam(541.0, 720.0)))


def test_ones_own_checkpoint_is_the_only_one() -> None:
    """Who names weights is not given others."""
    own = Weights(default_checkpoint(), "cpu")
    with pytest.raises(GeometryError, match="beyond the trained 1470 to 1530 mm"):
        own.run(argparse.Namespace(checkpoint=default_checkpoint()), _work(ConeBeam(800.0, 1000.0)))


def test_both_weights_share_their_later_stages() -> None:
    """Stage 1 alone was trained for any geometry; what sharpens its volume is the stand's."""
    stand, wide = load_cascade().state_dict(), load_cascade(wide_checkpoint()).state_dict()
    later = [name for name in stand if name.startswith(("stages.1.", "stages.2."))]
    assert len(later) > 50 and all(bool((stand[name] == wide[name]).all()) for name in later)
    assert not bool((stand["stages.0.unet.out.weight"] == wide["stages.0.unet.out.weight"]).all())


def test_a_right_lateral_goes_to_the_weights_that_have_learnt_it(shipped: Weights) -> None:
    """The stand's weights take one by a detour; only their own checkpoint, named by the user, still does."""
    beam = ConeBeam(views=("pa", "right_lateral"))
    free = argparse.Namespace(checkpoint=None, geometry=None, preset=None)
    assert shipped.run(free, lambda options, network: (learnt(options, network, beam), options.checkpoint)) == (
        beam,
        wide_checkpoint(),
    )
    own = argparse.Namespace(checkpoint=default_checkpoint(), geometry=None, preset=None)
    assert learnt(own, shipped.network(None), beam) is beam


def test_grey_levels_that_the_stand_explains_badly_go_to_weights_that_have_seen_such(
    shipped: Weights, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise by its values: read by the stand first, then by the others; who names a checkpoint stays with it."""
    # Noise is like nothing, however long it is moved about to be brought into register.
    monkeypatch.setattr(
        "progressive_cascade.inference.examine.examine",
        lambda *arguments, in_register, **given: examine(*arguments, in_register=False, **given),
    )
    generator = np.random.default_rng(0)
    for name in ("pa", "lateral"):
        pixels = generator.integers(0, 256, (12, 12), dtype=np.uint8)
        Image.fromarray(pixels).resize((192, 192)).save(tmp_path / f"{name}.png")
    command = ["reconstruct", "--pa", str(tmp_path / "pa.png"), "--lateral", str(tmp_path / "lateral.png")]
    options = build_parser().parse_args([*command, "--output", str(tmp_path / "ct.nii.gz"), "--trust-tags"])

    def work(options: argparse.Namespace, network: ProgressiveCascade) -> Path | None:
        assert not read_pair(options, network).calibrated
        return options.checkpoint

    assert shipped.run(options, work) == wide_checkpoint()
    assert "grey levels that the weights of the chest stand explain to" in capsys.readouterr().out
    options.checkpoint = default_checkpoint()
    assert Weights(default_checkpoint(), "cpu").run(options, work) == default_checkpoint()
