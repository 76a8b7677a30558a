# SPDX-License-Identifier: Apache-2.0
"""Laws of the clinical population as it is painted; each patient is painted once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage

from progressive_cascade.phantom import LABELS, Phantom, generate_phantom, parse_population, skeleton
from progressive_cascade.phantom.cage import Cage
from progressive_cascade.phantom.families import heart_width
from progressive_cascade.phantom.patient import Patient
from progressive_cascade.phantom.raster import Canvas

SIZE, SPACING = 64, 5.6
BONES = ("vertebra", "rib", "sternum", "clavicle", "scapula", "humerus")
CENTERS = (np.arange(SIZE) - (SIZE - 1) / 2) * SPACING


@cache
def paint(seed: int, population: str = "clinical") -> Phantom:
    return generate_phantom(seed, shape=(SIZE,) * 3, spacing=SPACING, population=population)  # type: ignore[arg-type]


def draw(seed: int, population: str = "clinical") -> Patient:
    rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(6)[0])
    return parse_population(population).draw(rng, seed)


def first(wanted: Callable[[Patient], bool], population: str = "clinical") -> int:
    """The first patient of whom something is true."""
    return next(seed for seed in count() if wanted(draw(seed, population)))


def where(phantom: Phantom, *names: str) -> np.ndarray:
    return np.isin(phantom.labels, [LABELS[name] for name in names])


def litres(phantom: Phantom, *names: str) -> float:
    return float(where(phantom, *names).sum()) * SPACING**3 / 1e6


def whole(p: Patient) -> bool:
    """Nothing of the chest is cut off, and nothing takes the place of lung."""
    return p.scan.ends is None and p.scan.field is None and abs(p.pose.shift[2]) < 15


HEALTHY = first(whole, "clinical-disease")


def test_the_same_seed_is_the_same_patient():
    """To the bit, in both populations, and the two differ."""
    again = generate_phantom(HEALTHY, shape=(SIZE, SIZE, SIZE), spacing=SPACING, population="clinical-disease")
    healthy = paint(HEALTHY, "clinical-disease")
    np.testing.assert_array_equal(again.hu, healthy.hu)
    np.testing.assert_array_equal(again.labels, healthy.labels)
    assert np.abs(healthy.hu.astype(int) - paint(HEALTHY, "basic").hu).mean() > 40


def test_organs_have_the_volumes_of_patients():
    """Lungs of one to eight litres, the pair alike; the heart and the liver in their ranges."""
    phantom = paint(HEALTHY, "clinical-disease")
    right, left = (litres(phantom, name) for name in ("lung_right", "lung_left"))
    assert 1.0 < right + left < 8.0
    assert 0.5 < left / right < 1.4
    assert 0.3 < litres(phantom, "heart") < 1.6  # blood included
    assert 0.5 < litres(phantom, "liver") < 4.0


def test_heart_is_as_wide_as_its_cardiothoracic_ratio_says():
    """Measured on the labels, without the pose, within 0.07 of what was drawn."""
    population = "basic+lungs+heart"
    for seed in (2, 5):
        p, phantom = draw(seed, population), paint(seed, population)
        heart = np.flatnonzero(where(phantom, "heart").sum((1, 2)) > 2)
        drawn = p.heart_scale * heart_width(p.heart_tilt) / (2 * p.cage_width)
        assert (heart[-1] - heart[0] + 1) * SPACING / (2 * p.cage_width) == pytest.approx(drawn, abs=0.07)


def test_no_bone_lies_bare():
    """Every bone is covered by flesh, raised arms and pressed backs included."""
    phantom = paint(HEALTHY, "clinical-disease")
    beside_air = ndimage.binary_dilation(phantom.labels == 0)
    assert not (where(phantom, *BONES) & beside_air).any()


@pytest.mark.parametrize(
    ("wanted", "name", "low", "high"),
    [
        (lambda p: max(p.disease.standing_fluid) > 40, "effusion", 0, 30),
        (lambda p: max(p.disease.pneumothorax) > 20, "pneumothorax", -1000, -950),
        (lambda p: max(p.disease.collapse) > 35, "consolidation", -60, 60),
        (lambda p: p.disease.mass[0] > 30, "lesion", 10, 60),
        (
            lambda p: (
                sum(p.dome_right + z > -160 and radius > 14 for *_, z, radius in p.bowel_gas) > 1
            ),  # within the cube
            "bowel_gas",
            -960,
            -700,
        ),
    ],
)
def test_findings_have_the_hu_of_what_they_are(wanted, name, low, high):
    """A patient who was drawn with a finding shows it, with its CT number."""
    population = "basic+findings" if name == "bowel_gas" else "basic+disease"
    phantom = paint(first(wanted, population), population)
    assert where(phantom, name).sum() > 8
    assert low <= np.median(phantom.hu[where(phantom, name)]) <= high


@pytest.mark.parametrize("spacing", [1.4, 5.6])
def test_fissure_keeps_its_mass_on_every_grid(spacing):
    """A sheet of half a millimetre that is 1000 HU above its lung adds 500 HU mm to a line across it."""
    canvas = Canvas((16, 16, 16), spacing, background=-900.0)
    canvas.labels += LABELS["lung_right"]
    x, _, z = canvas.lattice.points()
    slanted = (z + 0.3 * x).expand([len(axis) for axis in canvas.lattice.axes]) / np.hypot(1, 0.3)
    for label, mass in ((LABELS["lung_left"], 0.0), (LABELS["lung_right"], 500 * np.hypot(1, 0.3))):
        canvas.paint_sheet(slanted, 0.5, value=100.0, label=label)
        across = (canvas.hu + 900).sum(2)[4:12, 4:12].mean() * spacing
        assert float(across) == pytest.approx(mass, rel=0.05)


def test_fissures_run_through_the_lungs_and_wires_around_the_sternum(monkeypatch):
    """A patient with both differs from the same without: in the lungs, falling to the front, and about the sternum."""
    population = "basic+lungs+findings"
    seed = first(lambda p: p.fissure > 0.5 and p.sternal_wires > 4, population)
    p, phantom = draw(seed, population), paint(seed, population)
    plain = SimpleNamespace(draw=lambda *_: replace(p, fissure=0.0, sternal_wires=0))
    monkeypatch.setattr("progressive_cascade.phantom.generate.parse_population", lambda _: plain)
    without = generate_phantom(seed, shape=(SIZE, SIZE, SIZE), spacing=SPACING, population=population)
    added = (phantom.hu.astype(int) - without.hu) > 20
    lungs = where(without, "lung_right", "lung_left")
    left = np.argwhere(added & where(without, "lung_left"))
    assert len(left) > 100 and np.corrcoef(left[:, 1], left[:, 2])[0, 1] < -0.4
    assert (where(phantom, "lung_right", "lung_left") == lungs)[added].mean() > 0.9  # a fissure takes no label
    sternum = np.argwhere(where(without, "sternum"))
    near = np.zeros_like(lungs)
    near[tuple(slice(low, high + 1) for low, high in zip(sternum.min(0) - 3, sternum.max(0) + 3, strict=True))] = True
    assert (added & near & ~lungs).sum() > 10
    assert (lungs | near)[added].mean() > 0.97


def test_spurs_stand_in_front_of_the_spine_on_the_right():
    """Every spur lies right of the middle and before the vertebral bodies' centres, below the third vertebra."""
    p = draw(first(lambda p: p.osteophytes > 6, "basic+findings"), "basic+findings")
    cage = Cage(p)
    spurs = skeleton.osteophytes(cage)
    ends = np.concatenate([spurs.start, spurs.end])
    assert (ends[:, 0] > 0).all() and (ends[:, 1] > cage.spine.at(ends[:, 2]) + 3).all()
    assert ends[:, 2].max() < p.apex - 3 * p.vertebra_step


def test_short_scan_repeats_its_ends():
    """Beyond the last slice of a scan the same slice goes on, in HU and labels."""
    population = "basic+scan"
    seed = first(lambda p: p.scan.ends is not None and p.scan.ends[1] < 120, population)
    ends = draw(seed, population).scan.ends
    assert ends is not None
    phantom = paint(seed, population)
    inside = np.flatnonzero(np.abs(CENTERS) <= ends[1])
    for beyond, end in ((slice(0, inside[0]), inside[0]), (slice(inside[-1] + 1, SIZE), inside[-1])):
        for volume in (phantom.hu, phantom.labels):
            assert (volume[:, :, beyond] == volume[:, :, end : end + 1]).all()
    np.testing.assert_array_equal(phantom.hu[:, :, inside], paint(seed, "basic").hu[:, :, inside])


def test_field_of_view_leaves_air_outside():
    """Beyond the circle there is nothing, within it everything."""
    population = "basic+scan"
    seed = first(lambda p: p.scan.field is not None and p.scan.field[2] < 190 and p.scan.ends is None, population)
    field = draw(seed, population).scan.field
    assert field is not None
    phantom = paint(seed, population)
    outside = np.hypot(CENTERS[:, None] - field[0], CENTERS[None] - field[1]) > field[2]
    assert (phantom.hu[outside] == -1000).all() and (phantom.labels[outside] == 0).all()
    np.testing.assert_array_equal(phantom.hu[~outside], paint(seed, "basic").hu[~outside])


def test_table_presses_the_back_level(monkeypatch):
    """More of a pressed back lies within a voxel of the table, which is level however the patient is turned."""
    population = "basic+build+pose"
    seed = first(lambda p: p.outline.press > 14 and abs(p.pose.rotation[1, 0]) > 0.1, population)

    def level(phantom: Phantom) -> float:
        back = (phantom.labels[20:44, :, 20:36] > 0).argmax(1)
        return float((back <= back.min(0) + 1).mean())

    pressed = level(paint(seed, population))
    p = draw(seed, population)
    upright = SimpleNamespace(draw=lambda *_: replace(p, outline=replace(p.outline, press=0.0)))
    monkeypatch.setattr("progressive_cascade.phantom.generate.parse_population", lambda _: upright)
    free = generate_phantom(seed, shape=(SIZE, SIZE, SIZE), spacing=SPACING, population=population)
    assert pressed > 1.3 * level(free)
