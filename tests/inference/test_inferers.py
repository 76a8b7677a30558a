# SPDX-License-Identifier: Apache-2.0
"""Laws of the cascade's inferer."""

from __future__ import annotations

import pytest
import torch

from progressive_cascade.consistency import DataConsistency
from progressive_cascade.errors import UserError
from progressive_cascade.inference.inferers import CascadeInferer, device_defaults


@pytest.fixture
def network(small_cascade):
    """A three-stage miniature whose last stage does something."""
    network = small_cascade(stage=3).eval()
    torch.nn.init.normal_(network.stages[-1].unet.out.weight, std=0.02)
    return network


def _image(batch: int = 1) -> torch.Tensor:
    return 4 * torch.rand(batch, 2, 128, 128, generator=torch.Generator().manual_seed(0))


def test_one_window_equals_the_whole_pass(network):
    """With a window that covers the grid nothing is cut, and nothing changes."""
    with torch.no_grad():
        one = CascadeInferer(64, consistency_rounds=0)(_image(), network)
        torch.testing.assert_close(one, network(_image()), atol=1e-3, rtol=0)


def test_sliding_windows_stay_close_to_the_whole_pass(network):
    """Windows differ from the whole pass at their borders alone: by less than the residual itself."""
    with torch.no_grad():
        prior, _ = network.prepare_stage(_image())
        whole = network(_image())
        windowed = CascadeInferer(32, overlap=0.5)(_image(), network)
    assert windowed.shape == whole.shape
    assert (windowed - whole).abs().mean() < 0.3 * (whole - prior).abs().mean()


def test_batches_equal_single_calls(network):
    """Windows of one sample never see another's radiographs."""
    images = torch.cat((_image(), _image().flip(-1)))
    inferer = CascadeInferer(32)
    with torch.no_grad():
        together = inferer(images, network)
        alone = inferer(images[1:], network)
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("half_precision")
def test_autocast_stays_close_and_returns_float32(network):
    """bfloat16 inside, float32 outside."""
    with torch.no_grad():
        full, half = CascadeInferer(None)(_image(), network), CascadeInferer(None, amp=True)(_image(), network)
    assert half.dtype == torch.float32
    assert 0 < (full - half).abs().mean() < 0.01


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"roi_size": 100}, "roi_size must be"),
        ({"overlap": 1.0}, "overlap must lie in"),
        ({"amp_dtype": "int8"}, "amp_dtype must be"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    """Each refused with the condition and the value."""
    with pytest.raises(ValueError, match=words):
        CascadeInferer(**arguments)


def test_a_portable_inferer_does_without_compiled_kernels(monkeypatch, network):
    """Every projection of a portable reconstruction is torch's; otherwise the compiled kernels are used."""
    from progressive_cascade.projector import backends

    asked = []
    monkeypatch.setattr(backends, "_compiled", lambda: asked.append(1))
    with torch.no_grad():
        portable = CascadeInferer(None, portable=True)(_image(), network)
        assert not asked
        torch.testing.assert_close(CascadeInferer(None)(_image(), network), portable)
    assert asked


def test_further_consistency_brings_a_calibrated_pair_closer_to_its_radiographs(small_cascade):
    """More conjugate-gradient steps leave less unexplained; an uncalibrated pair is left alone."""
    network = small_cascade(stage=1).eval()
    further = CascadeInferer(None, consistency_rounds=3)
    closing = DataConsistency(16, 22.4)
    matrices = network.projection_matrices[None]
    with torch.no_grad():
        plain = CascadeInferer(None, consistency_rounds=0)(_image(), network)
        solved = further(_image(), network)
        kept = further(_image(), network, calibrated=torch.zeros(1))
        unexplained = [float(closing.residual(volume, _image(), matrices).norm()) for volume in (plain, solved)]
        expected = network(_image(), calibrated=torch.zeros(1))
    assert unexplained[1] < unexplained[0]
    assert torch.equal(kept, expected)


@pytest.mark.parametrize(
    ("device", "free", "expected"),
    [
        ("cpu", None, (None, True)),
        ("mps", None, (160, True)),
        ("cuda", 8 << 30, (None, False)),
        ("cuda:1", 2 << 30, (160, False)),
    ],
)
def test_defaults_suit_the_device(device, free, expected):
    """Whole volumes where memory is known to suffice; half precision where it is not slower."""
    assert device_defaults(device, free) == expected


def test_too_little_memory_is_told_with_sizes_and_a_way_out(monkeypatch, network):
    """Whoever runs out: one line that names the window, and no traceback of the allocator."""

    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(network.stages[-1], "forward", fail)
    for window, words in ((32, "32 x 32 x 32"), (None, "none")):
        with pytest.raises(UserError, match=f"batch of 1 pairs of 128 x 128 pixels with windows .* of {words}; take a"):
            CascadeInferer(window)(_image(), network)


def test_the_default_on_a_device_reconstructs(network, device):
    """What the device's defaults say runs there, and is close to the CPU in float32."""
    with torch.no_grad():
        expected = CascadeInferer(None)(_image(), network)
        inferer = CascadeInferer(**device_defaults(device)._asdict())
        ours = inferer(_image().to(device), network.to(device)).cpu()
    assert (ours - expected).abs().mean() < 2e-3
