# SPDX-License-Identifier: Apache-2.0
"""From two radiographs to a CT in HU: load a checkpoint, check the geometry, run the cascade, score the agreement."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from progressive_cascade.attenuation import hu_to_mu, unit_to_hu
from progressive_cascade.consistency import agreement
from progressive_cascade.errors import UserError
from progressive_cascade.geometry import VOLUME_SHAPE, VOXEL_SIZE, ConeBeam, GeometryRange, volume_affine
from progressive_cascade.inference.acceptance import check_beam, trained_range
from progressive_cascade.inference.architecture import architecture_of
from progressive_cascade.inference.inferers import CascadeInferer, device_defaults
from progressive_cascade.inference.opposite import detour, first_volume, mirror_matrices, mirror_pictures
from progressive_cascade.inference.refine import RefinementReport, RefineSettings
from progressive_cascade.inference.refine import refine as refine_first_stage
from progressive_cascade.io import read_state
from progressive_cascade.networks import ProgressiveCascade
from progressive_cascade.paths import bundle_root, check_shipped
from progressive_cascade.projector import prefer_backend, project


@dataclass(frozen=True)
class Reconstruction:
    """A reconstructed CT.

    Attributes:
        hu: int16 (x, y, z) [HU].
        affine: (4, 4), voxel index to the patient's RAS mm.
        agreement: per view ``relative_residual`` and ``psnr_db`` of the re-projection.
        reprojected: line integrals of the reconstruction (view, rows, cols).
        image: the line integrals it was made from (view, rows, cols), with the calibration that refining found.
        calibrated: whether data consistency was applied.
        weights: 1 for pixels that show the patient, 0 for those that were passed over (view, rows, cols); None: all do.
        refinement: what refining stage 1 did; None where it was off.
        warnings: what of the geometry lies a little beyond the range the checkpoint was trained for.
        geometry_range: that range; None where it is not known.
    """

    hu: np.ndarray
    affine: np.ndarray
    agreement: dict[str, dict[str, float]]
    reprojected: np.ndarray
    image: np.ndarray
    calibrated: bool
    weights: np.ndarray | None = None
    refinement: RefinementReport | None = None
    warnings: tuple[str, ...] = ()
    geometry_range: GeometryRange | None = None


def default_checkpoint() -> Path:
    """The shipped weights, ``models/model.pt`` of the bundle: the best for a chest stand."""
    return bundle_root() / "models" / "model.pt"


def wide_checkpoint() -> Path:
    """The shipped weights for any other chest geometry, ``models/any_geometry.pt`` of the bundle."""
    return bundle_root() / "models" / "any_geometry.pt"


def load_cascade(checkpoint: str | Path | None = None, device: str | torch.device = "cpu") -> ProgressiveCascade:
    """Build the cascade a checkpoint belongs to, of any stage, and fill it.

    Args:
        checkpoint: bare state dict; default: the shipped weights.
        device: where to put the network.

    Returns:
        The cascade in eval mode.

    Raises:
        UserError: if the file is missing, no checkpoint, of another architecture, or a shipped one that was changed.
    """
    path = default_checkpoint() if checkpoint is None else Path(checkpoint)
    check_shipped(path)
    state = read_state(path)
    try:
        network = ProgressiveCascade(**architecture_of(state))
        network.load_state_dict(state)
    except KeyError as error:
        raise UserError(
            f"checkpoint {path} must hold a ProgressiveCascade of today's architecture, it lacks {error.args[0]}: "
            "train again"
        ) from error
    except (IndexError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"checkpoint {path} must hold a ProgressiveCascade, it differs: {reason}") from error
    return network.to(device).eval()


def reconstruct(
    image: np.ndarray,
    beam: ConeBeam,
    *,
    network: ProgressiveCascade,
    inferer: CascadeInferer | None = None,
    calibrated: bool = True,
    weights: np.ndarray | None = None,
    intensities: str = "display",
    refine: int | RefineSettings | None = None,
) -> Reconstruction:
    """Reconstruct one patient.

    Args:
        image: line integrals (view, rows, cols); see
            :func:`progressive_cascade.inference.transforms.to_line_integrals` for anything else.
        beam: their geometry, on the cascade's detector (of another one :func:`.acceptance.take_beam` makes it); the
            volume is placed at its isocenter.
        network: cascade of :func:`load_cascade`, on the device to use.
        inferer: how to run it; default: :func:`device_defaults` of the network's device.
        calibrated: whether the line integrals are true ones; if not, and nothing is refined, data consistency is
            skipped.
        weights: of the pixels (view, rows, cols), 0 where one says nothing of the patient; default: 1 everywhere.
        intensities: what is known of values that are not calibrated, ``scaled`` or ``display``
            (:data:`progressive_cascade.inference.calibration.KNOWN`).
        refine: steps in which stage 1 is refined on these radiographs, 0 to 1000, or all settings; default: the
            inferer's own where one is given, else :data:`progressive_cascade.inference.refine.DEFAULT_STEPS`.

    Returns:
        The reconstruction at 256³, 1.4 mm, whatever the cascade's stage (smaller grids are interpolated).

    Raises:
        UserError: if the geometry is beyond the checkpoint's range (:func:`check_beam`), the steps are impossible, or
            there is no body to refine on.
        ValueError: if the image has another shape than the geometry, or is not finite.
    """
    _check_image(image, beam, weights)
    warnings = check_beam(network, beam)
    settings = _refine_settings(refine, inferer)
    inferer = copy(inferer or CascadeInferer(**device_defaults(network.projection_matrices.device)._asdict()))
    # Refined here, where the report is wanted.
    inferer.refine_settings = RefineSettings(steps=0)
    given = _to_network(image, beam, weights, network=network, calibrated=calibrated)
    with prefer_backend(inferer.backend):
        given, coarse, report = _start(
            network, given, detour(network, beam), known="calibrated" if calibrated else intensities, settings=settings
        )
    hu, reprojected = _run_cascade(network, inferer, given, coarse)
    found = _result(hu, reprojected, given, beam, weights, report)
    return replace(found, warnings=tuple(warnings), geometry_range=trained_range(network))


@dataclass(frozen=True)
class _Given:
    """A pair as the network takes it: line integrals, matrices, whether calibrated, weights or None."""

    image: Tensor
    matrices: Tensor
    flag: Tensor
    weights: Tensor | None


def _start(
    network: ProgressiveCascade, given: _Given, usual: ConeBeam | None, *, known: str, settings: RefineSettings
) -> tuple[_Given, Tensor | None, RefinementReport | None]:
    """The pair that the cascade takes, stage 1's volume and the report of its refinement, each where there is one.

    Where `usual` is a geometry (:func:`detour`), stage 1 takes the pair for one of that geometry.
    """
    start = given if usual is None else replace(given, matrices=_matrices(usual, given.image))
    if settings.steps:
        refined = refine_first_stage(
            network, start.image, start.matrices, known=known, settings=settings, mask=start.weights
        )
        found = refined.matrices if usual is None else given.matrices
        given = replace(given, image=refined.image, matrices=found, flag=refined.calibrated)
        return given, refined.volume, refined.reports[0]
    if usual is None:
        return given, None, None
    if network.stage == 1:
        return start, None, None
    return given, first_volume(network, start.image, start.matrices, start.flag, start.weights), None


def _result(
    hu: np.ndarray,
    reprojected: np.ndarray,
    given: _Given,
    beam: ConeBeam,
    weights: np.ndarray | None,
    report: RefinementReport | None,
) -> Reconstruction:
    """What the cascade made of the pair, in the patient's own frame."""
    lines, explained = mirror_pictures(given.image[0].cpu().numpy(), beam), mirror_pictures(reprojected, beam)
    return Reconstruction(
        hu=hu,
        affine=volume_affine(VOLUME_SHAPE, VOXEL_SIZE, beam.isocenter),
        agreement=agreement(explained, lines, beam.views, weights),
        reprojected=explained,
        image=lines,
        calibrated=bool(given.flag > 0),
        weights=weights,
        refinement=report,
    )


def _check_image(image: np.ndarray, beam: ConeBeam, weights: np.ndarray | None) -> None:
    expected = (len(beam.views), *beam.detector_shape)
    if image.shape != expected:
        raise ValueError(f"image must have shape {expected} (views, rows, cols), got {image.shape}")
    if not np.isfinite(image).all():
        raise ValueError(f"image must be finite, got {int((~np.isfinite(image)).sum())} NaN or infinite pixels")
    if weights is not None and (weights.shape != expected or not (weights >= 0).all()):
        raise ValueError(f"weights must be at least 0 and have shape {expected}, got shape {weights.shape}")


def _to_network(
    image: np.ndarray, beam: ConeBeam, weights: np.ndarray | None, *, network: ProgressiveCascade, calibrated: bool
) -> _Given:
    """One patient as a batch, where the network is; a right lateral as its mirror image."""
    device = network.projection_matrices.device

    def batch(values: np.ndarray) -> Tensor:
        mirrored = mirror_pictures(np.asarray(values), beam)
        return torch.as_tensor(np.ascontiguousarray(mirrored), dtype=torch.float32, device=device)[None]

    lines = batch(image)
    flag = torch.tensor([float(calibrated)], device=device)
    matrices = mirror_matrices(_matrices(beam, lines), beam)
    return _Given(lines, matrices, flag, None if weights is None else batch(weights))


def _matrices(beam: ConeBeam, like: Tensor) -> Tensor:
    return torch.as_tensor(beam.at((0.0, 0.0, 0.0)).projection_matrices(), dtype=torch.float32, device=like.device)[
        None
    ]


def _run_cascade(
    network: ProgressiveCascade, inferer: CascadeInferer, given: _Given, coarse: Tensor | None
) -> tuple[np.ndarray, np.ndarray]:
    """The CT at 256³, int16 [HU], and its line integrals (view, rows, cols)."""
    with torch.inference_mode():
        unit = inferer(
            given.image,
            network,
            projection_matrices=given.matrices,
            calibrated=given.flag,
            weights=given.weights,
            coarse=coarse,
        )
        unit = torch.nn.functional.interpolate(unit, VOLUME_SHAPE, mode="trilinear", align_corners=False).clamp(0, 1)
        hu = unit_to_hu(unit).round()
        centered = torch.as_tensor(volume_affine(VOLUME_SHAPE, VOXEL_SIZE))[None]
        reprojected = project(hu_to_mu(hu), given.matrices, centered, (given.image.shape[2], given.image.shape[3]))
    return hu[0, 0].to(torch.int16).cpu().numpy(), reprojected[0].cpu().numpy()


def _refine_settings(refine: int | RefineSettings | None, inferer: CascadeInferer | None) -> RefineSettings:
    """What a caller asked for."""
    if isinstance(refine, RefineSettings):
        return refine
    if refine is None:
        return RefineSettings() if inferer is None else inferer.refine_settings
    return RefineSettings(steps=refine)
