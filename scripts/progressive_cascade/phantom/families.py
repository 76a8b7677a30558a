# SPDX-License-Identifier: Apache-2.0
"""What the clinical population makes of a basic patient, one family of numbers at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from progressive_cascade.phantom.clinical import draw_family
from progressive_cascade.phantom.patient import Arm, Diaphragm, Disease, Patient, Pose, Scan, Scanner, rotation

_HEART_SCALES = (0.92, 1.4)  # smaller or larger ones do not occur in this chest


def heart_width(tilt: float) -> float:
    """How wide a heart of scale 1 is across the chest [mm]: a line through what the labels of six patients showed."""
    return 133.5 - 0.8 * (tilt - 33)


def _pose(p: Patient, rng: np.random.Generator) -> Patient:
    v = draw_family("pose", rng)
    pose = Pose(
        rotation=rotation(np.array([v["pitch"], v["roll"], v["turn"]])),
        shift=np.array([v["aside"], v["forward"], v["upward"]]),
        bend=v["scoliosis"],
        bend_phase=float(rng.uniform(0, 2 * np.pi)),
        bend_length=float(rng.uniform(280, 460)),
    )
    return replace(p, pose=pose, kyphosis=v["kyphosis"])


def _build(p: Patient, rng: np.random.Generator) -> Patient:
    v = draw_family("build", rng)
    width = v["growth"] * v["chest_width_female" if p.female else "chest_width_male"]
    depth = width * v["chest_depth"]
    waves = []
    for _ in range(6):
        direction = rng.standard_normal(3)
        number = 2 * np.pi / rng.uniform(70, 260) * direction / np.linalg.norm(direction)
        waves.append((*map(float, number), float(rng.uniform(0, 2 * np.pi)), float(v["unevenness"] / np.sqrt(3))))
    fold = v["fold"] if v["fat"] > 12 else 0.0
    outline = replace(
        p.outline,
        boxiness=v["boxiness"],
        flank=v["flank"] * v["fat"],
        belly=v["belly"],
        waist=v["waist"],
        press=min(v["press"], 2 + v["fat"] * v["fat_back"]),  # no deeper than the fat over the spine
        fold=fold,
        waves=tuple(waves),
        breast_aside=v["breast_aside"],
        breast_drop=v["breast_drop"],
        supraclavicular=v["supraclavicular"] + 0.15 * v["fat"],
    )
    ratio = v["growth"] * rng.uniform(0.94, 1.06)
    return replace(
        p,
        cage_width=width,
        cage_front=depth / 2,
        cage_back=-depth / 2,
        wall=v["wall"] * v["growth"] + (0 if p.female else 2),
        fat_side=v["fat"],
        fat_front=v["fat"] * v["fat_front"],
        fat_back=3 + v["fat"] * v["fat_back"],
        breast=v["breast"] * (0.8 + 0.012 * v["fat"]) if p.female and v["growth"] > 0.85 else 0.0,
        vertebra_step=p.vertebra_step * ratio,
        dome_right=p.apex - (p.apex - p.dome_right) * ratio,
        dome_left=p.apex - (p.apex - p.dome_left) * ratio,
        sternum_length=p.sternum_length * ratio,
        heart_scale=p.heart_scale * ratio,
        outline=outline,
    )


def _arms(p: Patient, rng: np.random.Generator) -> Patient:
    v = draw_family("arms", rng)

    def arm() -> Arm:
        return Arm(
            raised=float(np.clip(v["arms_raised"] + rng.normal(0, 4), 0, 180)),
            forward=v["arm_forward"] + float(rng.normal(0, 8)),
            radius=v["arm_radius"] + 0.25 * p.fat_side,
        )

    outline = replace(p.outline, arms=(arm(), arm()), shoulder_radius=v["shoulder_flesh"])
    return replace(p, outline=outline, shoulder=v["shoulders"] * p.cage_width / 115, arms_up=v["arms_raised"] > 90)


def _scan(p: Patient, rng: np.random.Generator) -> Patient:
    v = draw_family("scan", rng)
    ends = (-v["scan_length"] / 2, v["scan_length"] / 2) if v["scan_length"] else None
    field = (v["field_aside"], float(rng.normal(0, 8)), v["field_radius"]) if v["field_radius"] else None
    return replace(p, scan=Scan(ends=ends, field=field))


def _lungs(p: Patient, rng: np.random.Generator) -> Patient:
    v, other = draw_family("lungs", rng), draw_family("lungs", rng)
    right = p.apex - p.vertebra_step * v["dome"]
    shape = Diaphragm(
        recess=(v["recess"], other["recess"]),
        peak=(v["dome_peak"], other["dome_peak"]),
        spread=(v["dome_spread"], other["dome_spread"]),
    )
    return replace(
        p,
        dome_right=right,
        dome_left=right - v["dome_difference"],
        dome_height=v["dome_height"],
        liver_reach=right - float(rng.uniform(100, 180)),
        diaphragm=shape,
        fissure=v["fissure"],
    )


def _heart(p: Patient, rng: np.random.Generator) -> Patient:
    v = draw_family("heart", rng)
    tilt = v["heart_tilt"] + 150 * (0.49 - v["heart_width"])  # narrow hearts stand upright
    return replace(
        p,
        heart_scale=float(np.clip(v["heart_width"] * 2 * p.cage_width / heart_width(tilt), *_HEART_SCALES)),
        heart_tilt=tilt,
        heart_depth=v["heart_depth"],
        heart_shift=v["heart_shift"],
        aorta_radius=v["aorta"],
        disease=replace(p.disease, mediastinal_fat=v["mediastinal_fat"]),
    )


def _disease(p: Patient, rng: np.random.Generator) -> Patient:
    sides = [draw_family("disease", rng) for _ in range(2)]
    v = sides[0]

    def both(name: str) -> tuple[float, float]:
        return sides[0][name], sides[1][name]

    disease = Disease(
        standing_fluid=both("standing_fluid"),
        collapse=both("collapse"),
        lobe=(int(sides[0]["lobe"]), int(sides[1]["lobe"])),
        resection=both("resection"),
        pneumothorax=both("pneumothorax"),
        mass=(v["mass"], float(rng.uniform(0.05, 1.0))),
        mediastinal_fat=p.disease.mediastinal_fat,
    )
    # A lung that is smaller draws its dome up and the heart over.
    lost = [0.45 * disease.collapse[i] + 0.5 * min(disease.resection[i], 80.0) for i in range(2)]
    pull = 0.25 * (lost[0] - lost[1])
    findings = replace(p.findings, effusion=both("lying_fluid"), emphysema=v["emphysema"])
    return replace(
        p,
        disease=disease,
        findings=findings,
        dome_right=p.dome_right + lost[0],
        dome_left=p.dome_left + lost[1],
        heart_shift=p.heart_shift + v["mediastinal_shift"] + pull,
    )


def _findings(p: Patient, rng: np.random.Generator) -> Patient:
    v = draw_family("findings", rng)
    gas = tuple(
        (
            float(rng.uniform(-0.75, 0.75) * p.cage_width),
            float(rng.uniform(0.1, 0.8) * p.cage_front),
            float(-rng.uniform(95, 260)),
            float(rng.uniform(7, 24)),
        )
        for _ in range(int(v["bowel_gas"]))
    )
    return replace(
        p,
        findings=replace(p.findings, contrast=v["contrast"]),
        bowel_gas=gas,
        rods=v["rods"] > 0,
        sternal_wires=int(v["sternal_wires"]),
        osteophytes=v["osteophytes"],
    )


def _scanner(p: Patient, rng: np.random.Generator) -> Patient:
    v = draw_family("scanner", rng)
    return replace(
        p,
        scanner=Scanner(
            noise=v["noise"],
            kernel=v["kernel"],
            blur=v["blur"],
            thickness=v["slice"],
            interval=v["slice"] * v["overlap"],
            grain=v["grain"],
        ),
    )


FAMILIES: dict[str, Callable[[Patient, np.random.Generator], Patient]] = {
    "build": _build,
    "pose": _pose,
    "arms": _arms,
    "scan": _scan,
    "lungs": _lungs,
    "heart": _heart,
    "disease": _disease,
    "findings": _findings,
    "scanner": _scanner,
}
"""Families of numbers in the order in which they are drawn: later ones may depend on earlier ones."""
