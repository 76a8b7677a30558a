# SPDX-License-Identifier: Apache-2.0
"""The radiographs of `reconstruct`: what its options say of them, and a pair as the network's input."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from progressive_cascade.cli.numbers import positive_amount
from progressive_cascade.cli.weights import OtherWeights
from progressive_cascade.cli.xrays import EXPOSURE_FILE, read_exposure
from progressive_cascade.errors import GeometryError, UserError
from progressive_cascade.geometry import PRESETS, ConeBeam, load_geometry

if TYPE_CHECKING:
    import numpy as np

    from progressive_cascade.networks import ProgressiveCascade
    from progressive_cascade.physics import Exposure
    from progressive_cascade.radiograph.pair import Pair

STRICT_EXIT = 3
"""Exit code of `--strict` where there is a warning."""


class Warned(Exception):
    """`--strict` met a warning."""


def add_radiograph_options(parser: argparse.ArgumentParser) -> None:
    """Adds what `reconstruct` may be told of its radiographs."""
    about = parser.add_argument_group("what the X-rays do not say themselves, or say wrongly")
    about.add_argument("--geometry", type=Path, metavar="JSON", help="geometry of the X-rays, as `simulate` writes it")
    about.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        help="distances and size of the detector (default: tags, else that of the view)",
    )
    about.add_argument(
        "--source-to-detector", type=positive_amount, metavar="MM", help="from the source to the detector"
    )
    about.add_argument("--source-to-isocenter", type=positive_amount, metavar="MM", help="to the patient's middle")
    size = about.add_mutually_exclusive_group()
    size.add_argument("--pixel-spacing", type=positive_amount, metavar="MM", help="pitch of the pixels at the detector")
    size.add_argument(
        "--field-of-view", type=positive_amount, metavar="MM", help="longer side at the detector (default: 430)"
    )
    about.add_argument(
        "--intensities",
        choices=("calibrated", "scaled", "display"),
        help="what pixel values are: line integrals; those but for gain and offset; no more than ordered (default: "
        "as the file says, else line integrals where they can be, else display)",
    )
    about.add_argument(
        "--spectrum",
        metavar="S",
        help="what line integrals were taken with, 120kV or 70keV (default: exposure.json beside PA, else 70keV)",
    )
    about.add_argument(
        "--surroundings",
        choices=("seen", "none"),
        help="whether the X-rays show the patient above and below the cube of 358 mm; rays that cross him there then "
        "have no weight (default: seen, but for line integrals, as `simulate` makes them)",
    )
    about.add_argument(
        "--find-size",
        action="store_true",
        help="take true line integrals for as large as the first stage explains them best, whatever distances and "
        "pixel spacing say (default: only where those are assumed, else warn)",
    )
    trust = about.add_mutually_exclusive_group()
    for name, where in (("tags", "where the picture contradicts its tags: believe the tags"), ("picture", "or it")):
        trust.add_argument(f"--trust-{name}", dest="trust", action="store_const", const=name, help=where)
    about.add_argument("--strict", action="store_true", help="end with exit code 3 at a warning, and write nothing")


def read_pair(options: argparse.Namespace, network: ProgressiveCascade) -> Pair:
    """Reads the two radiographs of the options, and prints what was done, assumed and is doubtful.

    Args:
        options: of the command.
        network: the cascade they are for.

    Returns:
        The pair, its line integrals at the energy the network knows.

    Raises:
        UserError: for what is wrong with a file or an option.
        OtherWeights: for grey levels that the weights of the chest stand explain badly: others have seen such pictures.
        Warned: with `--strict`, where there is a warning.
    """
    from progressive_cascade.inference.examine import examine
    from progressive_cascade.inference.first_look import LEAST_AGREEMENT

    def assemble(mirror_frontal: bool) -> Pair:
        pair = _assemble(options, network, mirror_frontal=mirror_frontal)
        return replace(pair, image=at_one_energy(pair.image, exposure)) if pair.calibrated else pair

    exposure = choose_exposure(options)
    has_others = _has_others(options, network)
    pair = examine(assemble, network, options.trust, in_register=not has_others, resize=options.find_size)
    if options.find_size and not pair.calibrated:
        raise UserError(
            f"--find-size must come with true line integrals, whose density tells it; these are {pair.intensities}"
        )
    worst = min(pair.first_agreement.values())
    if has_others and not pair.calibrated and worst < LEAST_AGREEMENT[False]:
        raise OtherWeights(f"grey levels that the weights of the chest stand explain to {worst:.1f} dB alone")
    shown = ", ".join(f"{view} {score:.1f} dB" for view, score in pair.first_agreement.items())
    print(f"agreement before data consistency: {shown}")
    for kind, lines in (("note", pair.notes), ("assumed", pair.assumptions), ("warning", pair.warnings)):
        for line in lines:
            print(f"{kind}: {line}")
    stop_at_warnings(options, pair.warnings)
    return pair


def check_settings(options: argparse.Namespace) -> None:
    """Refuses, before any radiograph is read, options that are wrong for every one.

    Raises:
        UserError: naming the option.
    """
    if options.geometry and options.preset:
        raise UserError("--preset must come without --geometry")
    if options.geometry:
        load_geometry(options.geometry)
    if options.spectrum is not None:
        choose_exposure(options)


def _assemble(options: argparse.Namespace, network: ProgressiveCascade, *, mirror_frontal: bool) -> Pair:
    """The pair on the network's detector."""
    from progressive_cascade.inference.acceptance import check_directions, model_of
    from progressive_cascade.inference.reconstruct import check_beam
    from progressive_cascade.radiograph.lengths import Choices
    from progressive_cascade.radiograph.pair import assemble_pair
    from progressive_cascade.radiograph.read import read_radiograph

    if options.geometry and options.preset:
        raise UserError("--preset must come without --geometry")
    beam = load_geometry(options.geometry) if options.geometry else None
    if beam is not None and len(beam.views) == 2:  # before pictures of one side are called two frontals
        check_directions(network, beam, _origin(options))
    pitch = options.pixel_spacing
    choices = Choices(
        pixel_spacing=None if pitch is None else (pitch, pitch),
        mirror_frontal=mirror_frontal,
        **{name: getattr(options, name) for name in ("field_of_view", "source_to_detector", "source_to_isocenter")},
        **{name: getattr(options, name) for name in ("preset", "intensities", "trust", "surroundings")},
    )
    return assemble_pair(
        read_radiograph(options.pa),
        read_radiograph(options.lateral),
        model=model_of(network),
        beam=beam,
        choices=choices,
        check_beam=lambda beam: check_beam(network, learnt(options, network, beam), _origin(options)),
    )


def learnt(options: argparse.Namespace, network: ProgressiveCascade, beam: ConeBeam) -> ConeBeam:
    """The geometry, unless shipped weights have learnt it that are at hand and not in use.

    Raises:
        GeometryError: for a right lateral, which the weights of the chest stand take by a detour only.
    """
    if _has_others(options, network) and "right_lateral" in beam.views:
        raise GeometryError(f"{_origin(options)} must have a left lateral for the weights of the chest stand")
    return beam


def _has_others(options: argparse.Namespace, network: ProgressiveCascade) -> bool:
    """Whether the weights are the shipped ones of the chest stand, with those for any geometry at hand."""
    from progressive_cascade.inference.reconstruct import wide_checkpoint

    return options.checkpoint is None and network.geometry_range is None and wide_checkpoint().is_file()


def stop_at_warnings(options: argparse.Namespace, warnings: list[str]) -> None:
    """Ends a pair that was warned of, where that is wanted.

    Raises:
        Warned: with `--strict`, where there is a warning.
    """
    if options.strict and warnings:
        raise Warned(warnings[0])


def _origin(options: argparse.Namespace) -> str:
    """What to name where the geometry is not the checkpoint's."""
    if options.geometry:
        return str(options.geometry)
    return f"--preset {options.preset}" if options.preset else "the X-rays' geometry"


def choose_exposure(options: argparse.Namespace) -> Exposure:
    """What the X-rays were taken with: as given, as `simulate` left it beside them, or 70 keV."""
    from progressive_cascade.physics import Exposure

    if options.spectrum is None:
        beside = options.pa.parent / EXPOSURE_FILE
        return read_exposure(beside) if beside.is_file() else Exposure()
    try:
        return Exposure(spectrum=options.spectrum)
    except ValueError as error:
        raise UserError(f"--spectrum: {error}") from error


def at_one_energy(image: np.ndarray, exposure: Exposure) -> np.ndarray:
    """Line integrals of a whole spectrum, as if of water at the energy the network knows."""
    import torch

    from progressive_cascade.attenuation import EFFECTIVE_ENERGY_KEV
    from progressive_cascade.physics import water_equivalent

    if exposure.is_monoenergetic and exposure.spectrum == f"{EFFECTIVE_ENERGY_KEV:g}keV":
        return image
    print(f"note: line integrals of {exposure.spectrum} are brought to {EFFECTIVE_ENERGY_KEV:g} keV as if behind water")
    pixels = torch.from_numpy(image)
    return water_equivalent(pixels, exposure.beam_spectrum, scintillator=exposure.scintillator).numpy()
