# SPDX-License-Identifier: Apache-2.0
"""Which implementation of the projector's loops runs on a device."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import torch

BACKENDS = ("auto", "numba", "torch", "triton")
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
    backend = "auto" if backend == "triton" else backend  # it has no rays whose pose needs a gradient
    if backend == "torch" or (backend == "auto" and device.type != "cpu"):
        return plain
    compiled = _compiled()
    if backend == "numba" and device.type != "cpu":
        raise ValueError(f"backend must be 'auto' or 'torch' on {device.type}, got 'numba', which runs on the CPU")
    if backend == "numba" and compiled is None:
        raise ValueError("backend 'numba' must be installed: pip install numba; 'torch' does without")
    return compiled or plain


def choose_fused(device: torch.device, dtype: torch.dtype, *, weights: str, method: str, backend: str) -> Any | None:
    """The module whose operator does a whole batch at once, :mod:`.triton_backend`.

    Args:
        device: of the values.
        dtype: of the values; in float64 ``auto`` keeps to the reference in torch.
        weights: ``joseph`` or ``distance``.
        method: ``auto``, ``separable`` or ``ray``.
        backend: one of :data:`BACKENDS`.

    Returns:
        The module, or None where views are projected one by one.

    Raises:
        ValueError: if ``triton`` is asked for and cannot do it, or cannot run here.
    """
    backend = _preferred.get() if backend == "auto" else backend
    if backend == "auto":
        suits = device.type == "cuda" and dtype != torch.float64 and weights == "joseph" and method != "separable"
        return _fused() if suits and _works(device) else None
    if backend != "triton":
        return None
    fused = _fused()
    if fused is None:
        raise ValueError("backend 'triton' must be installed: pip install triton; 'torch' does without")
    if not fused.runs_on(device):
        raise ValueError(
            f"backend must be 'auto' or 'torch' on {device.type}, got 'triton', which needs a CUDA device "
            "(or TRITON_INTERPRET=1 in the environment before it is imported, for tests)"
        )
    if weights != "joseph":
        raise ValueError(f"weights must be 'joseph' for backend 'triton', got {weights!r}, which 'torch' has")
    if method == "separable":
        raise ValueError("method must be 'auto' or 'ray' for backend 'triton', got 'separable', which 'torch' has")
    return fused


@functools.cache
def _fused() -> ModuleType | None:
    try:
        from progressive_cascade.projector import triton_backend
    except ImportError:
        return None
    return triton_backend


@functools.cache
def _works(device: torch.device) -> bool:
    """Whether a device runs the fused kernels: Triton may know no such card, or find no C compiler for its launcher."""
    fused = _fused()
    if fused is None:
        return False
    try:
        fused.try_out(device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler may raise; torch goes on without it
        warnings.warn(f"backend 'torch' in place of 'triton', which fails on {device}: {error}", stacklevel=2)
        return False
    return True
