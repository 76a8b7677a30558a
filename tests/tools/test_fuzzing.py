# SPDX-License-Identifier: Apache-2.0
"""Damaged files end in a valid result or in one line, and leave nothing half-written: the first of `make fuzz`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tools.fuzzing.inputs import KINDS, write_inputs
from tools.fuzzing.mutate import mutate_bytes
from tools.fuzzing.trial import try_mutant

MUTANTS_PER_KIND = 4


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good file of every kind."""
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@pytest.mark.parametrize("seed", range(MUTANTS_PER_KIND))
@pytest.mark.parametrize("kind", KINDS)
def test_a_mutant_ends_in_a_result_or_in_one_line(kind: str, seed: int, inputs: Path, tmp_path: Path) -> None:
    """No traceback, no other exit code, nothing left behind."""
    outcome = try_mutant(kind, seed, inputs, tmp_path, only_read=True)
    assert outcome.is_allowed, f"{outcome.ending}\n{outcome.detail}"


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_damaged_is_read(kind: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mutant is refused for its damage alone."""
    monkeypatch.setattr("tools.fuzzing.trial.KINDS", {kind: KINDS[kind].undamaged()})
    outcome = try_mutant(kind, 0, inputs, tmp_path, only_read=True)
    assert outcome.ending == "result", outcome.detail


def test_mutants_are_drawn_by_their_seed() -> None:
    """The same seed damages alike, another one otherwise."""
    drawn = [mutate_bytes(bytes(1000), random.Random(seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
