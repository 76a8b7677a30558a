# SPDX-License-Identifier: Apache-2.0
"""`reconstruct`: from two X-rays to a CT, for one patient or a folder of them."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progressive_cascade.cli.common import (
    DEVICE_HELP,
    add_checkpoint,
    add_command,
    add_overwrite,
    add_refine,
    check_checkpoint,
    check_output_file,
    check_output_folder,
    select_device,
)
from progressive_cascade.cli.dicom import add_dicom_options, check_dicom_options
from progressive_cascade.cli.folders import add_folder_options, run_folder
from progressive_cascade.cli.radiographs import STRICT_EXIT, Warned, add_radiograph_options, read_pair, stop_at_warnings
from progressive_cascade.cli.results import case_files, describe_case, write_case
from progressive_cascade.cli.simulation import NIFTI
from progressive_cascade.cli.weights import Weights
from progressive_cascade.cli.xrays import EXPOSURE_FILE
from progressive_cascade.errors import UserError
from progressive_cascade.paths import check_files

if TYPE_CHECKING:
    from progressive_cascade.inference.reconstruct import Reconstruction
    from progressive_cascade.networks import ProgressiveCascade
    from progressive_cascade.networks.uncertainty import UncertaintyHead
    from progressive_cascade.radiograph.pair import Pair


_RECONSTRUCT = """
Reconstruct a CT from a frontal and a lateral X-ray.

The X-rays are DICOM (DX, CR, secondary capture), PNG, JPEG, TIFF, NIfTI, MHA or NRRD, of any size. What tags or a
sidecar (NAME.json beside NAME.png) say of them is used: how they lie, their size, the distances, what pixel values
mean. What nothing says is assumed, and printed with what an error in it costs. NIfTI files of line integrals
(column, row, 1) with a geometry, as `simulate` writes them, leave nothing to assume. The geometry must lie in the
range that the checkpoint was trained for (`check` prints it, CT.json keeps it): up to 5 % beyond a border is warned of,
what lies farther out is refused. Its isocenter says where in the patient's world [mm] the CT belongs.

Beside CT.nii.gz (HU, int16, 256³ voxels of 1.4 mm) are written: CT.json (geometry, assumptions, warnings, versions,
the checkpoint's hash, agreement with the X-rays), CT.png, CT.html, which shows the result in a browser without a
network, and CT.radiographs.nii.gz, the line integrals, so that `report` can make the page again. With
--uncertainty SIGMA.nii.gz the standard deviation of the CT's error is written as well, voxel by voxel in whole HU.

The first stage is refined on these very X-rays (--refine 0: not); along with it a gain and an offset of each
X-ray are found where its values are scaled, and a tone curve where they are display values. CT.json keeps the
residual before and after, and in patches that were held back: agreement after refining says little.
What error to expect of this very CT is printed, and kept under expected_error with intervals that hold in 9 cases of
10; a case unlike those of the calibration, or weights it is not for, get the reason in place of a number.

--format dicom makes --output a folder of DICOM slices (--multiframe: one enhanced multi-frame file) that refer to DICOM
X-rays; sidecar, picture and page stand beside it. --uncertainty SIGMA.dcm is a parametric map in the same study.

With --input, every pair of a folder is reconstructed: ID_pa.* and ID_lat.* (also ap, frontal, lateral, ll, rl),
pa.* and lateral.* in a folder of their own, DICOM by study and view, or as a CSV says. summary.csv and index.html
in the folder --output tell how each went; what is there and whole is not made again. Pairs found by study go by a
hash (--keep-names: by StudyInstanceUID; --key FILE: keeps what leads back).

examples:
  progressive-cascade reconstruct --pa xrays/pa.nii.gz --lateral xrays/lateral.nii.gz \\
      --geometry xrays/geometry.json --output ct.nii.gz
  progressive-cascade reconstruct --pa pa.dcm --lateral lateral.dcm --output ct.nii.gz --refine 30
  progressive-cascade reconstruct --pa pa.png --lateral lateral.png --field-of-view 430 --output ct.nii.gz
  progressive-cascade reconstruct --input xrays --output cts
"""


def add_reconstruct(commands: Any) -> None:
    """Adds `reconstruct`."""
    parser = add_command(commands, "reconstruct", run=run_reconstruct, text=_RECONSTRUCT)
    parser.add_argument("--pa", type=Path, metavar="PA", help="frontal X-ray: PA, or AP where its tags say so")
    parser.add_argument(
        "--lateral", type=Path, metavar="LAT", help="lateral X-ray: left, or right where its tags say so"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="CT", help="CT to write, .nii.gz (or a folder)")
    add_checkpoint(parser)
    parser.add_argument(
        "--uncertainty", type=Path, metavar="SIGMA", help="also write each voxel's standard deviation [HU], .nii.gz"
    )
    pages = parser.add_mutually_exclusive_group()
    pages.add_argument("--report", type=Path, metavar="FILE", help="page to write, .html (default: beside CT)")
    pages.add_argument("--no-report", action="store_true", help="write no page")
    parser.add_argument("--device", metavar="D", help=DEVICE_HELP)
    parser.add_argument(
        "--portable", action="store_true", help="the same CT voxel for voxel with numba and without; slower on a CPU"
    )
    add_overwrite(parser)
    add_refine(parser)
    parser.add_argument(
        "--find-pose", action="store_true", help="while refining, also look for shifts up to 5 mm and turns up to 2°"
    )
    add_radiograph_options(parser)
    add_folder_options(parser)
    add_dicom_options(parser)


def run_reconstruct(options: argparse.Namespace) -> int:
    """Reconstructs a pair, or every pair of a folder with one network; returns the exit code."""
    check_dicom_options(options)
    check_checkpoint(options)
    if options.input is not None:
        weights = Weights(options.checkpoint, select_device(options.device))
        return run_folder(options, lambda one: weights.run(one, reconstruct_pair))
    if options.pa is None or options.lateral is None:
        raise UserError("--pa and --lateral must be given, or --input with a folder of pairs")
    check_outputs(options)
    weights = Weights(options.checkpoint, select_device(options.device))
    try:
        weights.run(options, reconstruct_pair)
    except Warned as warned:
        print(f"progressive-cascade: --strict: {warned}", file=sys.stderr)
        return STRICT_EXIT
    return 0


def reconstruct_pair(options: argparse.Namespace, network: ProgressiveCascade) -> dict[str, Any]:
    """Reads and checks a pair, reconstructs it, writes the CT and what belongs to it.

    Args:
        options: of the command, with the pair's own files.
        network: the cascade.

    Returns:
        The sidecar.

    Raises:
        UserError: for what is wrong with a file or an option.
        Warned: with `--strict`, where there is a warning; nothing is written.
    """
    from progressive_cascade.inference.expect import expect_error
    from progressive_cascade.inference.reconstruct import default_checkpoint

    files, head = case_files(options), _load_uncertainty(options)
    pair = read_pair(options, network)
    result = _reconstruct(options, pair, network)
    stop_at_warnings(options, [] if result.refinement is None else result.refinement.warnings)
    expected = expect_error(result, pair.beam, network, options.checkpoint or default_checkpoint())
    print(expected["text"])
    more = {**pair.record(), "expected_error": expected}
    record = describe_case(result, pair.beam, checkpoint=options.checkpoint, more=more)
    sources = {"sources": (options.pa, options.lateral), "keep_identity": options.keep_identity}
    for path in write_case(result, pair.beam, files, record=record, head=head, **sources):
        print(path)
    return record


def _reconstruct(options: argparse.Namespace, pair: Pair, network: ProgressiveCascade) -> Reconstruction:
    from progressive_cascade.inference.inferers import CascadeInferer, device_defaults
    from progressive_cascade.inference.reconstruct import reconstruct
    from progressive_cascade.inference.refine import RefineSettings

    if not pair.calibrated:
        after = "they are calibrated while refining" if options.refine else "data consistency is left out"
        print(f"note: the X-rays are no line integrals but {pair.intensities}; {after}")
    start = time.perf_counter()
    fastest = device_defaults(network.projection_matrices.device)._asdict()
    result = reconstruct(
        pair.image,
        pair.beam,
        network=network,
        inferer=CascadeInferer(**fastest, progress=options.input is None, portable=options.portable),
        calibrated=pair.calibrated,
        weights=pair.weights,
        intensities="display" if pair.calibrated else pair.intensities,
        refine=RefineSettings(steps=options.refine, pose=options.find_pose),
    )
    _print_refinement(result)
    print(f"reconstructed in {time.perf_counter() - start:.1f} s")
    return result


def check_outputs(options: argparse.Namespace) -> None:
    """Refuses, before any work, files of a pair that cannot be written, that exist, or that are inputs.

    Raises:
        UserError: naming option and file.
    """
    if options.format == "dicom":
        check_output_folder(options.output)
    else:
        check_output_file(options.output, NIFTI)
    if options.uncertainty is not None:
        check_output_file(options.uncertainty, (*NIFTI, ".dcm"), "--uncertainty")
    inputs = {f"--{name}": getattr(options, name) for name in ("pa", "lateral", "geometry", "checkpoint")}
    files = case_files(options).fixed()
    apart = {"--uncertainty": files.pop("sigma", None), "--report": files.pop("page", None)}
    check_files(
        reads={**inputs, EXPOSURE_FILE: options.pa.parent / EXPOSURE_FILE},
        writes={
            "--output": [*files.values(), *([options.output] if options.format == "dicom" else [])],
            **{option: [] if path is None else [path] for option, path in apart.items()},
            "--dicom-output": [] if options.dicom_output is None else [options.dicom_output],
        },
        overwrite=options.overwrite,
    )


def _print_refinement(result: Reconstruction) -> None:
    """One line on what refining did, and each warning."""
    report = result.refinement
    if report is None:
        return
    print(
        f"refined in {report.steps} steps, {report.kept} kept: residual {report.residual_before:.3f} -> "
        f"{report.residual_after:.3f}, held back {report.held_out_before:.3f} -> {report.held_out_after:.3f}"
    )
    for line in report.warnings:
        print(f"warning: {line}")


def _load_uncertainty(options: argparse.Namespace) -> UncertaintyHead | None:
    """The network that predicts sigma, where it is asked for."""
    from progressive_cascade.inference.reconstruct import default_checkpoint
    from progressive_cascade.inference.uncertainty import belongs_to, load_uncertainty

    if options.uncertainty is None:
        return None
    head, weights = load_uncertainty(device=select_device(options.device)), options.checkpoint or default_checkpoint()
    if not belongs_to(head, weights):
        print(f"note: the uncertainty was calibrated with another checkpoint than {weights}")
    return head
