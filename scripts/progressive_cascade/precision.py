# SPDX-License-Identifier: Apache-2.0
"""What a device is good at: mixed precision where it is fast, copies that it is not waited for."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

_CPU_CHECKS = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}


def has_fast(dtype: torch.dtype, device_type: str) -> bool:
    """Whether a device multiplies in half precision by instructions made for it.

    A CPU without them (on x86: without AVX-512, as many desktops and notebooks are) is unusable at it: PyTorch leaves
    oneDNN for a plain loop, 300 times as slow as float32 for a convolution of 64 channels on 32³ voxels.

    Args:
        dtype: ``torch.bfloat16`` or ``torch.float16``.
        device_type: of the tensors, such as ``cpu`` or ``cuda``.

    Returns:
        True for every device that is no CPU: PyTorch's own autocast answers for those.
    """
    if device_type != "cpu":
        return True
    check = getattr(torch.ops.mkldnn, _CPU_CHECKS[dtype], None)
    return check is not None and bool(check())


def usual_device() -> str:
    """``cuda`` where there is a GPU, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def mixed_precision(device_type: str, dtype: torch.dtype = torch.bfloat16) -> AbstractContextManager[Any]:
    """Autocast where the device is fast at it, float32 elsewhere.

    Args:
        device_type: of the tensors, such as ``cpu`` or ``cuda``.
        dtype: ``torch.bfloat16`` or ``torch.float16``.

    Returns:
        A context manager.
    """
    return torch.autocast(device_type, dtype=dtype) if has_fast(dtype, device_type) else nullcontext()


def upload(values: np.ndarray, device: torch.device) -> Tensor:
    """Numbers as float32 on a device, without waiting for what a GPU is at.

    Args:
        values: any shape.
        device: where to.
    """
    host = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    return (host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True)
