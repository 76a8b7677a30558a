# SPDX-License-Identifier: Apache-2.0
"""The files of a reconstruction: volume, sidecar, picture, radiographs, and sigma."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progressive_cascade.cli.common import versions
from progressive_cascade.geometry import ConeBeam

if TYPE_CHECKING:
    from progressive_cascade.inference.reconstruct import Reconstruction
    from progressive_cascade.networks.uncertainty import UncertaintyHead


def companions(output: Path) -> list[Path]:
    """The files of one reconstruction: CT.nii.gz, CT.json, CT.png, CT.radiographs.nii.gz."""
    from progressive_cascade.io import nifti_stem
    from progressive_cascade.report.finished import RADIOGRAPHS_SUFFIX

    stem = nifti_stem(output)
    endings = (".json", ".png", RADIOGRAPHS_SUFFIX)
    return [output, *(output.with_name(f"{stem}{ending}") for ending in endings)]


def write_reconstruction(
    result: Reconstruction,
    beam: ConeBeam,
    *,
    output: Path,
    checkpoint: Path | None = None,
    more: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Writes CT.nii.gz, CT.json, CT.png and CT.radiographs.nii.gz.

    Args:
        result: the reconstruction.
        beam: the geometry of its radiographs.
        output: the NIfTI file; the others stand beside it.
        checkpoint: the weights' file, None for the shipped one.
        more: what else the sidecar says: facts of the radiographs, assumptions, warnings.

    Returns:
        The paths.
    """
    from progressive_cascade.geometry import VOXEL_SIZE
    from progressive_cascade.inference.reconstruct import default_checkpoint, file_hash
    from progressive_cascade.io import atomic_paths, finite, save_json, save_nifti
    from progressive_cascade.report import volume_figure
    from progressive_cascade.report.finished import save_radiographs

    weights = checkpoint or default_checkpoint()
    record = {
        "geometry": beam.to_dict(),
        "shape": list(result.hu.shape),
        "checkpoint": {"file": weights.name, "sha256": file_hash(weights)},
        "versions": versions(),
        "calibrated": result.calibrated,
        "agreement": result.agreement,
        "refinement": None if result.refinement is None else result.refinement.to_dict(),
        **(more or {}),
    }
    files = companions(output)
    with atomic_paths(*files) as (volume, sidecar, picture, radiographs):
        save_nifti(result.hu, result.affine, volume)
        save_json(finite(record), sidecar)
        volume_figure(result.hu, VOXEL_SIZE, picture, radiographs=result.image)
        save_radiographs(result.image, radiographs)
    return files


def write_uncertainty(result: Reconstruction, beam: ConeBeam, *, head: UncertaintyHead, output: Path) -> None:
    """Writes the standard deviation of the error of every voxel of a CT: whole HU, at least 1, with the CT's affine.

    Args:
        result: the reconstruction.
        beam: the geometry of its radiographs.
        head: network of :func:`progressive_cascade.inference.uncertainty.load_uncertainty`.
        output: the NIfTI file.
    """
    from progressive_cascade.inference.uncertainty import predict_sigma
    from progressive_cascade.io import save_nifti

    sigma = predict_sigma(result, beam, head).round().clip(1, 32767)
    save_nifti(sigma.astype("int16"), result.affine, output)


def describe_scores(scores: dict[str, float], protocol: str) -> str:
    """A protocol's headline scores in one line, each with the protocol in its name."""
    from progressive_cascade.evaluation.metrics import HEADLINES

    names = [f"{protocol}_{name}" for name in HEADLINES[protocol]]
    return "   ".join(f"{name} {scores[name]:.4g}" for name in names)
