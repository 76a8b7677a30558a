# SPDX-License-Identifier: Apache-2.0
"""Mixed precision only where the processor has instructions for it."""

import types

import pytest
import torch
from torch import nn

from progressive_cascade import precision
from progressive_cascade.inference.inferers import CascadeInferer
from progressive_cascade.losses import VGGPerceptualLoss
from progressive_cascade.losses.perceptual import VGG16Trunk


def _pretend(monkeypatch: pytest.MonkeyPatch, **checks: bool) -> None:
    """A processor of which PyTorch's oneDNN says this."""
    operators = types.SimpleNamespace(**{name: lambda answer=answer: answer for name, answer in checks.items()})
    monkeypatch.setattr(torch.ops, "mkldnn", operators)


class _Spy(nn.Module):
    """Notes the precision it runs in."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        return image


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("fast", [True, False])
def test_a_network_runs_in_half_precision_only_where_that_is_fast(monkeypatch, dtype: str, fast: bool) -> None:
    """What PyTorch says of the dtype decides, dtype by dtype; without an answer it is float32."""
    name = {"bfloat16": "_is_mkldnn_bf16_supported", "float16": "_is_mkldnn_fp16_supported"}[dtype]
    _pretend(monkeypatch, **{name: fast})
    spy = _Spy()
    CascadeInferer(None, amp=True, amp_dtype=dtype)(torch.zeros(1, 2, 4, 4), spy)
    assert spy.autocast == (getattr(torch, dtype) if fast else torch.float32)
    _pretend(monkeypatch)
    CascadeInferer(None, amp=True, amp_dtype=dtype)(torch.zeros(1, 2, 4, 4), spy)
    assert spy.autocast == torch.float32


def test_the_perceptual_trunk_keeps_float32_where_bfloat16_is_slow(monkeypatch, tmp_path) -> None:
    """Bit for bit the value without `amp`."""
    torch.save(VGG16Trunk("relu3_3").state_dict(), tmp_path / "weights.pt")
    _pretend(monkeypatch, _is_mkldnn_bf16_supported=False)
    volumes = torch.rand(2, 1, 1, 16, 16, 16)
    values = [VGGPerceptualLoss(tmp_path / "weights.pt", seed=0, amp=amp)(*volumes).item() for amp in (False, True)]
    assert values[0] == values[1] > 0


def test_a_device_that_is_no_cpu_decides_for_itself() -> None:
    """PyTorch's own autocast knows which GPUs have bfloat16."""
    assert precision.has_fast(torch.bfloat16, "cuda") and precision.has_fast(torch.float16, "mps")
