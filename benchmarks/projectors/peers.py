# SPDX-License-Identifier: Apache-2.0
"""Our operator and its peers behind one face: the same volume, the same rays, each in its own native layout.

Every projector is given the volume (x, y, z), its affine and a :class:`ConeBeam` and sets itself up once. Timed are
``forward`` (projections alone) and ``forward_backward`` (projections, then Aᵀ applied to fixed weights: by autograd
where the library has it).

References:
    DiffDRR: V. Gopalakrishnan and P. Golland, Fast auto-differentiable digitally reconstructed radiographs for solving
    inverse problems in intraoperative imaging, 2022, doi 10.1007/978-3-031-23179-7_1; nanodrr is its successor.
    RTK: S. Rit et al., The Reconstruction Toolkit (RTK), 2014, doi 10.1088/1742-6596/489/1/012079.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from progressive_cascade import ConeBeam, __version__, line_integrals


@dataclass(frozen=True)
class Problem:
    """What every projector is given.

    Args:
        volume: attenuation (x, y, z) [1/mm].
        affine: voxel index to RAS mm (4, 4).
        beam: the geometry; the peers take a detector that is neither shifted nor turned.
        weights: (view, rows, cols), what Aᵀ is applied to in ``forward_backward``.
        device: ``cpu`` or a CUDA device.
    """

    volume: np.ndarray
    affine: np.ndarray
    beam: ConeBeam
    weights: np.ndarray
    device: str = "cpu"


class Projector(Protocol):
    """One row of the table."""

    version: str

    def forward(self) -> Any:
        """The projections, in the library's own layout."""
        ...

    def forward_backward(self) -> Any:
        """The projections, then Aᵀ of the weights, in the library's own layout."""
        ...

    def projections(self, result: Any) -> np.ndarray:
        """What ``forward`` returned as (view, rows, cols)."""
        ...

    def gradient(self, result: Any) -> np.ndarray:
        """What ``forward_backward`` returned as (x, y, z)."""
        ...


class Ours:
    """``line_integrals`` with the arguments of its row."""

    version = __version__

    def __init__(self, problem: Problem, dtype: torch.dtype = torch.float32, **arguments: str) -> None:
        options = {"dtype": dtype, "device": problem.device}
        self.mu = torch.as_tensor(problem.volume, **options)[None, None].clone().requires_grad_()
        self.weights = torch.as_tensor(problem.weights, **options)[None]
        self.beam, self.affine, self.arguments = problem.beam, problem.affine, arguments

    def forward(self) -> Tensor:
        """Projections alone, without a graph."""
        with torch.no_grad():
            return line_integrals(self.mu, self.beam, affine=self.affine, **self.arguments)

    def forward_backward(self) -> Tensor:
        """Projections, then the gradient for the fixed weights."""
        p = line_integrals(self.mu, self.beam, affine=self.affine, **self.arguments)
        return torch.autograd.grad(p, self.mu, self.weights)[0]

    def projections(self, result: Tensor) -> np.ndarray:
        """(view, rows, cols)."""
        return result[0].cpu().numpy()

    def gradient(self, result: Tensor) -> np.ndarray:
        """(x, y, z)."""
        return result[0, 0].cpu().numpy()


class RTK:
    """itk-rtk's JosephForwardProjectionImageFilter, and its JosephBackProjectionImageFilter for the backward pass.

    RTK knows no axes but those of its images, so that RAS coordinates go in as they are. Its detector is given by the
    source, the detector's centre and the directions of the columns' and rows' indices; the pixels of the stack of
    projections are centred on that centre.
    """

    def __init__(self, problem: Problem) -> None:
        import itk
        from itk import RTK as rtk

        self.version = version("itk-rtk")
        self.itk, self.rtk = itk, rtk
        itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(torch.get_num_threads())
        self.geometry = rtk.ThreeDCircularProjectionGeometry.New()
        for source, center, (column, row, _) in zip(*problem.beam.poses(), strict=True):
            points = [itk.Point[itk.D, 3](point.tolist()) for point in (source, center)]
            axes = [itk.Vector[itk.D, 3](axis.tolist()) for axis in (column, row)]
            if not self.geometry.AddProjection(*points, *axes):
                raise RuntimeError(f"RTK refused a source at {source} mm with a detector at {center} mm")
        self.volume = self._volume(problem.volume, problem.affine)
        self.empty_volume = self._volume(np.zeros_like(problem.volume), problem.affine)
        self.empty_projections = self._projections(np.zeros_like(problem.weights), problem.beam)
        self.weights = self._projections(problem.weights, problem.beam)

    def _volume(self, array: np.ndarray, affine: np.ndarray) -> Any:
        image = self.itk.image_from_array(np.ascontiguousarray(array.transpose(2, 1, 0), dtype=np.float32))
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetOrigin(affine[:3, 3].tolist())
        image.SetDirection(self.itk.matrix_from_array(affine[:3, :3] / spacing))
        return image

    def _projections(self, array: np.ndarray, beam: ConeBeam) -> Any:
        image = self.itk.image_from_array(np.ascontiguousarray(array, dtype=np.float32))
        (rows, cols), (row, column) = beam.detector_shape, beam.pixel_spacing
        image.SetSpacing([column, row, 1.0])
        image.SetOrigin([-column * (cols - 1) / 2, -row * (rows - 1) / 2, 0.0])
        return image

    def _run(self, template: Any, output: Any, source: Any) -> Any:
        kind = type(self.volume)
        run = template[kind, kind].New()
        run.SetInput(0, output)
        run.SetInput(1, source)
        run.SetGeometry(self.geometry)
        run.InPlaceOff()  # the empty image is used again
        run.Update()
        return run.GetOutput()

    def forward(self) -> Any:
        """Projections."""
        return self._run(self.rtk.JosephForwardProjectionImageFilter, self.empty_projections, self.volume)

    def forward_backward(self) -> Any:
        """Projections, then the back-projection of the fixed weights."""
        self.forward()
        return self._run(self.rtk.JosephBackProjectionImageFilter, self.empty_volume, self.weights)

    def projections(self, result: Any) -> np.ndarray:
        """(view, rows, cols)."""
        return self.itk.array_from_image(result)

    def gradient(self, result: Any) -> np.ndarray:
        """(x, y, z)."""
        return self.itk.array_from_image(result).transpose(2, 1, 0)


class DiffDRR:
    """DiffDRR's module, view by view: two views at once double its memory and save no time.

    Its camera looks along +z from its own origin, with x along the columns (``reverse_x_axis=False``) and y up; the
    pose carries that into the world.
    """

    def __init__(self, problem: Problem, renderer: str) -> None:
        from diffdrr.drr import DRR
        from diffdrr.pose import RigidTransform
        from torchio import ScalarImage, Subject

        self.version = version("diffdrr")
        beam = problem.beam
        image = ScalarImage(tensor=torch.as_tensor(problem.volume)[None], affine=problem.affine)
        subject = Subject(volume=image, density=image, mask=None, reorient=torch.eye(4))
        (rows, cols), (row, column) = beam.detector_shape, beam.pixel_spacing
        size = {"height": rows, "width": cols, "delx": column, "dely": row}
        module = DRR(subject, sdd=beam.source_to_detector, renderer=renderer, reverse_x_axis=False, **size)
        self.module = module.to(problem.device)
        self.module.density = self.module.density.clone().requires_grad_()
        self.arguments = {} if renderer == "siddon" else {"n_points": num_samples(problem)}
        self.poses = [RigidTransform(pose[None]) for pose in _camera_poses(beam, flip_rows=True, device=problem.device)]
        self.weights = torch.as_tensor(problem.weights, dtype=torch.float32, device=problem.device)

    def forward(self) -> Tensor:
        """Projections alone, without a graph."""
        with torch.no_grad():
            return torch.cat([self.module(pose, **self.arguments)[0] for pose in self.poses])

    def forward_backward(self) -> Tensor:
        """Projections, then the gradient for the fixed weights."""
        return _sum_of_gradients(
            lambda view: self.module(self.poses[view], **self.arguments)[0, 0], self.module.density, self.weights
        )

    def projections(self, result: Tensor) -> np.ndarray:
        """(view, rows, cols)."""
        return result.cpu().numpy()

    def gradient(self, result: Tensor) -> np.ndarray:
        """(x, y, z)."""
        return result.cpu().numpy()


class NanoDRR:
    """nanodrr's ``render``, with the backend it chooses: Triton on CUDA, plain torch on a CPU.

    On a CPU view by view, which halves its memory and costs no time; on CUDA all views in one call.
    """

    def __init__(self, problem: Problem) -> None:
        from nanodrr.camera import make_k_inv
        from nanodrr.data import Subject
        from torchio import ScalarImage

        self.version = version("nanodrr")
        beam = problem.beam
        image = ScalarImage(tensor=torch.as_tensor(problem.volume)[None], affine=problem.affine)
        self.subject = Subject.from_images(image, convert_to_mu=False).to(problem.device)
        self.volume = self.subject.image.clone().requires_grad_()
        self.subject._image_hu = self.volume
        (rows, cols), (row, column) = beam.detector_shape, beam.pixel_spacing
        k_inv = make_k_inv(beam.source_to_detector, column, row, 0.0, 0.0, rows, cols, torch.float32, problem.device)
        poses = torch.stack(_camera_poses(beam, flip_rows=False, device=problem.device))
        self.batches = poses.split(len(poses) if problem.device.startswith("cuda") else 1)
        self.intrinsics = (k_inv, torch.tensor([beam.source_to_detector], device=problem.device), rows, cols)
        self.num_samples = num_samples(problem)
        weights = torch.as_tensor(problem.weights, dtype=torch.float32, device=problem.device)
        self.weights = weights[:, None].split([len(batch) for batch in self.batches])

    def _render(self, batch: int) -> Tensor:
        from nanodrr.drr import render

        poses, (k_inv, distance, rows, cols) = self.batches[batch], self.intrinsics
        num = len(poses)
        return render(
            self.subject, k_inv.expand(num, 3, 3), poses, distance.expand(num), rows, cols, n_samples=self.num_samples
        )

    def forward(self) -> Tensor:
        """Projections alone, without a graph."""
        with torch.no_grad():
            return torch.cat([self._render(batch) for batch in range(len(self.batches))])[:, 0]

    def forward_backward(self) -> Tensor:
        """Projections, then the gradient for the fixed weights."""
        return _sum_of_gradients(self._render, self.volume, self.weights)

    def projections(self, result: Tensor) -> np.ndarray:
        """(view, rows, cols)."""
        return result.cpu().numpy()

    def gradient(self, result: Tensor) -> np.ndarray:
        """(x, y, z)."""
        return result[0, 0].permute(2, 1, 0).cpu().numpy()


def num_samples(problem: Problem) -> int:
    """Samples per ray of the peers that march: two per voxel, which at 256³ is their default of 500, rounded."""
    return 2 * max(problem.volume.shape)


def _camera_poses(beam: ConeBeam, *, flip_rows: bool, device: str) -> list[Tensor]:
    """Per view the map (4, 4) from a camera at the source, looking along +z, x along the columns, into the world.

    y runs down the rows, or up with ``flip_rows``. An image seen as a radiograph is read is the mirror image of what
    a camera at the source sees: without the flip the map has a reflection in it.
    """
    poses = []
    for source, _, (column, row, along) in zip(*beam.poses(), strict=True):
        pose = np.eye(4)
        pose[:3] = np.stack([column, -row if flip_rows else row, along, source], axis=1)
        poses.append(torch.tensor(pose, dtype=torch.float32, device=device))
    return poses


def _sum_of_gradients(render: Callable[[int], Tensor], volume: Tensor, weights: Any) -> Tensor:
    """Gradient of Σ <render(i), weights[i]>, one part at a time, so that one graph at most is alive."""
    total = None
    for index, weight in enumerate(weights):
        (gradient,) = torch.autograd.grad(render(index), volume, weight)
        total = gradient if total is None else total.add_(gradient)
    if total is None:
        raise ValueError("weights must hold at least one view, got none")
    return total


BUILDERS: dict[str, tuple[str, Callable[[Problem], Projector]]] = {
    "ours": ("ours", Ours),
    "ours-torch": ("ours, plain torch", lambda problem: Ours(problem, backend="torch")),
    "ours-distance": ("ours, distance-driven", lambda problem: Ours(problem, weights="distance")),
    "ours-ray": ("ours, ray-driven", lambda problem: Ours(problem, method="ray")),
    "rtk": ("itk-rtk Joseph", RTK),
    "nanodrr": ("nanodrr", NanoDRR),
    "diffdrr-trilinear": ("DiffDRR trilinear", lambda problem: DiffDRR(problem, "trilinear")),
    "diffdrr-siddon": ("DiffDRR Siddon", lambda problem: DiffDRR(problem, "siddon")),
}
"""Rows of the table by name: title and constructor."""
