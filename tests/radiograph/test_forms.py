# SPDX-License-Identifier: Apache-2.0
"""Laws of forms: the same pair in any file is the same input of the network, as exactly as the file allows."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from progressive_cascade.physics.tones import typical_line_integrals
from progressive_cascade.radiograph.fit import Model
from progressive_cascade.radiograph.pair import Pair, assemble_pair
from progressive_cascade.radiograph.read import read_radiograph
from tests.support.radiographs import BEAM, FOCAL, SIZE, phantom_pair, project_phantom

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from conditions.files import Form, write_forms

# Mean difference of the line integrals of a patient, which reach 6 to 9: what float32 and 16 bits leave; what another
# detector's pixels leave; what a grey curve's ends and 8 bits leave.
LIMITS = {"calibrated": 2e-4, "signal": 0.02, "display": 0.06}


@pytest.fixture(scope="module")
def plain() -> np.ndarray:
    return phantom_pair()


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Form, Pair]]:
    """Every form, read and brought onto the model's detector."""
    found = {}
    for form in write_forms(project_phantom, BEAM, tmp_path_factory.mktemp("forms")):
        pair = assemble_pair(read_radiograph(form.frontal), read_radiograph(form.lateral), model=Model(SIZE, FOCAL))
        found[form.name] = form, pair
    return found


def test_every_form_is_written(forms: dict[str, tuple[Form, Pair]]) -> None:
    """Eight ways of NIfTI, two more of line integrals, four of counts, six of grey levels."""
    known = [form.known for form, _ in forms.values()]
    assert {name: known.count(name) for name in LIMITS} == {"calibrated": 10, "signal": 4, "display": 6}


def test_forms_of_line_integrals_and_counts_are_calibrated(forms, plain: np.ndarray) -> None:
    """They differ from the plain pair by their precision and their pixels alone."""
    for name, (form, pair) in forms.items():
        if form.known == "display":
            continue
        assert pair.calibrated, name
        error = np.abs(pair.image - plain)[pair.image > -1]
        assert error.mean() < LIMITS[form.known], (name, error.mean())


def test_forms_of_grey_levels_equal_the_plain_pair_declared_so(forms, plain: np.ndarray) -> None:
    """Quantiles bring every window and curve to the same scale."""
    declared = typical_line_integrals(torch.from_numpy(plain), ("frontal", "lateral")).numpy()
    for name, (form, pair) in forms.items():
        if form.known != "display":
            continue
        assert not pair.calibrated, name
        error = np.abs(pair.image - declared)
        assert error.mean() < LIMITS["display"], (name, error.mean())
