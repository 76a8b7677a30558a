# SPDX-License-Identifier: Apache-2.0
"""Laws of the refinement benchmark: conditions do what their names say, and tables compare like with like."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import refine as bench
from conditions import cases
from low_rank import with_low_rank
from progressive_cascade.geometry import volume_affine
from progressive_cascade.inference.refine import RefineSettings, refine
from progressive_cascade.training.cases import Case
from published import refinement as tables


def _row(case: str, variant: str, psnr: float, **changes) -> dict:
    scores = {"psnr": psnr, "ssim": 0.5, "body_dice": 0.9, "lung_dice": 0.8}
    row = {"kind": "mirrored", "case": case, "condition": "calibrated", "variant": variant, "scores": scores}
    return {**row, "report": {"kept": 2}, "psnr_by_step": [20.0, psnr], "stage_1_psnr": psnr - 1, **changes}


@pytest.fixture
def report() -> dict:
    """Two cases, of which one was also refined another way."""
    rows = [_row("a", "off", 20.0), _row("a", "on", 21.0), _row("b", "off", 22.0), _row("b", "on", 21.5)]
    return {"rows": [*rows, _row("b", "last_layer", 23.0)]}


@pytest.fixture
def box() -> Case:
    """A box of water."""
    hu = np.full((16, 16, 16), -1000, np.int16)
    hu[4:12, 5:11, 3:13] = 0
    return Case("box", "box", hu, volume_affine((16, 16, 16), 22.4), None)


def test_conditions_change_what_they_name(box: Case) -> None:
    """A gain multiplies, an offset adds, a display curve keeps the order, noise and another pose differ."""
    plain = bench.take(box, "calibrated")
    torch.testing.assert_close(bench.take(box, "gain_0.8"), 0.8 * plain)
    torch.testing.assert_close(bench.take(box, "offset_0.3"), plain + 0.3)
    shown, order = bench.take(box, "display_curve")[0, 0].flatten(), plain[0, 0].flatten().argsort()
    assert (shown[order].diff() >= -1e-5).all() and not torch.allclose(shown, plain[0, 0].flatten())
    noisy, turned = bench.take(box, "photons_1000"), bench.take(box, "lateral_turned_2")
    assert not torch.allclose(noisy, plain)
    torch.testing.assert_close(turned[:, 0], plain[:, 0])
    assert not torch.allclose(turned[:, 1], plain[:, 1])


def test_steps_kept_are_told_as_a_range(report: dict) -> None:
    """One number where all kept the same, the least and most elsewhere, a dash where nothing was refined."""
    assert [tables._range(numbers) for numbers in ([], [4], [4, 4], [8, 0, 3])] == ["–", "4", "4", "0 to 8"]
    assert tables.ablation_table(report)[-1] == "| last layer alone | 1 mirrored | +1.00 | -0.50 | 2 |"


def test_gain_is_the_mean_of_the_cases_and_names_the_least(report: dict) -> None:
    """+1.0 and -0.5 dB are +0.25 on average, -0.5 at least."""
    (line,) = tables.refinement_table(report)[2:]
    assert "| 2 mirrored | 21.00 → 21.25 | +0.25 (-0.50) |" in line


def test_ablation_compares_on_the_same_cases(report: dict) -> None:
    """A variant measured on one case stands beside the shipped one on that case."""
    (line,) = tables.ablation_table(report)[2:]
    assert "| 1 mirrored | +1.00 | -0.50 | 2 |" in line


def test_later_stages_add_what_is_above_stage_1(report: dict) -> None:
    """A dB each."""
    (line,) = tables.later_stages_table(report)[2:]
    assert "+1.00 → +1.00" in line


def test_gain_by_step_goes_on_where_refining_had_stopped(report: dict) -> None:
    """After one step and after eight: the last step's."""
    (line,) = tables.steps_table(report)[2:]
    assert line == "| 2 mirrored | +0.25 | +0.25 | +0.25 | +0.25 | +0.25 | +0.25 |"


def test_steps_of_a_longer_run_stand_by_themselves(report: dict) -> None:
    """A variant with more steps has a table of its own steps."""
    row = _row("b", "steps_30", 24.0, psnr_by_step=[22.0 + 0.1 * step for step in range(31)])
    (line,) = tables.REFINEMENT_TABLES["refine long"]({"rows": [*report["rows"], row]})[2:]
    assert line == "| 1 mirrored | +0.50 | +1.00 | +2.00 | +3.00 | +2.00 |"


def test_changes_of_low_rank_begin_with_none(small_cascade) -> None:
    """The copy is the cascade until its changes are tuned, and they alone are named; the original has none."""
    network = small_cascade(stage=1, cross_attention=False, lift_channels=0)
    copy, names = with_low_rank(network.eval(), 2)
    image = torch.rand(1, 2, 128, 128)
    with torch.no_grad():
        torch.testing.assert_close(copy(image), network(image))
        found = refine(copy, image, network.projection_matrices[None], settings=RefineSettings(1, parameters=names))
    assert found.reports[0].steps == 1
    assert names and all(".parametrizations.weight.0." in name for name in names)
    assert not any("parametrizations" in name for name, _ in network.named_parameters())


def test_cases_begin_with_the_validation_patients_and_never_mix_in_test_patients(tmp_path, monkeypatch) -> None:
    """Test patients come alone, and only when they are asked for."""
    sections = {"validation": ["v"], "training": ["abdomen_b", "thorax_a"], "test": ["t"]}

    def items(dataset=None, section="test", *, num_phantoms=0):
        return [{"patient": name} for name in (["p"] * num_phantoms if dataset is None else sections[section])]

    monkeypatch.setattr(cases, "evaluation_items", items)
    found = cases.plan_cases(tmp_path, phantoms=1, mirrored=2, test=False)
    assert [item["patient"] for _, item in found] == ["v", "thorax_a", "p", "abdomen_b"]
    assert cases.plan_cases(tmp_path, phantoms=1, mirrored=2, test=True) == [("test", {"patient": "t"})]
