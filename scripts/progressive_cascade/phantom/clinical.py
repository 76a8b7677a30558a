# SPDX-License-Identifier: Apache-2.0
"""The table of the clinical population: what differs between patients as scanners and detectors see them, and how much.

`python -m progressive_cascade.phantom.clinical` prints it as Markdown. Where a source is named, its mean and spread are
taken, rounded; what says "chosen" covers what occurs, and rare things oftener than they occur, so that they are learnt.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from progressive_cascade.phantom.laws import Law, LogNormal, Normal, Sometimes, Uniform

_ANSUR = "Gordon et al., 2012 Anthropometric Survey of U.S. Army Personnel, NATICK/TR-15/007 (2014)"
_KYPHOSIS = "Fon, Pitt & Thies 1980, doi 10.2214/ajr.134.5.979"
_DOMES = "Lennon & Simon 1965, doi 10.1259/0007-1285-38-456-937"
_AORTA = "Wolak et al. 2008, doi 10.1016/j.jcmg.2007.11.005"
_NOISE = "as in the training CTs"
_SCOLIOSIS = "how often: 13 % of chest radiographs, doi 10.1007/s00586-015-4215-4; the curve chosen"
_HEARTS = "Chon et al. 2011, PMC3207047: 0.49 ± 0.06 without congestion"

_CHOSEN = "chosen"


@dataclass(frozen=True)
class Quantity:
    """One row of the table.

    Args:
        family: what it belongs to; a population takes families whole.
        law: how it varies.
        meaning: what it is, with its unit.
        source: where the numbers come from.
    """

    family: str
    law: Law
    meaning: str
    source: str = _CHOSEN


TABLE: dict[str, Quantity] = {
    "turn": Quantity("pose", Sometimes(0.2, Uniform(-20, 20), Normal(0, 4, -12, 12)), "about the long axis, degrees"),
    "pitch": Quantity("pose", Normal(0, 3.5, -10, 10), "about the axis from side to side, degrees"),
    "roll": Quantity("pose", Normal(0, 2.5, -10, 10), "about the axis from back to front, degrees"),
    "aside": Quantity("pose", Normal(0, 8, -25, 25), "centre of the chest from that of the cube, mm"),
    "forward": Quantity("pose", Normal(0, 9, -25, 25), "likewise, mm"),
    "upward": Quantity("pose", Sometimes(0.15, Uniform(50, 130), Normal(-5, 20, -55, 50)), "likewise, mm"),
    "scoliosis": Quantity(
        "pose",
        Sometimes(0.12, Uniform(8, 25), Normal(0, 3.5, -8, 8)),
        "amplitude of the spine's lateral curve, mm",
        _SCOLIOSIS,
    ),
    "kyphosis": Quantity("pose", Normal(9, 10, -8, 38), "how far the upper spine leans forward, mm", _KYPHOSIS),
    "growth": Quantity(
        "build", Sometimes(0.08, Uniform(0.78, 0.93), Normal(1, 0.045, 0.88, 1.12)), "size, 10-year-olds to adults"
    ),
    "chest_width_male": Quantity("build", Normal(119, 7, 100, 138), "half the inner width of the cage, mm", _ANSUR),
    "chest_width_female": Quantity("build", Normal(109, 6.5, 92, 126), "likewise, mm", _ANSUR),
    "chest_depth": Quantity("build", Normal(1.36, 0.11, 1.08, 1.66), "depth of the cage over half its width", _ANSUR),
    "wall": Quantity("build", Normal(18, 3, 12, 27), "bone and muscle around the cage, mm"),
    "boxiness": Quantity("build", Uniform(-0.6, 0.5), "added to the exponent of the trunk's section"),
    "fat": Quantity("build", LogNormal(13, 0.65, 2, 62), "fat under the skin at the side, mm"),
    "fat_front": Quantity("build", LogNormal(1.05, 0.3, 0.5, 2), "fat in front over fat at the side"),
    "fat_back": Quantity("build", LogNormal(0.7, 0.3, 0.3, 1.4), "fat at the back over fat at the side"),
    "flank": Quantity("build", Uniform(0, 0.9), "fat that hangs at the flanks over fat at the side"),
    "belly": Quantity("build", LogNormal(14, 0.9, 0, 75), "how far the abdomen stands out, mm"),
    "waist": Quantity("build", Normal(0.03, 0.05, -0.08, 0.14), "share of its width the trunk loses at the waist"),
    "press": Quantity("build", Sometimes(0.7, Uniform(3, 20)), "how far a table presses the back flat, mm"),
    "fold": Quantity("build", Sometimes(0.3, Uniform(2, 9)), "crease below the chest, mm"),
    "unevenness": Quantity("build", Uniform(0.5, 4), "of the fat under the skin, mm"),
    "breast": Quantity("build", LogNormal(1.0, 0.35, 0.35, 2.1), "size of a woman's breasts, 1: about 250 ml each"),
    "breast_aside": Quantity("build", Uniform(-8, 26), "how far they fall to the sides, mm"),
    "breast_drop": Quantity("build", Uniform(-12, 22), "how far they hang, mm"),
    "supraclavicular": Quantity("build", Uniform(5, 11), "radius of the fat above the clavicles in a lean patient, mm"),
    "shoulders": Quantity("arms", Normal(1.06, 0.08, 0.86, 1.26), "width, 1: joints 264 mm apart", _ANSUR),
    "shoulder_flesh": Quantity("arms", Uniform(34, 52), "radius of the flesh between neck and shoulder, mm"),
    "arms_raised": Quantity(
        "arms", Sometimes(0.75, Uniform(115, 178), Uniform(0, 14)), "0 beside the trunk, 180 beside the head, degrees"
    ),
    "arm_forward": Quantity("arms", Normal(0, 30, -70, 70), "elbow before the joint, mm"),
    "arm_radius": Quantity("arms", Normal(42, 6, 28, 60), "of the upper arm, flesh alone, mm"),
    "scan_length": Quantity("scan", Sometimes(0.6, Uniform(180, 345)), "slices beyond it repeat the last one, mm"),
    "field_radius": Quantity("scan", Sometimes(0.45, Uniform(165, 250)), "of the scanner's field of view, mm"),
    "field_aside": Quantity("scan", Normal(0, 9, -25, 25), "its centre from that of the cube, mm"),
    "dome": Quantity("lungs", Normal(8.7, 0.95, 6.3, 10.6), "right dome below T1 in thoracic vertebrae", _DOMES),
    "dome_difference": Quantity(
        "lungs", Sometimes(0.08, Uniform(-50, 60), Normal(13, 9, -12, 38)), "right dome above the left, mm", _DOMES
    ),
    "dome_height": Quantity("lungs", Normal(76, 15, 38, 112), "of the domes above their edges, mm"),
    "recess": Quantity("lungs", Uniform(0.02, 0.34), "slope of each dome towards the back"),
    "dome_peak": Quantity("lungs", Normal(0, 0.12, -0.3, 0.3), "top of each dome aside, share of its half width"),
    "dome_spread": Quantity("lungs", Normal(1, 0.1, 0.78, 1.25), "width of each dome against a schematic one"),
    "fissure": Quantity("lungs", Sometimes(0.85, Uniform(0.3, 0.8)), "thickness of the fissures between lobes, mm"),
    "heart_width": Quantity("heart", Normal(0.49, 0.055, 0.38, 0.66), "cardiothoracic ratio", _HEARTS),
    "heart_tilt": Quantity("heart", Normal(38, 8, 20, 55), "of its axis at the mean ratio, degrees"),
    "heart_shift": Quantity("heart", Normal(1, 7, -16, 16), "to the right, mm"),
    "heart_depth": Quantity("heart", Normal(1.2, 0.08, 1.0, 1.4), "of the ventricles across their axis"),
    "mediastinal_fat": Quantity("heart", LogNormal(3, 0.8, 0, 16), "thickness around heart and vessels, mm"),
    "aorta": Quantity("heart", Normal(14.5, 2.2, 10, 22), "radius, mm", _AORTA),
    "standing_fluid": Quantity("disease", Sometimes(0.05, Uniform(8, 75)), "effusion with a level above the dome, mm"),
    "lying_fluid": Quantity("disease", Sometimes(0.07, Uniform(10, 65)), "effusion behind the lung, mm"),
    "collapse": Quantity("disease", Sometimes(0.06, Uniform(15, 55)), "collapsed lower lobe beside the spine, mm"),
    "lobe": Quantity("disease", Sometimes(0.03, Uniform(1, 3)), "consolidated lobe: below 2 the lower, else the upper"),
    "resection": Quantity("disease", Sometimes(0.03, Uniform(20, 90)), "lung that surgery took from the top, mm"),
    "pneumothorax": Quantity("disease", Sometimes(0.03, Uniform(8, 40)), "air in front of the lung, mm"),
    "mass": Quantity("disease", Sometimes(0.1, Uniform(12, 45)), "radius of a tumour, mm"),
    "mediastinal_shift": Quantity("disease", Sometimes(0.1, Uniform(-18, 18)), "of the heart to the right, mm"),
    "emphysema": Quantity("disease", Sometimes(0.2, Uniform(0.3, 1)), "0 none, 1 severe"),
    "contrast": Quantity("findings", Sometimes(0.45, Uniform(50, 280)), "medium in the blood, HU"),
    "bowel_gas": Quantity("findings", Uniform(0, 9), "pockets of gas in the bowel"),
    "rods": Quantity("findings", Sometimes(0.03, Uniform(1, 1)), "metal beside the spine"),
    "sternal_wires": Quantity("findings", Sometimes(0.06, Uniform(5, 8)), "loops of wire in the sternum"),
    "osteophytes": Quantity("findings", Sometimes(0.5, Uniform(2, 9)), "how far spurs stand off the spine, mm"),
    "noise": Quantity("scanner", LogNormal(9, 0.6, 3, 34), "standard deviation in flesh, HU", _NOISE),
    "kernel": Quantity("scanner", Uniform(0.16, 0.42), "frequency at which the kernel's window ends, 1/mm"),
    "blur": Quantity("scanner", Uniform(0.5, 1.2), "standard deviation of a point within a slice, mm"),
    "slice": Quantity("scanner", Sometimes(0.5, Uniform(1, 2.6), Uniform(2.6, 5)), "thickness, mm"),
    "overlap": Quantity("scanner", Uniform(0.7, 1), "interval of the slices over their thickness"),
    "grain": Quantity("scanner", Uniform(0.6, 1.5), "strength of the texture of tissues"),
}
"""What is drawn for a patient, in this order, each family from a stream of its own."""


def draw_family(family: str, rng: np.random.Generator) -> dict[str, float]:
    """One number for each of a family's rows.

    Args:
        family: of :data:`TABLE`.
        rng: source of randomness.
    """
    return {name: row.law.draw(rng) for name, row in TABLE.items() if row.family == family}


def as_markdown() -> str:
    """The table, for the documents."""
    lines = ["| family | quantity | distribution | source |", "|---|---|---|---|"]
    lines += [
        f"| {row.family} | {name.replace('_', ' ')}: {row.meaning} | {row.law} | {row.source} |"
        for name, row in TABLE.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(as_markdown())
