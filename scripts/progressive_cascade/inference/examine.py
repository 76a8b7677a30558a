# SPDX-License-Identifier: Apache-2.0
"""A pair of radiographs before it is reconstructed: mirrored or not, in register, with what stage 1 says against it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from progressive_cascade.inference.first_look import look_at_pair
from progressive_cascade.inference.register import register
from progressive_cascade.networks import ProgressiveCascade
from progressive_cascade.radiograph.pair import Pair


def examine(
    assemble: Callable[[bool], Pair],
    network: ProgressiveCascade,
    trust: str | None = None,
    *,
    in_register: bool = True,
) -> Pair:
    """A pair with what the first stage says of it.

    Whether a frontal is mirrored, neither its picture nor stage 1 proves; both together are asked. Where they are sure
    it is warned of, mirrored if the picture is trusted, and passed over if the tags are. Grey levels that are explained
    badly are brought into register (:func:`.register.register`).

    Args:
        assemble: makes the pair, with its frontal mirrored or not.
        network: a cascade of any stage.
        trust: "tags", "picture" or None.
        in_register: whether to bring them into register where that is called for.
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
    doubts = look.doubts(calibrated=pair.calibrated, source_to_isocenter=pair.beam.source_to_isocenter)
    return replace(
        pair,
        notes=[*pair.notes, *notes],
        warnings=[*pair.warnings, *warnings, *doubts],
        first_agreement=dict(look.agreement_db),
        first_mirrored=look.mirrored_db,
        slice_difference=pair.slice_difference if look.slice_difference is None else look.slice_difference,
    )
