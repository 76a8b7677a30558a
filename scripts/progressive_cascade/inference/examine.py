# SPDX-License-Identifier: Apache-2.0
"""A pair of radiographs before it is reconstructed: mirrored or not, in register, with what stage 1 says against it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from progressive_cascade.inference.first_look import look_at_pair
from progressive_cascade.inference.register import register
from progressive_cascade.inference.size import ASKED, ASSUMED, at_size, find_size
from progressive_cascade.networks import ProgressiveCascade
from progressive_cascade.radiograph.pair import Pair


def examine(
    assemble: Callable[[bool], Pair],
    network: ProgressiveCascade,
    trust: str | None = None,
    *,
    in_register: bool = True,
    resize: bool = False,
) -> Pair:
    """A pair with what the first stage says of it.

    Whether a frontal is mirrored, neither its picture nor stage 1 proves; both together are asked. Where they are sure
    it is warned of, mirrored if the picture is trusted, and passed over if the tags are. Grey levels that are explained
    badly are brought into register (:func:`.register.register`). True line integrals are taken for as large as stage 1
    explains them best (:mod:`.size`) where a length was assumed, or that is asked for; else a size that does not fit is
    warned of.

    Args:
        assemble: makes the pair, with its frontal mirrored or not.
        network: a cascade of any stage.
        trust: "tags", "picture" or None.
        in_register: whether to bring them into register where that is called for.
        resize: whether to believe stage 1's size also where all lengths were told.
    """
    pair, notes, warnings = assemble(False), [], []
    look = look_at_pair(network, pair)
    if trust != "tags" and look.looks_mirrored(pair.mirror):
        said = "the frontal X-ray looks mirrored, the heart on the patient's right"
        if trust == "picture":
            pair = assemble(True)
            look, notes = look_at_pair(network, pair), [f"{said}; the picture was trusted"]
        else:
            warnings = [f"{said}; --trust-picture mirrors it, --trust-tags does not"]
    if in_register and not pair.calibrated and look.is_low(calibrated=False):
        pair = register(network, pair)
        look = look_at_pair(network, pair)
    if pair.calibrated and (sized := _sized(network, pair, resize=resize)) is not pair:
        look = look if sized.image is pair.image else look_at_pair(network, sized)
        pair = sized
    doubts = look.doubts(calibrated=pair.calibrated, source_to_isocenter=pair.beam.source_to_isocenter)
    return replace(
        pair,
        notes=[*pair.notes, *notes],
        warnings=[*pair.warnings, *warnings, *doubts],
        first_agreement=dict(look.agreement_db),
        first_mirrored=look.mirrored_db,
        slice_difference=pair.slice_difference if look.slice_difference is None else look.slice_difference,
    )


def _sized(network: ProgressiveCascade, pair: Pair, *, resize: bool) -> Pair:
    """The pair as large as stage 1 explains it best, where it is believed; else with a warning, where it is far off."""
    found = find_size(network, pair)
    if found.is_off(ASKED if resize else ASSUMED) and (resize or not pair.lengths_told):
        return replace(at_size(pair, found.size), notes=[*pair.notes, f"{found}: they were taken for so large"])
    if found.is_doubtful:
        doubt = f"{found}: are distances and pixel spacing right? --find-size takes them for so large"
        return replace(pair, warnings=[*pair.warnings, doubt])
    return pair
