# SPDX-License-Identifier: Apache-2.0
"""Laws of growth: the full network equals the trained one before the first step, and then all of it learns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from progressive_cascade import ConeBeam
from progressive_cascade.errors import UserError
from progressive_cascade.inference.architecture import architecture_of
from progressive_cascade.networks import ProgressiveCascade
from progressive_cascade.paths import bundle_root
from progressive_cascade.training.checkpoints import HalfPrecisionState, load_predecessor

PLAIN: dict[str, Any] = {"cross_attention": False, "lift_channels": 0}
Cascade = Callable[..., ProgressiveCascade]


def _image(size: int = 128) -> torch.Tensor:
    return 4 * torch.rand(1, 2, size, size, generator=torch.Generator().manual_seed(0))


def _trained(small_cascade: Cascade, path: Path, stage: int, **arguments: Any) -> ProgressiveCascade:
    """A cascade with no weight at zero, written and rounded as weights are shipped."""
    network = small_cascade(stage=stage, **arguments)
    torch.manual_seed(stage)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    state = HalfPrecisionState(network).state_dict()
    torch.save(state, path)
    network.load_state_dict(state)
    return network.eval()


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_grown_network_equals_the_trained_one(small_cascade, tmp_path, stage):
    """In float32, whether the checkpoint ends with this stage or with the one before, up to the order of sums."""
    path = tmp_path / "plain.pt"
    for held in {stage, max(1, stage - 1)}:
        _trained(small_cascade, path, held, **PLAIN)
        plain, full = small_cascade(stage=stage, **PLAIN), small_cascade(stage=stage)
        load_predecessor(plain, path)
        load_predecessor(full, path, grow=True)
        with torch.no_grad():
            expected, start = plain(_image()), small_cascade(stage=stage, **PLAIN)(_image())
            torch.testing.assert_close(full(_image()), expected, atol=1e-6, rtol=0)
        assert not torch.allclose(expected, start, atol=1e-3)


def test_the_shipped_stage_grows(tmp_path):
    """Weights as users have them, at full size, into the network of the attention preset."""
    path = bundle_root() / "models" / "stage1_best.pt"
    plain, full = ProgressiveCascade(stage=1), ProgressiveCascade(stage=1, cross_attention=True, lift_channels=8)
    load_predecessor(plain, path)
    load_predecessor(full, path, grow=True)
    with torch.no_grad():
        torch.testing.assert_close(full(_image(512)), plain(_image(512)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_no_new_parameter_stays_dead(small_cascade, tmp_path, stage):
    """What lies behind a zero waits for it to move: after four steps every parameter has had its gradient."""
    path = tmp_path / "plain.pt"
    _trained(small_cascade, path, stage, **PLAIN)
    network = small_cascade(stage=stage)
    load_predecessor(network, path, grow=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    dead = {name for name, _ in network.named_parameters()}
    for _ in range(4):
        optimizer.zero_grad()
        ((network(_image()) - 0.5) ** 2).mean().backward()
        dead -= {
            n for n, parameter in network.named_parameters() if parameter.grad is not None and parameter.grad.any()
        }
        optimizer.step()
    assert dead == set()


def test_what_grew_is_read_off_its_checkpoint(small_cascade, tmp_path):
    """Inference finds the architecture of a grown network, and a later stage takes it as its predecessor."""
    path, closed = tmp_path / "stage1_best.pt", {"consistency_iterations": (0, 0, 2)}
    _trained(small_cascade, path, 1, **closed, **PLAIN)
    network = small_cascade(stage=1, **closed)
    load_predecessor(network, path, grow=True)
    torch.save(HalfPrecisionState(network).state_dict(), path)
    found = architecture_of(torch.load(path, weights_only=True))
    assert found["cross_attention"] and found["lift_channels"] == 4 and found["token_dim"] == 32
    for grow in (False, True):
        load_predecessor(small_cascade(stage=2, freeze_earlier=True, **closed), path, grow=grow)


def test_growth_is_never_an_accident(small_cascade, tmp_path):
    """Without the key the message suggests it, but only where it would help."""
    path = tmp_path / "plain.pt"
    _trained(small_cascade, path, 1, **PLAIN)
    with pytest.raises(UserError, match=r"plain\.pt must hold stage 1 of this architecture.*set grow to true"):
        load_predecessor(small_cascade(stage=1), path)
    with pytest.raises(UserError, match=r"first difference: \S+$"):
        load_predecessor(small_cascade(stage=1, unet_channels=((4, 8, 32),) * 3), path)
    with pytest.raises(UserError, match="predecessor or grow_from must be a checkpoint that stage 1 grows from"):
        load_predecessor(small_cascade(stage=1), None, grow=True)


def test_what_cannot_grow_is_one_clear_error(small_cascade, tmp_path):
    """Fewer channels, other widths, depths or geometry, another stage, a part missing from the middle."""
    path = tmp_path / "other.pt"

    def refused(words: str, held: int = 1, own: dict[str, Any] | None = None, **arguments: Any) -> None:
        _trained(small_cascade, path, held, **arguments)
        with pytest.raises(UserError, match=rf"other\.pt must {words}"):
            load_predecessor(small_cascade(stage=1, **(own or {})), path, grow=True)

    refused(r"hold stage 1 .* stages\.0\.unet\.enter\.weight", own=PLAIN)
    refused(r"hold stage 1 .* stages\.0\.adapter\.", own={"lift_channels": 2})
    refused(r"hold stage 1 .* stages\.0\.unet\.", unet_channels=((4, 8, 32),) * 3, **PLAIN)
    refused(r"hold stage 1 .* stages\.0\.unet\.enter\.weight", lift_pixels=False, **PLAIN)
    refused(r"hold stage 1 .* stages\.1\.", held=2, **PLAIN)
    refused(r"hold stage 1 .* xray\.blocks\.1", own={"vit_depth": 2})
    other = ConeBeam(1000, 1800, (128, 128), (3.36, 3.36))
    refused("have the geometry of the config", geometry=other, **PLAIN)
    state = _trained(small_cascade, path, 1).state_dict()
    torch.save({name: value for name, value in state.items() if not name.startswith("xray.")}, path)
    with pytest.raises(UserError, match=r"other\.pt must hold stage 1 .* xray\."):
        load_predecessor(small_cascade(stage=1), path, grow=True)


def test_what_would_stay_untrained_does_not_grow(small_cascade, tmp_path):
    """An encoder that is fresh and frozen is refused; all of the cascade may be trained instead."""
    path = tmp_path / "plain.pt"
    for held in (1, 2):
        _trained(small_cascade, path, held, **PLAIN)
        with pytest.raises(UserError, match=r"freeze_earlier must be false where stage 2 grows from .*plain\.pt"):
            load_predecessor(small_cascade(stage=2, freeze_earlier=True), path, grow=True)
        load_predecessor(small_cascade(stage=2, freeze_earlier=False), path, grow=True)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_stage_grows_from_its_own_behind_a_grown_one(small_cascade, tmp_path, stage):
    """Earlier stages and encoder are the predecessor's, the last does what the plain one does behind them."""
    before, own = tmp_path / "before.pt", tmp_path / "own.pt"
    _trained(small_cascade, before, stage - 1)
    plain = _trained(small_cascade, own, stage, **PLAIN)
    earlier, network = small_cascade(stage=stage - 1), small_cascade(stage=stage, freeze_earlier=True)
    load_predecessor(earlier, before)
    load_predecessor(network, before, grow=True, grow_from=own)
    state = network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in earlier.state_dict().items())
    volume, context = network.prepare_stage(_image())
    with torch.no_grad():
        bare = plain.stages[-1].context(volume, _image(), _image(), _image(), context.matrices, None, None)
        expected = plain.stages[-1](volume, [0, 0, 0], bare)
        torch.testing.assert_close(network.stages[-1](volume, [0, 0, 0], context), expected, atol=1e-6, rtol=0)
    assert (expected - volume).abs().max() > 0.01
    torch.save(HalfPrecisionState(network).state_dict(), own)
    load_predecessor(small_cascade(stage=stage, freeze_earlier=True), before, grow=True, grow_from=own)
    _trained(small_cascade, own, stage)
    with pytest.raises(UserError, match=r"grow_from must be a checkpoint without a 2-D network.*own\.pt"):
        load_predecessor(small_cascade(stage=stage, freeze_earlier=True), before, grow=True, grow_from=own)
    _trained(small_cascade, own, stage - 1, **PLAIN)
    with pytest.raises(UserError, match=rf"own\.pt must hold stage {stage} .* stages\.{stage - 1}\."):
        load_predecessor(small_cascade(stage=stage, freeze_earlier=True), before, grow=True, grow_from=own)
    own.unlink()
    with pytest.raises(UserError, match=r"own\.pt"):
        load_predecessor(small_cascade(stage=stage), before, grow=True, grow_from=own)
