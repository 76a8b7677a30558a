# SPDX-License-Identifier: Apache-2.0
"""A second device on a machine without one: it computes on the CPU and, like a GPU, refuses to mix with it.

Tensors on it are wrappers around CPU tensors. What a GPU waits for (a number read on the host, a copy to it) is
written down with the place in the package that asked for it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import progressive_cascade

DEVICE = torch.device("lazy", 0)
"""The device's name: one that autograd accepts without a driver, and no build of torch has."""
_PACKAGE = Path(progressive_cascade.__file__).parent
_aten = torch.ops.aten
# What may take tensors of both devices: copies, and indices, which CUDA reads from the host, too.
_MIXES = {_aten._to_copy, _aten.copy_, _aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_}


class DeviceTensor(torch.Tensor):
    """A tensor that lies on the second device.

    Args:
        inner: its values.
    """

    host: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> DeviceTensor:
        """Wrap."""
        return torch.Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=DEVICE,
        )

    def __init__(self, inner: torch.Tensor) -> None:
        self.host = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every operation, below autograd."""
        return _run(func, args, kwargs or {})


class SecondDevice(TorchDispatchMode):
    """While active, the device exists.

    Attributes:
        waits: "file.py:function" in the package of every number read and every copy to the host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every operation, below autograd."""
        kwargs = kwargs or {}
        on_device = any(isinstance(leaf, DeviceTensor) for leaf in tree_leaves((args, kwargs)))
        leaves = func.overloadpacket is _aten._to_copy and _is_host(kwargs.get("device"))
        if on_device and (leaves or func.overloadpacket is _aten._local_scalar_dense):
            self.waits.append(_caller())
        return _run(func, args, kwargs)


@contextlib.contextmanager
def second_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[SecondDevice]:
    """The device, with generators and autocast for it (which is off: half precision is not what is tested)."""
    # It knows torch's functions by identity, and must have met them before they are replaced here.
    import torch._dynamo

    generator, autocast, load = torch.Generator, torch.autocast, torch.load
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": generator("cpu"))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type="cpu": False)

    def quiet(device_type: str, **options: Any) -> Any:
        return contextlib.nullcontext() if device_type == DEVICE.type else autocast(device_type, **options)

    def load_onto(*args: Any, map_location: Any = None, **options: Any) -> Any:
        wanted = isinstance(map_location, (str, torch.device)) and torch.device(map_location).type == DEVICE.type
        return _wrap(load(*args, map_location="cpu" if wanted else map_location, **options), wanted)

    def send(make: Any) -> Any:
        # torch builds tensors from numbers where no mode sees it.
        def build(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
            given = isinstance(data, torch.Tensor) or device is None or torch.device(device).type != DEVICE.type
            return make(data, device=device, **options) if given else make(data, **options).to(device)

        return build

    for name in ("tensor", "as_tensor"):
        monkeypatch.setattr(torch, name, send(getattr(torch, name)))
    monkeypatch.setattr(torch, "autocast", quiet)
    monkeypatch.setattr(torch, "load", load_onto)
    with SecondDevice() as device:
        yield device


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    on_device = any(isinstance(tensor, DeviceTensor) for tensor in tensors)
    strangers = [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor) and tensor.dim() > 0]
    if on_device and strangers and func.overloadpacket not in _MIXES:
        raise RuntimeError(f"Expected all tensors to be on the same device, {func} got {DEVICE} and cpu")
    wanted = kwargs.get("device")
    if wanted is not None:
        on_device = torch.device(wanted).type == DEVICE.type
        kwargs = {**kwargs, "device": torch.device("cpu"), **({"pin_memory": False} if "pin_memory" in kwargs else {})}
    elif func.overloadpacket is _aten.copy_:
        on_device = isinstance(args[0], DeviceTensor)
    inner_args, inner_kwargs = tree_map(
        lambda leaf: leaf.host if isinstance(leaf, DeviceTensor) else leaf, (args, kwargs)
    )
    out = func(*inner_args, **inner_kwargs)
    if func._schema.is_mutable and isinstance(out, torch.Tensor) and args and out is inner_args[0]:
        return args[0]
    return _wrap(out, on_device)


def _unwrap(leaf: Any) -> Any:
    return leaf.host if isinstance(leaf, DeviceTensor) else leaf


def _wrap(out: Any, on_device: bool) -> Any:
    return tree_map(lambda leaf: DeviceTensor(leaf) if on_device and isinstance(leaf, torch.Tensor) else leaf, out)


def _is_host(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cpu"


def _caller() -> str:
    """The innermost function of the package on the stack, or of whoever called."""
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(_PACKAGE):
            return f"{path.relative_to(_PACKAGE).as_posix()}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"
