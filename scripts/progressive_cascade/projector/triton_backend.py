# SPDX-License-Identifier: Apache-2.0
# pyright: reportCallIssue=false, reportReturnType=false
"""The operator by the fused kernels: geometry stays on the device, a batch of poses takes one launch, Aᵀ takes two."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor
from triton import cdiv, knobs

from progressive_cascade.projector import triton_kernels as kernels
from progressive_cascade.projector.plan import check_pose, is_cut

# Half a warp's lanes run along the detector's rows, which are z, the densest axis of a C-ordered volume: at half a
# voxel a pixel they read 32 bytes in a row, for a PA as for a lateral. On an H100 a third faster than tiles of 32 by 8
# pixels and eight warps (bundle/docs/EXPERIMENTS.md).
PIXEL_TILE = (16, 8)
# Again along z; four voxels along y are what a PA's ray meets next, and find the same pixels in the cache.
VOXEL_TILE = (1, 4, 32)
NUM_WARPS = 4

_LARGEST_OFFSET = 2**31


class FusedOperator:
    """A and Aᵀ of a batch of geometries, ray by ray.

    Matrices and affines on the host are checked as everywhere. On a device they are read by the kernels alone, since
    to look at them would wait for all that is queued; a view whose source stands in the volume, or whose pose is
    singular, then comes out as NaN.

    Args:
        matrices: (b, view, 3, 4), RAS mm to pixels.
        affines: (b, 4, 4), voxel index to RAS mm.
        shape: voxels (x, y, z).
        detector_shape: (rows, cols).
        source_to_detector: (b,), where rays end [mm]; None: behind the volume.

    Raises:
        ValueError: if a pose on the host is impossible, or the volume has too many voxels.
    """

    def __init__(
        self,
        matrices: Tensor,
        affines: Tensor,
        shape: tuple[int, int, int],
        detector_shape: tuple[int, int],
        source_to_detector: Sequence[float] | None,
    ) -> None:
        self.shape, self.detector_shape = shape, detector_shape
        self.matrices, self.affines = matrices.detach(), affines.detach()
        self.reaches = source_to_detector
        if shape[0] * shape[1] * shape[2] >= _LARGEST_OFFSET or detector_shape[0] * detector_shape[1] >= 2**30:
            raise ValueError(f"volume and detector must have fewer than 2³¹ elements, got {shape} and {detector_shape}")
        if matrices.device.type == affines.device.type == "cpu" and not self._look():
            self.reaches = None

    def _look(self) -> bool:
        """Check poses on the host; whether a detector stands in the volume, which ends rays inside it."""
        cut = False
        for index, (views, place) in enumerate(zip(self.matrices.numpy(), self.affines.numpy(), strict=True)):
            for matrix in views:
                q = check_pose(matrix.astype("f8"), place.astype("f8"), self.shape, self.detector_shape)
                cut = cut or (self.reaches is not None and is_cut(q, self.shape, float(self.reaches[index])))
        return cut

    def project(self, mu: Tensor) -> Tensor:
        """(b, 1, x, y, z) -> (b, view, rows, cols)."""
        steps = [(size - 1) * step for size, step in zip(mu.shape[2:], mu.stride()[2:], strict=True)]
        mu = mu if sum(steps) < _LARGEST_OFFSET else mu.contiguous()
        geometry, reaches, counts = self._on(mu)
        batch, views = len(mu), self.matrices.shape[1]
        out = torch.empty((batch, views, *self.detector_shape), dtype=mu.dtype, device=mu.device)
        with _current(mu.device):
            kernels.sum_rays_kernel[self._tiles(), batch * views](
                mu,
                *geometry,
                reaches if reaches is not None else geometry[0],
                out,
                *counts,
                mu.stride(0),
                *mu.stride()[2:],
                ENDS=reaches is not None,
                SIDE=PIXEL_TILE[0],
                SLOW=PIXEL_TILE[1],
                num_warps=NUM_WARPS,
            )
        return out

    def backproject(self, projections: Tensor) -> Tensor:
        """(b, view, rows, cols) -> (b, 1, x, y, z)."""
        projections = projections.contiguous()
        geometry, reaches, counts = self._on(projections)
        batch, views, rows, cols = projections.shape
        like = {"dtype": projections.dtype, "device": projections.device}
        weighed = torch.empty((batch, views, 3, rows, cols), **like)
        table = torch.empty((batch, views, kernels.TABLE_WIDTH.value), dtype=torch.float64, device=projections.device)
        ends = torch.empty(
            (batch, views, 2, rows, cols) if reaches is not None else 1, dtype=torch.int32, device=projections.device
        )
        out = torch.empty((batch, 1, *self.shape), **like)
        (nx, ny, nz), (tile_x, tile_y, tile_z) = self.shape, VOXEL_TILE
        with _current(projections.device):
            kernels.prepare_kernel[self._tiles(), batch * views](
                projections,
                *geometry,
                reaches if reaches is not None else geometry[0],
                weighed,
                ends,
                table,
                *counts,
                ENDS=reaches is not None,
                SIDE=PIXEL_TILE[0],
                SLOW=PIXEL_TILE[1],
                num_warps=NUM_WARPS,
            )
            kernels.gather_kernel[cdiv(nx, tile_x) * cdiv(ny, tile_y) * cdiv(nz, tile_z), batch](
                weighed,
                ends,
                table,
                out,
                *counts[1:],
                ENDS=reaches is not None,
                TILE_X=tile_x,
                TILE_Y=tile_y,
                TILE_Z=tile_z,
                num_warps=NUM_WARPS,
            )
        return out

    def _on(self, like: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor | None, tuple[int, ...]]:
        """Matrices and affines, where rays end, and the kernels' integers, on a tensor's device."""
        matrices, affines = (t.to(like.device, non_blocking=True) for t in (self.matrices, self.affines))
        affines = affines if affines.stride()[1:] == (4, 1) else affines.contiguous()
        reaches = self.reaches
        if reaches is not None:
            reaches = torch.as_tensor(reaches, dtype=torch.float64).to(like.device, non_blocking=True)
        counts = (affines.stride(0), matrices.shape[1], *self.detector_shape, *self.shape)
        return (matrices.contiguous(), affines), reaches, counts

    def _tiles(self) -> int:
        """Programs per view: tiles of squares, so that either side of the detector may be the fast one."""
        side, slow = PIXEL_TILE
        return cdiv(self.detector_shape[0], side) * cdiv(self.detector_shape[1], side) * (side // slow)


def runs_on(device: torch.device) -> bool:
    """Whether kernels can run on a device: CUDA, or the host by Triton's interpreter."""
    return bool(knobs.runtime.interpret) or device.type == "cuda"


def try_out(device: torch.device) -> None:
    """Compile and run both directions on a few voxels; raises what the compiler raises.

    Args:
        device: a CUDA device.
    """
    matrix = torch.tensor([[4.0, 0, 0, 0], [0, 4.0, 0, 0], [0, 0, 1.0, 8.0]], device=device).reshape(1, 1, 3, 4)
    operator = FusedOperator(matrix, torch.eye(4, device=device)[None], (2, 2, 2), (2, 2), None)
    operator.backproject(operator.project(torch.ones(1, 1, 2, 2, 2, device=device)))


def _current(device: torch.device) -> contextlib.AbstractContextManager:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
