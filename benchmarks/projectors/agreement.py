# SPDX-License-Identifier: Apache-2.0
"""Checks beside the table: agreement with itk-rtk on real CTs in an oblique pose, and a batch against single calls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from progressive_cascade import line_integrals
from progressive_cascade.attenuation import hu_to_mu
from projectors.ellipsoids import thorax, voxelise
from projectors.measure import geometry
from projectors.peers import RTK, Ours, Problem

CTS = ("thorax_LIDC-IDRI-0001.nii.gz", "thorax_TCGA-34-2605.nii.gz")
"""Real CTs with anisotropic voxels: 1.41 × 1.41 × 2.5 mm and 0.78 × 0.78 × 5 mm."""
VIEWS = ("pa", "left_lateral", "lao30_cranial15")
METHODS = ("ray", "auto")

# The patient lies turned by these angles about z, y and x [degrees]: no face of the volume is parallel to a detector.
_TURN = (12.0, -7.0, 5.0)


def agree_with_rtk(folder: Path, threads: int, *, views: tuple[str, ...] = VIEWS) -> list[dict[str, Any]]:
    """Relative L2 difference between our projections and those of RTK's JosephForwardProjectionImageFilter.

    Args:
        folder: where the CTs are.
        threads: for both.
        views: names of the views.

    Returns:
        Per CT and method of ours: the differences per view, or ``skipped`` with the reason.
    """
    torch.set_num_threads(threads)
    rows: list[dict[str, Any]] = []
    for name in CTS:
        path = folder / name
        if not path.is_file():
            rows.append({"ct": name, "skipped": "not in the folder of real CTs (--cts)"})
            continue
        volume, affine = oblique_ct(path)
        isocenter = affine[:3, :3] @ ((np.array(volume.shape) - 1) / 2) + affine[:3, 3]
        beam = replace(geometry(256, views)[0], isocenter=tuple(isocenter))
        problem = Problem(volume, affine, beam, np.zeros((len(views), *beam.detector_shape), dtype=np.float32))
        try:
            rtk = RTK(problem)
        except ImportError:
            rows.append({"ct": name, "skipped": "itk-rtk is not installed; `make bench` does that"})
            continue
        expected = rtk.projections(rtk.forward())
        for method in METHODS:
            ours = Ours(problem, method=method)
            difference = ours.projections(ours.forward()) - expected
            relative = [float(np.linalg.norm(d) / np.linalg.norm(e)) for d, e in zip(difference, expected, strict=True)]
            row = {"ct": name, "method": method, "views": list(views), "differences": relative}
            rows.append({**row, "largest": max(relative), "spacing": np.linalg.norm(affine[:3, :3], axis=0).tolist()})
    return rows


def oblique_ct(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A CT as attenuation, turned by an oblique rotation, in a shell of one voxel of nothing.

    Projectors differ in what they take the half voxel between the outermost centres and the volume's face for; with
    nothing out there the difference is in the rays alone.

    Args:
        path: NIfTI file [HU].

    Returns:
        float32 array (x, y, z) [1/mm] and its affine (4, 4).
    """
    import nibabel

    image = nibabel.load(path)
    hu = np.asarray(image.dataobj, dtype=np.float32)
    mu = np.pad(np.asarray(hu_to_mu(hu), dtype=np.float32), 1)
    turn = np.eye(4)
    for axis, angle in zip((2, 1, 0), np.deg2rad(_TURN), strict=True):
        first, second = [k for k in range(3) if k != axis]
        step = np.eye(4)
        step[first, first] = step[second, second] = np.cos(angle)
        step[first, second], step[second, first] = -np.sin(angle), np.sin(angle)
        turn = turn @ step
    affine = turn @ image.affine
    affine[:3, 3] -= affine[:3, :3].sum(axis=1)  # the shell moves the first voxel's centre by one voxel
    return mu, affine


def batch_equals_single_calls(grid: int, device: str) -> bool:
    """Whether four different volumes and poses in one call give, bit for bit, what four calls give.

    Args:
        grid: voxels a side.
        device: where to compute.

    Returns:
        True if they are equal.
    """
    aligned, affine = geometry(grid, ("pa", "left_lateral"))
    oblique = replace(aligned, views=("lao30_cranial15", "lao45"))
    beams = [aligned, oblique, aligned.at((9.0, -4.0, 7.0)), oblique.at((3.0, 5.0, 1.0))]
    shape = (grid, grid, grid)
    volumes = torch.from_numpy(np.stack([voxelise(thorax(seed), shape, affine) for seed in range(4)]))[:, None]
    volumes = volumes.to(device)
    together = line_integrals(volumes, beams, affine=affine)
    single = [line_integrals(volumes[k : k + 1], beam, affine=affine)[0] for k, beam in enumerate(beams)]
    return bool(torch.equal(together, torch.stack(single)))
