# SPDX-License-Identifier: Apache-2.0
"""`prepare`: a CT archive to the dataset folder that training and evaluation read."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from progressive_cascade.cli.common import (
    add_assume_spacing,
    add_command,
    add_overwrite,
    check_output_folder,
)
from progressive_cascade.cli.numbers import fraction, natural


def add_prepare(commands: Any) -> None:
    """Adds `prepare`."""
    text = """
    Prepare CTs for training and evaluation.

    INPUT is a CT (NIfTI, MetaImage, NRRD), a folder of CTs, or a folder of DICOM series, searched at any depth;
    hidden files are passed over. What is mended or assumed is said in the manifest: padding and NaN are air, a slice
    that is there twice is used once, a single missing slice is the mean of its neighbours, localizers are left out.

    Each CT is turned to RAS, freed of table and clothes, resampled to 1.4 mm and placed on 256³ voxels around the
    body. A CT shorter than the cube (358.4 mm) goes on with its end slices, which `valid` marks as never scanned.
    Patients, not CTs, are divided into training, validation and test. DATASET receives

      ct/ID.nii.gz       HU, int16
      valid/ID.nii.gz    1 where the scanner measured
      datalist.json      the split (Decathlon format)
      manifest.csv       what became of every input, with the reason where it was skipped

    Nothing in DATASET names a patient of DICOM files: cases go by a salted hash, the same for the same archive. --key
    FILE keeps what leads back to the PatientID, and the names when the archive grows; files go by their own names.

    With --overwrite an earlier dataset stays whole until the new one is.

    examples:
      progressive-cascade prepare archive --output dataset
      progressive-cascade prepare archive --output dataset --validation patient07 --test patient03 patient12
    """
    parser = add_command(commands, "prepare", run=run_prepare, text=text)
    parser.add_argument("input", type=Path, metavar="INPUT", help="CT file, or folder of CT files or DICOM series")
    parser.add_argument("--output", type=Path, required=True, metavar="DATASET", help="folder to write")
    _add_split_options(parser)
    parser.add_argument(
        "--center",
        choices=("scan", "lungs"),
        default="scan",
        help="what the cube follows along z in a CT longer than it (default: scan)",
    )
    parser.add_argument("--drop-truncated", action="store_true", help="skip CTs whose field of view cuts the body")
    names = parser.add_mutually_exclusive_group()
    names.add_argument(
        "--keep-names", action="store_true", help="name DICOM patients by PatientID, list paths (default: hidden)"
    )
    names.add_argument("--key", type=Path, metavar="FILE", help="keep what leads back to PatientIDs, mode 0600")
    add_assume_spacing(parser)
    _add_workers(parser)
    add_overwrite(parser)


def _add_workers(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("who works; an interrupted command goes on with the series that are missing")
    group.add_argument(
        "--workers",
        type=natural,
        metavar="N",
        help="processes (0: this one) or jobs (default: all cores)",
    )
    dask = group.add_mutually_exclusive_group()
    dask.add_argument("--scheduler", metavar="ADDRESS", help="a Dask scheduler, whose workers see the same files")
    dask.add_argument("--cluster", choices=("slurm",), help="Dask workers as jobs of a batch system (dask-jobqueue)")


def _add_split_options(parser: argparse.ArgumentParser) -> None:
    split = parser.add_argument_group("split, by patient")
    for section in ("validation", "test"):
        split.add_argument(
            f"--{section}-fraction",
            type=fraction,
            default=0.1,
            metavar="F",
            help=f"fraction of the patients drawn for {section} (default: 0.1)",
        )
    split.add_argument("--seed", type=natural, default=0, metavar="N", help="seed of the draw (default: 0)")
    for section in ("training", "validation", "test"):
        others = "; leaves all others out" if section == "training" else ""
        split.add_argument(f"--{section}", nargs="+", metavar="PATIENT", help=f"name the {section} patients{others}")
    split.add_argument(
        "--patient-pattern", metavar="REGEX", help="finds the patient in a file's path (default: the file's name)"
    )


def run_prepare(options: argparse.Namespace) -> None:
    """Prepares the archive and prints what became of it."""
    from tqdm import tqdm

    from progressive_cascade.ct.prepare import ManifestRow, dataset_files, prepare_dataset
    from progressive_cascade.ct.split import Split
    from progressive_cascade.ct.workers import Workers
    from progressive_cascade.paths import check_files

    check_output_folder(options.output)
    check_files(
        reads={"INPUT": options.input}, writes={"--output": dataset_files(options.output)}, overwrite=options.overwrite
    )
    names = {
        key: tuple(value) if (value := getattr(options, key)) else None for key in ("training", "validation", "test")
    }
    split = Split(
        validation_fraction=options.validation_fraction, test_fraction=options.test_fraction, seed=options.seed, **names
    )
    # The delay keeps an empty bar away from the line that tells of a mistake.
    with tqdm(desc="prepare", unit=" CT", delay=0.5) as bar:

        def advance(row: ManifestRow) -> None:
            bar.update()
            bar.set_postfix_str(row.case)

        rows = prepare_dataset(
            options.input,
            options.output,
            split=split,
            patient_pattern=options.patient_pattern,
            keep_truncated=not options.drop_truncated,
            keep_names=options.keep_names,
            key_file=options.key,
            center=options.center,
            assume_spacing=options.assume_spacing,
            workers=Workers(options.workers, options.scheduler, options.cluster),
            progress=advance,
        )
    for row in rows:
        if row.reason:
            print(f"{row.status}: {row.case}: {row.reason}")
        if row.note:
            print(f"note: {row.case}: {row.note}")
    sizes = Counter(row.split for row in rows if row.split)
    print(", ".join(f"{sizes[name]} {name}" for name in ("training", "validation", "test")) + f": {options.output}")
