# SPDX-License-Identifier: Apache-2.0
"""`simulate`: the X-rays of a CT."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progressive_cascade.cli.common import (
    add_assume_spacing,
    add_command,
    add_overwrite,
    add_preset,
    check_output_folder,
)
from progressive_cascade.cli.numbers import amount, natural, positive_amount
from progressive_cascade.cli.xrays import folder_files, write_xrays
from progressive_cascade.errors import UserError
from progressive_cascade.geometry import ConeBeam, load_geometry
from progressive_cascade.paths import check_files

if TYPE_CHECKING:
    import numpy as np

    from progressive_cascade.physics import Exposure

NIFTI = (".nii", ".nii.gz")


def add_simulate(commands: Any) -> None:
    """Adds `simulate`."""
    text = """
    Simulate the X-rays of a CT: by default the PA and the left lateral.

    The CT (NIfTI, MetaImage or NRRD in HU, or a folder of one DICOM series) is freed of its table and placed on the
    cube of 358.4 mm; the rays meet in the cube's centre, a point of the patient's world that geometry.json remembers,
    so that a reconstruction lies over the CT in any viewer. DIR receives

      pa.nii.gz lateral.nii.gz   line integrals of mu at 70 keV (no unit), float32 (column, row, 1); row 0 is cranial;
                                 of other views, each one's name, such as lao30_cranial15.nii.gz
      geometry.json              distances, detector and isocenter [mm]
      radiographs.png            the views as they are read
      exposure.json              how they were exposed, if one of the options for that was given

    Without these options the exposure is ideal: one energy, no noise, no scatter. With them the pixels are line
    integrals as a detector reports them, -ln(signal / signal without a patient). The CT is taken as read at 70 keV.
    `reconstruct` takes its line integrals to be at 70 keV; a tube's are 6 to 20 % larger in a chest at 120 kV.

    examples:
      progressive-cascade simulate ct.nii.gz --output xrays
      progressive-cascade simulate ct.nii.gz --output xrays --spectrum 120kV --photons 100000 --scatter 0.5
      progressive-cascade simulate ct.nii.gz --output xrays --geometry geometry.json --display
      progressive-cascade simulate ct.nii.gz --output xrays --preset bedside_ap --views ap right_lateral
    """
    parser = add_command(commands, "simulate", run=run_simulate, text=text)
    parser.add_argument("ct", type=Path, metavar="CT", help="CT in HU: .nii(.gz), .mha, .mhd, .nrrd, or a DICOM folder")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    where = parser.add_mutually_exclusive_group()
    add_preset(where, "acquisition geometry")
    where.add_argument(
        "--geometry", type=Path, metavar="FILE", help="acquisition geometry of a sidecar, moved to this CT's centre"
    )
    parser.add_argument(
        "--views",
        nargs="+",
        metavar="VIEW",
        help="pa ap left_lateral right_lateral, or a C-arm's angles such as lao30_cranial15 (default: the geometry's)",
    )
    parser.add_argument(
        "--keep-isocenter", action="store_true", help="leave the geometry of --geometry where FILE says it stands"
    )
    _add_exposure_options(parser)
    add_assume_spacing(parser)
    add_overwrite(parser)


def _add_exposure_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--spectrum",
        metavar="S",
        help="tube voltage with 3 mm Al, 60kV to 150kV, or one energy, 20keV to 150keV (default: 70keV)",
    )
    parser.add_argument(
        "--photons",
        type=positive_amount,
        metavar="N",
        help="photons a pixel detects without a patient: adds quantum noise (default: none)",
    )
    parser.add_argument(
        "--scatter",
        type=amount,
        metavar="R",
        help="scattered over primary radiation behind the patient; 0.5 with a grid, 2 without (default: 0)",
    )
    parser.add_argument("--seed", type=natural, metavar="N", help="of the noise (default: 0)")
    parser.add_argument(
        "--display", action="store_true", help="store windowed grey levels, 0 to 4095, in place of line integrals"
    )
    parser.add_argument(
        "--photometric",
        choices=("MONOCHROME1", "MONOCHROME2"),
        metavar="P",
        help="of --display: MONOCHROME1 counts down from white, MONOCHROME2 up from black (default: MONOCHROME2)",
    )


def run_simulate(options: argparse.Namespace) -> None:
    """Places the CT, projects it and writes the folder."""
    from progressive_cascade.ct.placement import prepare_case

    check_output_folder(options.output)
    exposure = _parse_exposure(options)
    beam = _parse_geometry(options)
    check_files(
        reads={"CT": options.ct, "--geometry": options.geometry},
        writes={"--output": folder_files(beam, options.output)},
        overwrite=options.overwrite,
    )
    case = prepare_case(options.ct, assume_spacing=options.assume_spacing)
    if not options.keep_isocenter:
        beam = beam.at(case.isocenter)
    seed = options.seed or 0
    image = simulate_radiographs(case.hu, case.affine, beam, exposure=exposure, seed=seed)
    photometric = (options.photometric or "MONOCHROME2") if options.display else None
    record = None
    if exposure is not None:
        record = {**exposure.to_dict(), "seed": seed, "pixels": photometric or "line integrals"}
    write_xrays(image, beam, options.output, photometric=photometric, exposure=record)
    for note in case.notes:
        print(f"note: {note}")
    if case.repeated_mm > 1:
        print(f"note: the CT is {case.z_extent_mm:.0f} mm long, {case.repeated_mm:.0f} mm repeat its end slices")
    print(f"X-rays: {options.output}")


def _parse_geometry(options: argparse.Namespace) -> ConeBeam:
    """The geometry of --geometry or --preset, with the views of --views.

    Raises:
        UserError: for options that do not go together.
    """
    if options.keep_isocenter and options.geometry is None:
        raise UserError("--keep-isocenter must come with --geometry")
    beam = ConeBeam.preset(options.preset) if options.geometry is None else load_geometry(options.geometry)
    if options.views is None:
        return beam
    try:
        return replace(beam, views=tuple(options.views))
    except ValueError as error:
        raise UserError(f"--{error}") from error


def _parse_exposure(options: argparse.Namespace) -> Exposure | None:
    """The exposure of the options; None where none was given.

    Raises:
        UserError: naming the option.
    """
    from progressive_cascade.physics import Exposure

    if options.seed is not None and options.photons is None:
        raise UserError("--seed must come with --photons: nothing else is random")
    if options.photometric is not None and not options.display:
        raise UserError("--photometric must come with --display: line integrals have none")
    given = {name: getattr(options, name) for name in ("spectrum", "photons", "scatter")}
    given = {name: value for name, value in given.items() if value is not None}
    if not given and not options.display:
        return None
    try:
        return Exposure(**given)
    except ValueError as error:  # begins with the field's name, which is the option's
        raise UserError(f"--{error}") from error


def simulate_radiographs(
    hu: np.ndarray,
    affine: np.ndarray,
    beam: ConeBeam,
    device: str = "cpu",
    *,
    exposure: Exposure | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Takes the radiographs of a CT.

    Args:
        hu: CT numbers (x, y, z) [HU].
        affine: 4x4, voxel index to RAS mm.
        beam: the geometry.
        device: where to compute.
        exposure: how; default: the ideal exposure.
        seed: of the noise.

    Returns:
        Line integrals (view, rows, cols), float32.
    """
    import torch

    from progressive_cascade.physics.simulate import expose

    volume = torch.as_tensor(hu, dtype=torch.float32, device=device)[None, None]
    generator = torch.Generator(device=device).manual_seed(seed)
    with torch.no_grad():
        image = expose(volume, beam, affine=affine, exposure=exposure, generator=generator)
    return image[0].cpu().numpy()
