# SPDX-License-Identifier: Apache-2.0
"""`phantom`: a patient who does not exist, or a page of them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progressive_cascade.cli.common import add_command, add_overwrite, check_output_file
from progressive_cascade.cli.numbers import natural, positive
from progressive_cascade.cli.simulation import NIFTI, simulate_radiographs
from progressive_cascade.errors import UserError
from progressive_cascade.geometry import VOLUME_SHAPE, VOXEL_SIZE, ConeBeam
from progressive_cascade.paths import check_files

if TYPE_CHECKING:
    import numpy as np

_PICTURES = (".png", ".jpg")
_CUBE_MM = VOLUME_SHAPE[0] * VOXEL_SIZE
_GALLERY_PATIENTS = 24


def add_phantom(commands: Any) -> None:
    """Adds `phantom`."""
    text = f"""
    Write the CT of a simulated patient, or a page of {_GALLERY_PATIENTS} of them to look at.

    A seed is a patient: the same seed gives the same thorax on every grid. The CT is int16 in HU on a cube of
    358.4 mm, RAS, so that 256 voxels are 1.4 mm wide.

    Populations: basic (healthy builds, upright and centred: what the shipped weights were trained on) and clinical
    (patients as they lie in scanners and stand at detectors). basic+pose is basic but for one family of numbers,
    clinical-pose clinical but for it; families: build, pose, arms, scan, lungs, heart, disease, findings.

    examples:
      progressive-cascade phantom --seed 7 --output ct.nii.gz --labels labels.nii.gz
      progressive-cascade phantom --population clinical --gallery patients.jpg
    """
    parser = add_command(commands, "phantom", run=run_phantom, text=text)
    parser.add_argument("--seed", type=natural, metavar="N", help="which patient, or the page's first: 0 or more")
    parser.add_argument("--output", type=Path, metavar="CT", help="CT to write, .nii.gz")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="also write the anatomy's label map, .nii.gz")
    parser.add_argument("--gallery", type=Path, metavar="PAGE", help="in place of a CT, a page, .png or .jpg")
    parser.add_argument("--population", default="basic", metavar="NAME", help="basic or clinical (default: basic)")
    parser.add_argument("--size", type=positive, metavar="N", help="voxels per axis (default: 256, of a page 128)")
    add_overwrite(parser)


def run_phantom(options: argparse.Namespace) -> None:
    """Writes the CT, and the label map where it is asked for; or the page."""
    from progressive_cascade.phantom import parse_population

    _check_phantom(options)
    try:
        parse_population(options.population)
    except ValueError as error:
        raise UserError(f"--{error}") from error
    size = options.size or (128 if options.gallery else 256)
    if not 8 <= size <= 1024:
        raise UserError(f"--size must be between 8 and 1024 voxels, got {size}")
    if options.gallery:
        _write_gallery(options, size)
    else:
        _write_phantom(options, size)


def _check_phantom(options: argparse.Namespace) -> None:
    """Refuses options that do not go together and files that cannot be written."""
    if (options.output is None) == (options.gallery is None):
        raise UserError("give either --output, a CT to write, or --gallery, a page to write")
    if options.output is not None and options.seed is None:
        raise UserError("--output must come with --seed, which patient it is")
    if options.gallery is not None and options.labels is not None:
        raise UserError("--labels must come with --output: a page has none")
    for name, path, suffixes in (
        ("--output", options.output, NIFTI),
        ("--labels", options.labels, NIFTI),
        ("--gallery", options.gallery, _PICTURES),
    ):
        if path is not None:
            check_output_file(path, suffixes, name)
    writes = {f"--{name}": [path] for name in ("output", "labels", "gallery") if (path := getattr(options, name))}
    check_files(reads={}, writes=writes, overwrite=options.overwrite)


def _write_phantom(options: argparse.Namespace, size: int) -> None:
    from progressive_cascade.io import atomic_paths, save_nifti
    from progressive_cascade.phantom import generate_phantom

    phantom = generate_phantom(
        options.seed, shape=(size, size, size), spacing=_CUBE_MM / size, population=options.population
    )
    labels = [] if options.labels is None else [options.labels]
    with atomic_paths(options.output, *labels) as temporaries:
        for volume, path in zip((phantom.hu, phantom.labels), temporaries, strict=False):
            save_nifti(volume, phantom.affine, path)
    print(f"CT of patient {options.seed}: {options.output}")
    if labels:
        print(f"labels: {options.labels}")


def _write_gallery(options: argparse.Namespace, size: int) -> None:
    from progressive_cascade.phantom import generate_phantom
    from progressive_cascade.report.gallery import save_gallery

    beam = ConeBeam(detector_shape=(256, 256), pixel_spacing=(1.68, 1.68))
    first = options.seed or 0

    def patients() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        for seed in range(first, first + _GALLERY_PATIENTS):
            made = generate_phantom(
                seed, shape=(size, size, size), spacing=_CUBE_MM / size, population=options.population
            )
            yield f"{options.population} {seed}", made.hu, simulate_radiographs(made.hu, made.affine, beam)

    save_gallery(patients(), options.gallery)
    print(f"{_GALLERY_PATIENTS} patients, {options.population}, from seed {first}: {options.gallery}")
