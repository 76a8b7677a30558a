# SPDX-License-Identifier: Apache-2.0
"""Which implementation of the projector's loops runs on a device."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import torch

BACKENDS = ("auto", "numba", "torch")
_preferred: ContextVar[str] = ContextVar("projector_backend", default="auto")


@contextlib.contextmanager
def prefer_backend(backend: str) -> Iterator[None]:
    """What ``auto`` means within this context.

    Args:
        backend: one of :data:`BACKENDS`.

    Yields:
        Nothing.

    Raises:
        ValueError: if there is no such backend.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")
    token = _preferred.set(backend)
    try:
        yield
    finally:
        _preferred.reset(token)


@functools.cache
def _compiled() -> ModuleType | None:
    try:
        from progressive_cascade.projector import numba_backend
    except ImportError:
        return None
    return numba_backend


def choose_kernels(device: torch.device, backend: str, plain: ModuleType) -> Any:
    """The module whose kernels run on a device.

    Args:
        device: of the volume.
        backend: one of :data:`BACKENDS`.
        plain: the module in plain torch.

    Returns:
        ``plain``, or the compiled module of the same functions.

    Raises:
        ValueError: if the backend cannot run here.
    """
    backend = _preferred.get() if backend == "auto" else backend
    if backend == "torch" or (backend == "auto" and device.type != "cpu"):
        return plain
    compiled = _compiled()
    if backend == "numba" and device.type != "cpu":
        raise ValueError(f"backend must be 'auto' or 'torch' on {device.type}, got 'numba', which runs on the CPU")
    if backend == "numba" and compiled is None:
        raise ValueError("backend 'numba' must be installed: pip install numba; 'torch' does without")
    return compiled or plain
