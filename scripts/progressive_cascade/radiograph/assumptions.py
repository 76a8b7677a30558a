# SPDX-License-Identifier: Apache-2.0
"""What is taken for granted where a radiograph does not say, with what an error in it costs.

Costs are those of the table of robustness in bundle/docs/RESULTS.md (`native` PSNR, means over patients and phantoms).
"""

from __future__ import annotations

from collections.abc import Iterable

CASSETTE_MM = 430.0
"""Longer side of the largest usual cassette and detector, 43 cm."""
COST_OF_LENGTH = "an error of 2 % costs about 2.0 dB, of 5 % about 5.4 dB"
"""What a wrong distance or a wrong spacing costs: rows `error of source_to_isocenter`."""
COST_OF_SCALE = {
    "scaled": "gain and offset are looked for, which costs next to nothing",
    "display": "a tone curve is looked for, which costs about 0.4 dB",
}
"""What unknown intensities cost, by what is known of them: rows `unknown factor`, 1, told `scaled`, and `display`."""
COST_OF_SURROUNDINGS = "with it they cost 0.2 to 3 dB; where nobody is there, leaving it out costs up to 0.1 dB"
"""What is above and below the cube: EXPERIMENTS, the patient beyond the cube."""
COST_OF_ORIENTATION = "left and right, or front and back, would be exchanged"
"""What a mirrored radiograph costs."""


def tell_cost_once(lines: Iterable[str]) -> list[str]:
    """Assumptions of which the first alone says what an error of a length costs; the others refer to it.

    Example:
        >>> tell_cost_once([f"a is 1 mm: {COST_OF_LENGTH}", f"b is 2 mm: {COST_OF_LENGTH}"])[1]
        'b is 2 mm: an error costs as much'
    """
    told: list[str] = []
    for line in lines:
        again = any(COST_OF_LENGTH in other for other in told)
        told.append(line.replace(COST_OF_LENGTH, "an error costs as much") if again else line)
    return told
