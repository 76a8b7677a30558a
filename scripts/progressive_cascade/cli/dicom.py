# SPDX-License-Identifier: Apache-2.0
"""`--dicom-output`: the reconstruction as a DICOM series beside the NIfTI file."""

from __future__ import annotations

import argparse
from pathlib import Path

from progressive_cascade.errors import UserError


def add_dicom_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--format`, `--dicom-output`, `--multiframe` and `--keep-identity`."""
    parser.add_argument(
        "--format",
        choices=("nifti", "dicom"),
        default="nifti",
        help="of --output: a NIfTI file, or a folder of DICOM slices without one (default: nifti)",
    )
    parser.add_argument(
        "--dicom-output", type=Path, metavar="FOLDER", help="also write the CT as a DICOM series of axial slices"
    )
    parser.add_argument(
        "--multiframe", action="store_true", help="of DICOM: one enhanced multi-frame file, CT.dcm, in place of slices"
    )
    parser.add_argument(
        "--keep-identity",
        action="store_true",
        help="of DICOM: the patient, study and accession of the X-rays (default: an anonymous patient)",
    )


def check_dicom_options(options: argparse.Namespace) -> None:
    """Refuses options that do not go together.

    Raises:
        UserError: naming both.
    """
    sigma = options.uncertainty is not None and options.uncertainty.suffix == ".dcm"
    dicom = options.dicom_output is not None or options.format == "dicom"
    for name, goes in (("--keep-identity", dicom or sigma), ("--multiframe", dicom)):
        if getattr(options, name[2:].replace("-", "_")) and not goes:
            raise UserError(f"{name} must come with --dicom-output or --format dicom")
    if options.dicom_output is not None and options.format == "dicom":
        raise UserError("--dicom-output must come without --format dicom, which makes --output the folder")
    if options.dicom_output is not None and options.input is not None:
        raise UserError(
            "--dicom-output must come with --pa and --lateral, not with --input; --format dicom goes with both"
        )


def dicom_folder(options: argparse.Namespace) -> Path | None:
    """The folder that receives the DICOM series, if one is asked for."""
    return options.output if options.format == "dicom" else options.dicom_output
