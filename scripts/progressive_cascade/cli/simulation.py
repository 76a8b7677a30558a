# SPDX-License-Identifier: Apache-2.0
"""`phantom` and `simulate`: a patient who does not exist, and the two X-rays of a CT."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progressive_cascade.cli.common import add_command, check_output_file, check_output_folder, natural, positive
from progressive_cascade.errors import UserError
from progressive_cascade.geometry import PRESETS, VOLUME_SHAPE, VOXEL_SIZE, ConeBeam, save_geometry

if TYPE_CHECKING:
    import numpy as np

NIFTI = (".nii", ".nii.gz")
VIEW_FILES = ("pa.nii.gz", "lateral.nii.gz")
"""Names of the two radiographs in a folder of X-rays."""
_CUBE_MM = VOLUME_SHAPE[0] * VOXEL_SIZE


def add_phantom(commands: Any) -> None:
    """Adds `phantom`."""
    text = """
    Write the CT of a simulated patient.

    A seed is a patient: the same seed gives the same thorax on every grid. The CT is int16 in HU on a cube of
    358.4 mm, RAS, so that 256 voxels are 1.4 mm wide.

    example:
      progressive-cascade phantom --seed 7 --output ct.nii.gz --labels labels.nii.gz
    """
    parser = add_command(commands, "phantom", run=run_phantom, text=text)
    parser.add_argument("--seed", type=natural, required=True, metavar="N", help="which patient: 0 or more")
    parser.add_argument("--output", type=Path, required=True, metavar="CT", help="CT to write, .nii.gz")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="also write the anatomy's label map, .nii.gz")
    parser.add_argument("--size", type=positive, default=256, metavar="N", help="voxels per axis (default: 256)")


def run_phantom(options: argparse.Namespace) -> None:
    """Writes the CT, and the label map where it is asked for."""
    from progressive_cascade.io import save_nifti
    from progressive_cascade.phantom import generate_phantom

    check_output_file(options.output, NIFTI)
    if options.labels is not None:
        check_output_file(options.labels, NIFTI, "--labels")
        if options.labels.absolute() == options.output.absolute():
            raise UserError(f"--labels must be another file than --output, got {options.labels}")
    size = options.size
    if not 8 <= size <= 1024:
        raise UserError(f"--size must be between 8 and 1024 voxels, got {size}")
    phantom = generate_phantom(options.seed, shape=(size, size, size), spacing=_CUBE_MM / size)
    save_nifti(phantom.hu, phantom.affine, options.output)
    print(f"CT of patient {options.seed}: {options.output}")
    if options.labels is not None:
        save_nifti(phantom.labels, phantom.affine, options.labels)
        print(f"labels: {options.labels}")


def add_simulate(commands: Any) -> None:
    """Adds `simulate`."""
    text = """
    Simulate the PA and the left lateral X-ray of a CT.

    The CT (NIfTI in HU, or a folder of one DICOM series) is freed of its table and placed on the cube of 358.4 mm;
    the rays meet in the cube's centre, a point of the patient's world that geometry.json remembers, so that a
    reconstruction lies over the CT in any viewer. DIR receives

      pa.nii.gz lateral.nii.gz   line integrals of mu at 70 keV (no unit), float32 (column, row, 1); row 0 is cranial
      geometry.json              distances, detector and isocenter [mm]
      radiographs.png            both views as they are read

    example:
      progressive-cascade simulate ct.nii.gz --output xrays
    """
    parser = add_command(commands, "simulate", run=run_simulate, text=text)
    parser.add_argument("ct", type=Path, metavar="CT", help="CT in HU: .nii, .nii.gz, or a folder of a DICOM series")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        default="chest_stand",
        metavar="NAME",
        help=f"acquisition geometry: {', '.join(sorted(PRESETS))} (default: chest_stand)",
    )


def run_simulate(options: argparse.Namespace) -> None:
    """Places the CT, projects it and writes the folder."""
    from progressive_cascade.placement import prepare_case

    check_output_folder(options.output)
    case = prepare_case(options.ct)
    beam = replace(ConeBeam.preset(options.preset), isocenter=case.isocenter)
    write_xrays(simulate_radiographs(case.hu, case.affine, beam), beam, options.output)
    if case.repeated_mm > 1:
        print(f"note: the CT is {case.z_extent_mm:.0f} mm long, {case.repeated_mm:.0f} mm repeat its end slices")
    print(f"X-rays: {options.output}")


def simulate_radiographs(hu: np.ndarray, affine: np.ndarray, beam: ConeBeam, device: str = "cpu") -> np.ndarray:
    """Projects a CT.

    Args:
        hu: CT numbers (x, y, z) [HU].
        affine: 4x4, voxel index to RAS mm.
        beam: the geometry.
        device: where to compute.

    Returns:
        Line integrals (view, rows, cols), float32.
    """
    import torch

    from progressive_cascade.attenuation import hu_to_mu
    from progressive_cascade.projector import line_integrals

    volume = torch.as_tensor(hu, dtype=torch.float32, device=device)[None, None]
    with torch.no_grad():
        return line_integrals(hu_to_mu(volume), beam, affine=affine)[0].cpu().numpy()


def write_xrays(image: np.ndarray, beam: ConeBeam, folder: Path) -> None:
    """Writes a folder of X-rays: the two views, the geometry and a picture.

    Args:
        image: line integrals (2, rows, cols), PA then left lateral.
        beam: their geometry.
        folder: where to; made where it is missing.
    """
    import numpy as np

    from progressive_cascade.io import save_nifti
    from progressive_cascade.report import radiographs_figure

    for view, name in enumerate(VIEW_FILES):
        pixels = np.ascontiguousarray(image[view].T[..., None], dtype=np.float32)
        save_nifti(pixels, beam.detector_affine(view), folder / name)
    save_geometry(beam, folder / "geometry.json")
    radiographs_figure(image, folder / "radiographs.png")
