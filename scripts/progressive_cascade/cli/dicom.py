# SPDX-License-Identifier: Apache-2.0
"""`--dicom-output`: the reconstruction as a DICOM series beside the NIfTI file."""

from __future__ import annotations

import argparse
from pathlib import Path

from progressive_cascade.errors import UserError


def add_dicom_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--dicom-output` and `--keep-identity`."""
    parser.add_argument(
        "--dicom-output", type=Path, metavar="FOLDER", help="also write the CT as a DICOM series of axial slices"
    )
    parser.add_argument(
        "--keep-identity",
        action="store_true",
        help="of --dicom-output: the patient, study and accession of the X-rays (default: an anonymous patient)",
    )


def dicom_files(options: argparse.Namespace) -> list[Path]:
    """The folder that will be written, if one is asked for.

    Raises:
        UserError: for options that do not go together.
    """
    if options.dicom_output is None:
        if options.keep_identity:
            raise UserError("--keep-identity must come with --dicom-output")
        return []
    if options.input is not None:
        raise UserError("--dicom-output must come with --pa and --lateral, not with --input")
    return [options.dicom_output]
