# SPDX-License-Identifier: Apache-2.0
"""Tables of radiographs as they come, from what benchmarks/radiographs.py wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.stats import binomtest

from progressive_cascade.inference.first_look import FirstLook

HALVES = ("training CTs and phantoms, which chose the thresholds", "other CTs and phantoms")


def forms_table(report: Mapping[str, Any]) -> list[str]:
    """A row per form; the eight ways of a NIfTI are one."""
    lines = [
        "One validation CT on a 64³ grid, stage 1, against the volume of its plain NIfTI pair: calibrated, or declared",
        "display values. Seconds of CPU time, one thread, to read a pair and bring it onto the detector.",
        "",
        "| files | taken for | mean difference [HU] | ΔPSNR [dB], native | CPU seconds |",
        "|---|---|---|---|---|",
    ]
    ways = [row for row in report["forms"] if row["form"].startswith("NIfTI")]
    others = [row for row in report["forms"] if not row["form"].startswith("NIfTI")]
    worst = max(ways, key=lambda row: row["difference_hu"])
    for row in ({**worst, "form": f"NIfTI, the worst of {len(ways)} ways"}, *others):
        change = row["psnr_db"] - row["plain_psnr_db"]
        known = {"signal": "calibrated, by its open field"}.get(row["known"], row["known"])
        lines.append(f"| {row['form']} | {known} | {row['difference_hu']:.2f} | {change:+.2f} | {row['seconds']:.1f} |")
    return lines


def reading_table(report: Mapping[str, Any]) -> list[str]:
    """A row per kind of file."""
    lines = [
        "A pair of 3000 x 3000 pixels with noise of 12 of 4096 levels; seconds of processor time, one thread.",
        "DICOM files hold the same levels: the difference is that of the pair on the detector, 0 to 6, from the",
        "uncompressed one's (rms).",
        "",
        "| files | MB | to decode | and onto the detector | difference |",
        "|---|---|---|---|---|",
    ]
    for row in report["reading"]:
        difference = f"{row['rms_difference']:.4f}" if "rms_difference" in row else "–"
        lines.append(
            f"| {row['form']} | {row['megabytes']:.0f} | {row['decoding']:.1f} | {row['seconds']:.1f} | {difference} |"
        )
    return lines


def orientation_table(report: Mapping[str, Any]) -> list[str]:
    """Answers by what is wrong with them; the network counts a frontal and its mirror image as one."""
    confusion = np.array(report["orientation"]["confusion"])
    lines = [
        "CTs that the network has not learnt from, varied as in training (crop, noise, collimation, marker):",
        "2 views × 8 ways × inverted or not × 3 tone curves.",
        "",
        "| shown | pictures | all right | mirrored instead | other turn | not seen as inverted, or so | other view |",
        "|---|---|---|---|---|---|---|",
    ]
    right = total = 0
    for kind, name in enumerate(("frontal", "lateral")):
        counts: dict[str, int] = dict.fromkeys(("right", "mirror", "turn", "inverted", "view"), 0)
        for answer, found in np.argwhere(confusion > 0):
            if answer % 2 == kind:
                counts[_mistake(int(answer), int(found))] += int(confusion[answer, found])
        num = sum(counts.values())
        shares = " | ".join(f"{100 * counts[what] / num:.1f} %" for what in counts)
        lines.append(f"| {name} | {num} | {shares} |")
        right, total = right + counts["right"] + (counts["mirror"] if kind == 0 else 0), total + num
    return [*lines, "", f"With a frontal and its mirror image as one answer {_percent(right, total)} are right."]


def _mistake(answer: int, found: int) -> str:
    if answer == found:
        return "right"
    if answer % 2 != found % 2:
        return "view"
    first, second = answer // 2, found // 2
    if first // 8 != second // 8:
        return "inverted"
    return "mirror" if first % 4 == second % 4 else "turn"


def pairs_table(report: Mapping[str, Any]) -> list[str]:
    """How many pairs were put right, warned of or refused, by what was wrong with them, and all together."""
    rows = report["pairs"]
    right, wrong = ([row for row in rows if (row["kind"] == "right") is wanted] for wanted in (True, False))
    lines = [
        f"{len(right)} right and {len(wrong)} wrong pairs, simulated at 64³, of which no tag says how they lie; half",
        "of them line integrals, half grey levels. Noticed is what was put right, warned of or refused; of right pairs",
        "it should be none. A body that leaves the field is a warning, too, and not counted: it is true of CTs that",
        "were cut off. In brackets the 95 % interval (Wilson).",
        "",
        f"| pairs | noticed: {HALVES[0]} | {HALVES[1]} | all, line integrals | all, grey levels | all |",
        "|---|---|---|---|---|---|",
    ]
    kinds = [kind for kind in dict.fromkeys(row["kind"] for row in rows) if kind != "right"]
    groups = [("right", right), *((kind, [row for row in wrong if row["kind"] == kind]) for kind in kinds)]
    for kind, some in [*groups, ("all that are wrong", wrong)]:
        cells = [_share([row for row in some if row["half"] == half]) for half in range(len(HALVES))]
        cells += [_share([row for row in some if row["calibrated"] is known]) for known in (True, False)]
        lines.append(f"| {kind.replace('_', ' ')} | {' | '.join(cells)} | {_share(some, interval=True)} |")
    return lines


def _share(rows: list[Mapping[str, Any]], *, interval: bool = False) -> str:
    if not rows:
        return "–"
    noticed = sum(map(is_noticed, rows))
    if not interval:
        return f"{noticed} of {len(rows)}"
    return _percent(noticed, len(rows))


def _percent(count: int, total: int) -> str:
    """A share with its 95 % interval (Wilson)."""
    found = binomtest(count, total).proportion_ci(method="wilson")
    return f"{100 * count / total:.1f} % ({100 * found.low:.1f} to {100 * found.high:.1f})"


def is_noticed(row: Mapping[str, Any]) -> bool:
    """Whether the program put a pair right, warned of it or refused it, by its thresholds of today.

    A picture that was turned and is still not as it is read, of which nothing is said, is not noticed; nor is one that
    was merely brought into register with the other, which right pairs are, too.
    """
    if row["refused"]:
        return True
    views, calibrated, difference = ("frontal", "lateral"), row["calibrated"], row["slice_difference"]
    look = FirstLook(dict(zip(views, row["agreement_db"], strict=True)), row["mirrored_db"], difference)
    doubted = look.looks_mirrored(row["mirror"]) or bool(look.doubts(calibrated=calibrated))
    turned = any("so the first stage explains" not in note for note in row["notes"])
    return doubted or (turned and (row["upright"] or row["kind"] == "right"))


def missed_table(report: Mapping[str, Any]) -> list[str]:
    """The wrong pairs that go unnoticed and the right ones that do not, with all that speaks for and against them."""
    lines = [
        "Log odds that the frontal is mirrored, by its picture and by stage 1, together more than 5.3 where they warn",
        "of it; what the slices of the two views differ by; PSNR of what stage 1 explains of frontal and lateral.",
        "",
        "| pair | half | values | picture | stage 1 | slices | frontal, lateral [dB] |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["pairs"]:
        if is_noticed(row) is not (row["kind"] == "right") or row["refused"]:
            continue
        look = FirstLook(dict(zip(("frontal", "lateral"), row["agreement_db"], strict=True)), row["mirrored_db"])
        both = look.mirror_log_odds(row["mirror"])
        picture = replace(look, mirrored_db=None).mirror_log_odds(row["mirror"])
        difference = "–" if row["slice_difference"] is None else f"{100 * row['slice_difference']:.1f} %"
        cells = [
            f"{row['kind'].replace('_', ' ')}, {'warned of' if row['kind'] == 'right' else 'unnoticed'}",
            HALVES[row["half"]].split(",")[0],
            "line integrals" if row["calibrated"] else "grey levels",
            f"{picture:+.1f}",
            f"{both - picture:+.1f}" if row["mirrored_db"] is not None else "–",
            difference,
            ", ".join(f"{score:.1f}" for score in row["agreement_db"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


RADIOGRAPH_TABLES: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "radiographs forms": forms_table,
    "radiographs reading": reading_table,
    "radiographs orientation": orientation_table,
    "radiographs pairs": pairs_table,
    "radiographs missed": missed_table,
}
"""By the name a marker gives them."""
