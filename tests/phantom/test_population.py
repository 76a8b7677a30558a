# SPDX-License-Identifier: Apache-2.0
"""Laws of the populations that phantoms are drawn from; nothing is painted."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from progressive_cascade.paths import bundle_root
from progressive_cascade.phantom.clinical import TABLE, as_markdown, draw_family
from progressive_cascade.phantom.families import FAMILIES
from progressive_cascade.phantom.patient import Patient
from progressive_cascade.phantom.population import parse_population

SEEDS = range(200)
BASIC_2000000 = (114.2359744227, 121.7528218425, -67.3358048544, 1.0860659254, -227.4418631778)


def draw(name: str, seed: int) -> Patient:
    rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(6)[0])
    return parse_population(name).draw(rng, seed)


def differing(first: Patient, second: Patient) -> set[str]:
    names = [field.name for field in fields(Patient)]
    return {name for name in names if repr(getattr(first, name)) != repr(getattr(second, name))}


def test_basic_seeds_stay_the_patients_they_are():
    """Published numbers are about these: the draws of a test patient, to the last digit."""
    patient = draw("basic", 2_000_000)
    numbers = (patient.cage_width, patient.apex, patient.dome_right, patient.heart_scale, patient.liver_reach)
    assert numbers == pytest.approx(BASIC_2000000, abs=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_family_changes_nothing_but_its_own_numbers(family):
    """What one family adds to the basic patient, and what clinical has without it, are the same in any company."""
    alone, basic = draw(f"basic+{family}", 3), draw("basic", 3)
    assert differing(alone, basic)
    assert not differing(alone, draw(f"basic+{family}", 3))
    assert parse_population(f"clinical-{family}").families == tuple(f for f in FAMILIES if f != family)


def test_every_row_of_the_table_belongs_to_a_family():
    """Every family has rows, every row a family, and the document shows each."""
    assert {row.family for row in TABLE.values()} == set(FAMILIES)
    assert len(as_markdown().splitlines()) == len(TABLE) + 2


def test_patients_lie_as_far_from_straight_as_the_table_says():
    """A group turns up to 20 degrees about its long axis, 10 about the others, and both ways."""
    drawn = [draw_family("pose", np.random.default_rng(seed)) for seed in SEEDS]
    turns = np.array([v["turn"] for v in drawn])
    assert turns.min() < -12 and turns.max() > 12 and np.abs(turns).max() <= 20
    assert max(abs(v["pitch"]) for v in drawn) <= 10 and max(abs(v["roll"]) for v in drawn) <= 10


def test_clinical_hearts_span_the_cardiothoracic_ratios():
    """Cardiothoracic ratios of 0.40 to 0.65 occur, with the middle near one half."""
    ratios = [draw_family("heart", np.random.default_rng(seed))["heart_width"] for seed in SEEDS]
    assert min(ratios) < 0.40 and max(ratios) > 0.60 and 0.46 < np.median(ratios) < 0.52


@pytest.mark.parametrize("name", ["", "v1", "basic+", "basic+wings", "clinical+pose", "basic-pose", "pose"])
def test_unknown_population_is_refused(name):
    """The message says what there is."""
    with pytest.raises(ValueError, match=r"population must be one of basic, clinical, or basic\+FAMILY"):
        parse_population(name)


def test_document_shows_the_table_that_is_drawn_from():
    """PHANTOMS.md holds the table of the code: `python -m progressive_cascade.phantom.clinical` renews it."""
    page = (bundle_root() / "docs" / "PHANTOMS.md").read_text(encoding="utf-8")
    assert as_markdown() in page
