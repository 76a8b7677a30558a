# SPDX-License-Identifier: Apache-2.0
"""Compiles the projector's Triton kernels to machine code of an NVIDIA GPU; needs Triton's compiler, and no GPU."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from progressive_cascade.projector import triton_backend, triton_kernels

_GEOMETRY = {"matrices": "*fp32", "affines": "*fp32", "reaches": "*fp64"}
_PIXELS = dict(zip(("SIDE", "SLOW"), triton_backend.PIXEL_TILE, strict=True))
_VOXELS = dict(zip(("TILE_X", "TILE_Y", "TILE_Z"), triton_backend.VOXEL_TILE, strict=True))
_KERNELS = {
    triton_kernels.sum_rays_kernel: ({"volume": "*fp32", "out": "*fp32", **_GEOMETRY}, _PIXELS),
    triton_kernels.prepare_kernel: (
        {"projections": "*fp32", "weighed": "*fp32", "ends": "*i32", "table": "*fp64", **_GEOMETRY},
        _PIXELS,
    ),
    triton_kernels.gather_kernel: ({"weighed": "*fp32", "ends": "*i32", "table": "*fp64", "out": "*fp32"}, _VOXELS),
}


def compile_all(capability: int) -> Iterator[tuple[str, bool, int]]:
    """Every kernel for float32, and whether rays may end in the volume.

    Args:
        capability: of the GPU, 90 for an H100.

    Yields:
        Name, whether rays may end, and bytes of machine code.
    """
    for kernel, (pointers, sizes) in _KERNELS.items():
        for ends in (False, True):
            constants = {**sizes, "ENDS": ends}
            kinds = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in kernel.arg_names}
            places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
            source = ASTSource(fn=kernel, signature=kinds, constexprs=places)
            options = {"num_warps": triton_backend.NUM_WARPS}
            compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
            yield kernel.fn.__name__, ends, len(compiled.asm["cubin"])


if __name__ == "__main__":
    print(json.dumps(list(compile_all(int(sys.argv[1])))))
