# SPDX-License-Identifier: Apache-2.0
"""Whether a checkpoint takes radiographs of a geometry: what lies inside the range it was trained for, and a bit more.

A checkpoint keeps its range; one that keeps none has that of its own geometry and a little jitter. Inside nothing is
said; up to a :data:`~progressive_cascade.geometry.TOLERANCE` beyond a border there is a warning; what lies farther out
is refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch

from progressive_cascade.errors import GeometryError, UserError
from progressive_cascade.geometry import TOLERANCE, ConeBeam, GeometryRange, Misfit
from progressive_cascade.inference.opposite import detour, mirror_matrices
from progressive_cascade.networks import ProgressiveCascade
from progressive_cascade.radiograph.fit import Model, field_of, fit_detector, is_inside

# Two views are called nearly one where less than this share of the trained angle is left between them: of 90 degrees
# 45, from where on a view stands nearer to the other's place than to its own.
_LEAST_APART = 0.5
_WAY_OUT = (
    "give the true geometry where this is not it; these weights take no other X-rays, --checkpoint takes weights that "
    "were trained for them"
)


def trained_range(network: ProgressiveCascade) -> GeometryRange:
    """The geometries a cascade was trained for: the range it keeps, or what lies about its own geometry."""
    kept = network.geometry_range
    return GeometryRange.around(_own_matrices(network), network.image_size) if kept is None else kept


def model_of(network: ProgressiveCascade) -> Model:
    """The detector that radiographs are brought to for a cascade: of any field where it keeps a range."""
    matrix = _own_matrices(network)[0]
    focal_length = float(np.linalg.norm(np.cross(matrix[0, :3], matrix[2, :3])))
    return Model(network.image_size, focal_length, network.geometry_range)


def check_beam(network: ProgressiveCascade, beam: ConeBeam, origin: str = "geometry") -> list[str]:
    """Refuse radiographs of a geometry the checkpoint was not trained for.

    Args:
        network: the cascade with its own projection matrices.
        beam: the radiographs' geometry.
        origin: what to name in an error.

    Returns:
        A warning for everything that lies beyond a border by no more than the tolerance; none names the origin.

    Raises:
        GeometryError: if there are other views or pixels than the checkpoint's, or something lies farther beyond a
            border: with view, quantity, value, trained range and the share.
        UserError: if views change places or look from nearly one side.
    """
    trained, beam = _own_matrices(network), beam.at((0.0, 0.0, 0.0))
    size = network.image_size
    if len(beam.views) != len(trained) or beam.detector_shape != (size, size):
        raise GeometryError(
            f"{origin} must have {len(trained)} views of {size} x {size} pixels like the checkpoint, "
            f"got {len(beam.views)} of {beam.detector_shape[0]} x {beam.detector_shape[1]}"
        )
    check_directions(network, beam, origin)
    seen_as = detour(network, beam) or beam
    given = mirror_matrices(torch.from_numpy(seen_as.projection_matrices())[None], seen_as)[0].numpy()
    misfits = trained_range(network).misfits(given, trained, size)
    far = describe_misfits([misfit for misfit in misfits if misfit.beyond > TOLERANCE], beam.views)
    if far:
        raise GeometryError(
            f"{origin} must lie in the range of geometries of the checkpoint: {'; '.join(far)}; {_WAY_OUT}"
        )
    return [f"{line}: expect a worse result than inside" for line in describe_misfits(misfits, beam.views)]


def take_beam(network: ProgressiveCascade, beam: ConeBeam, origin: str = "geometry") -> tuple[ConeBeam, list[str]]:
    """The same rays on the model's detector, where the checkpoint takes them.

    Args:
        network: the cascade; one that keeps no range takes its own detector alone.
        beam: a geometry of any detector.
        origin: what to name in an error.

    Returns:
        The geometry for :func:`~progressive_cascade.radiograph.onto.resample_views`, and warnings.

    Raises:
        UserError: as :func:`check_beam`; and where the detector shows much less than was trained.
    """
    trained, size = network.geometry_range, network.image_size
    if trained is None or is_inside(beam, size, trained):
        return beam, check_beam(network, beam, origin)
    target, fit = fit_detector(beam, field_of(beam), size=size, trained=trained)
    warnings = check_beam(network, target, origin)
    fit.check(origin=origin)
    return target, [*warnings, *fit.notes()]


def describe_misfits(misfits: Sequence[Misfit], views: Sequence[str]) -> list[str]:
    """Quantity, views, value, trained range, and how far outside, a line for each; views that share it share a line."""
    lines: dict[str, list[str]] = {}
    seen = set()
    for misfit in misfits:  # the farthest first
        if (misfit.view, misfit.name) not in seen:
            seen.add((misfit.view, misfit.name))
            lines.setdefault(_outside(misfit), []).append(views[misfit.view])
    return [line.format(of=" and ".join(names)) for line, names in lines.items()]


def _outside(misfit: Misfit) -> str:
    name, unit = misfit.name.removesuffix("]").split(" [")
    border = misfit.low if misfit.value < misfit.low else misfit.high
    share = f" ({misfit.beyond:.1%})" if math.isfinite(misfit.beyond) else ""
    return (
        f"{name} of {{of}} is {misfit.value:.1f} {unit}, {abs(misfit.value - border):.1f} {unit}{share} beyond the "
        f"trained {misfit.low:.4g} to {misfit.high:.4g} {unit}"
    )


def describe_range(trained: GeometryRange) -> str:
    """A range in words.

    Example:
        >>> describe_range(GeometryRange((1470.0, 1530.0), (351.0, 366.0), turn=0.5, offset=90.0))
        'source 1470 to 1530 mm from the isocenter, field there 351 to 366 mm wide, turned by up to 0.5 degrees'
    """
    (near, far), (small, large) = trained.source_to_isocenter, trained.field
    said = (
        f"source {near:.4g} to {far:.4g} mm from the isocenter, field there {small:.4g} to {large:.4g} mm wide, "
        f"turned by up to {trained.turn:.4g} degrees"
    )
    return f"{said}, AP and right lateral learnt" if trained.opposite else said


def _own_matrices(network: ProgressiveCascade) -> np.ndarray:
    return network.projection_matrices.cpu().double().numpy()


def check_directions(network: ProgressiveCascade, beam: ConeBeam, origin: str = "geometry") -> None:
    """Refuses views that change places, and views that look from nearly one side, whatever their detectors are.

    Args:
        network: the cascade.
        beam: a geometry of as many views as its.
        origin: what to name in an error.

    Raises:
        UserError: naming the views, and how many degrees are too few.
    """
    trained = _own_matrices(network)
    given, wanted = beam.poses()[2][:, 2], trained[:, 2, :3] / np.linalg.norm(trained[:, 2, :3], axis=1, keepdims=True)
    cosines = np.abs(given @ wanted.T)
    if len(given) == 2 and min(cosines[0, 1], cosines[1, 0]) > max(cosines[0, 0], cosines[1, 1]):
        raise UserError(
            f"{origin} must have the checkpoint's views in its order, frontal first: {' and '.join(beam.views)} are "
            "swapped, give them the other way round"
        )
    for first, second in combinations(range(len(given)), 2):
        angle, usual = _degrees_apart(given[first], given[second]), _degrees_apart(wanted[first], wanted[second])
        if angle < _LEAST_APART * usual:
            how = "are parallel" if angle < 0.5 else f"are {angle:.0f} degrees apart"
            raise UserError(
                f"{origin} must have views from two sides, {usual:.0f} degrees apart as in training: "
                f"{beam.views[first]} and {beam.views[second]} {how}, {usual - angle:.0f} degrees too few"
            )


def _degrees_apart(first: np.ndarray, second: np.ndarray) -> float:
    """Between two axes, from whichever end they are looked along, 0 to 90."""
    return math.degrees(math.atan2(float(np.linalg.norm(np.cross(first, second))), abs(float(first @ second))))
