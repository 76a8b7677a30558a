# SPDX-License-Identifier: Apache-2.0
"""Paint one patient: from the numbers drawn from the seed to HU and labels on a grid."""

from __future__ import annotations

from dataclasses import dataclass
from operator import index

import numpy as np
import torch
from torch import Tensor

from progressive_cascade.geometry import VOLUME_SHAPE, VOXEL_SIZE, volume_affine
from progressive_cascade.phantom import bones, chest, diseases, fissures, lesions
from progressive_cascade.phantom.mediastinum import lay_out_mediastinum
from progressive_cascade.phantom.organs import heart_center, make_frame
from progressive_cascade.phantom.patient import Patient
from progressive_cascade.phantom.population import parse_population
from progressive_cascade.phantom.raster import Canvas
from progressive_cascade.phantom.scan import crop_to_scan
from progressive_cascade.phantom.scanner import acquire
from progressive_cascade.phantom.scene import Scene

_MIN_SIZE = 8
_SCANNER_STREAM = 50  # key of the random numbers of grain and noise


@dataclass(frozen=True)
class Phantom:
    """A simulated CT of a thorax.

    Args:
        hu: int16 (x, y, z) in Hounsfield units.
        labels: uint8 (x, y, z), values of :data:`LABELS`, 0 for air.
        affine: float64 (4, 4), voxel index to RAS mm.
    """

    hu: np.ndarray
    labels: np.ndarray
    affine: np.ndarray


def generate_phantom(
    seed: int,
    *,
    shape: tuple[int, int, int] = VOLUME_SHAPE,
    spacing: float = VOXEL_SIZE,
    population: str = "basic",
) -> Phantom:
    """Simulate the CT of one of any number of different patients.

    The seed decides on the patient alone: 128³ at 2.8 mm shows the same one as 256³ at 1.4 mm, with edges
    averaged over the larger voxels. The grid's centre is the isocenter.

    Args:
        seed: which patient, 0 or more.
        shape: voxels (x, y, z), at least 8 each.
        spacing: isotropic voxel size [mm].
        population: what the patient is drawn from, see :func:`.population.parse_population`: `basic` (the shipped
            weights' own) or `clinical`.

    Returns:
        HU, labels and affine.

    Raises:
        TypeError: if `seed` or `shape` are not whole numbers, `spacing` is not a number or `population` not a name.
        ValueError: if one of them is out of range.

    Example:
        >>> phantom = generate_phantom(0, shape=(32, 32, 32), spacing=11.2)
        >>> phantom.hu.shape, phantom.hu.dtype.name
        ((32, 32, 32), 'int16')
    """
    seed, shape, spacing = _parse_seed(seed), _parse_shape(shape), _parse_spacing(spacing)
    people = parse_population(population)
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(6)]
    patient = people.draw(streams[0], seed)
    canvas = Canvas(shape, spacing)
    with torch.no_grad():
        body = _paint(canvas, patient, streams[1:])
        if patient.scanner is not None:
            own = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_SCANNER_STREAM,)))
            acquire(canvas, patient.scanner, own, body=body)
        crop_to_scan(canvas, patient.scan)
        hu = canvas.hu.round_().clamp_(-1024, 3071).to(torch.int16).numpy()
    return Phantom(hu, canvas.labels.numpy(), volume_affine(shape, spacing))


def _paint(canvas: Canvas, patient: Patient, streams: list[np.random.Generator]) -> Tensor:
    """The patient, from the skin inwards; what lies within something is painted after it. Returns the skin's field."""
    frame = make_frame(patient, canvas.lattice)
    texture, blotches = (canvas.lattice.noise(s, passes=n) for s, n in zip(streams[:2], (1, 5), strict=True))
    layout = lay_out_mediastinum(frame.cage, heart_center(frame))
    scene = Scene(canvas, frame, texture=texture, blotches=blotches, layout=layout)
    chest.paint_body(scene)
    chest.paint_abdomen(scene)
    chest.paint_lungs(scene)
    fissures.paint_fissures(scene)
    chest.paint_mediastinum(scene)
    diseases.paint_bowel_gas(scene)
    bones.paint_bones(scene)
    chest.paint_trees(scene, streams[2])
    lesions.paint_lesions(scene, streams[3])
    diseases.paint_diseases(scene)
    diseases.paint_rods(scene)
    diseases.paint_sternal_wires(scene)
    lesions.paint_device(scene, streams[4])
    return scene.fields["body"]


def _parse_whole(value: object, name: str) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    try:
        return index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from None


def _parse_seed(seed: object) -> int:
    value = _parse_whole(seed, "seed")
    if value < 0:
        raise ValueError(f"seed must be 0 or more, got {value}")
    return value


def _parse_shape(shape: object) -> tuple[int, int, int]:
    if not isinstance(shape, (tuple, list)) or len(shape) != 3:
        raise ValueError(f"shape must be three voxel counts (x, y, z), got {shape!r}")
    x, y, z = (_parse_whole(count, "shape") for count in shape)
    if min(x, y, z) < _MIN_SIZE:
        raise ValueError(f"shape must be at least {_MIN_SIZE} voxels along each axis, got {shape!r}")
    return x, y, z


def _parse_spacing(spacing: object) -> float:
    if isinstance(spacing, bool) or not isinstance(spacing, (int, float, np.integer, np.floating)):
        raise TypeError(f"spacing must be a number of mm, got {spacing!r}")
    if not np.isfinite(spacing) or spacing <= 0:
        raise ValueError(f"spacing must be finite and above 0 mm, got {spacing!r}")
    return float(spacing)
