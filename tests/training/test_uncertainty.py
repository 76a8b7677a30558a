# SPDX-License-Identifier: Apache-2.0
"""Laws of what is done with the uncertainty: its training script and its benchmark."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from progressive_cascade import volume_affine
from progressive_cascade.errors import UserError
from progressive_cascade.inference.uncertainty import (
    calibration_factor,
    remember_cascade,
)
from progressive_cascade.io import read_state, save_json
from progressive_cascade.networks.uncertainty import NUM_INPUTS, UncertaintyHead
from progressive_cascade.training import error_cases
from progressive_cascade.training import uncertainty as train_uncertainty
from progressive_cascade.training.cases import Case
from tests.conftest import SMALL

_REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """The benchmark, imported."""
    spec = importlib.util.spec_from_file_location("bench_uncertainty", _REPOSITORY / "benchmarks" / "uncertainty.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _cases(num: int, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Patients whose RMS error is 20 HU where the first input is low and 200 HU where it is high."""
    generator = torch.Generator().manual_seed(seed)
    cases = []
    for _ in range(num):
        # 32 blocks a side: in torch 2.13 bfloat16 gradients of a convolution can be NaN on 2³ voxels, which is what the
        # coarsest level of a smaller grid would have.
        inputs = torch.rand((NUM_INPUTS, 4, 4, 4), generator=generator)
        inputs = inputs.repeat_interleave(8, 1).repeat_interleave(8, 2).repeat_interleave(8, 3)
        rms = torch.where(inputs[:1] > 0.5, 200.0, 20.0)
        cases.append({"inputs": inputs.half(), "rms": rms.half(), "weight": torch.ones_like(rms).half()})
    return cases


def test_examples_hold_out_whole_patients(tmp_path: Path) -> None:
    """Every variant of a validation CT is held out, or else every eighth phantom; test CTs are not used."""
    datalist = {}
    for section, patient in (("training", "a"), ("validation", "b"), ("test", "c")):
        item = {"label": f"{patient}.nii.gz", "valid": f"{patient}.nii.gz", "patient": patient}
        (tmp_path / item["label"]).touch()
        datalist[section] = [item]
    save_json(datalist, tmp_path / "datalist.json")
    examples = error_cases.plan_examples(tmp_path, 16, 3)
    assert len({example.name for example in examples}) == len(examples) == 16 + 6
    held_out = {example.name for example in examples if example.held_out}
    assert held_out == {"b_0", "b_1", "b_2"}
    assert {example.name for example in error_cases.plan_examples(None, 16, 3) if example.held_out} == {
        "phantom_500007",
        "phantom_500015",
    }
    assert not any(example.name.startswith("c") for example in examples)
    assert {example.name for example in examples if not example.augmented and "seed" not in example.item} == {
        "a_0",
        "b_0",
    }
    with pytest.raises(UserError, match="--phantoms must be at least 8"):
        error_cases.plan_examples(None, 7, 1)


def test_training_finds_the_two_sigmas() -> None:
    """Trained on errors of 20 and 200 HU, the network tells them apart on unseen cases, and a calibration fits."""
    torch.manual_seed(0)
    head = UncertaintyHead(channels=(8, 12, 16))
    train_uncertainty.train(head, _cases(4), steps=60, batch=1, seed=0)
    cases = _cases(2, seed=1)
    scores = train_uncertainty.calibrate(head, cases)
    assert scores["nll_after"] <= scores["nll_before"] < scores["nll_constant"]
    assert float(head.scale) == pytest.approx(scores["factor"])
    with torch.inference_mode():
        log_sigma = torch.cat([head(case["inputs"][None].float()) for case in cases])
    mse = torch.stack([case["rms"] for case in cases]).float() ** 2
    assert calibration_factor(log_sigma, mse, torch.ones_like(mse)) == pytest.approx(1, abs=1e-3)


def test_script_resumes_and_is_deterministic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run reconstructs nothing and writes the same weights; another checkpoint starts afresh."""
    made: list[str] = []

    def make(example: object, *_: object) -> dict[str, torch.Tensor]:
        made.append(example.name)  # type: ignore[attr-defined]
        return _cases(1, seed=len(made))[0]

    monkeypatch.setattr(error_cases, "make_tensors", make)
    monkeypatch.setattr(error_cases, "load_cascade", lambda *_: SimpleNamespace(image_size=512))
    checkpoint, output = tmp_path / "model.pt", tmp_path / "models" / "uncertainty.pt"
    checkpoint.write_bytes(b"cascade")
    command = ["--phantoms", "8", "--steps", "2", "--checkpoint", str(checkpoint)]
    command += ["--cache", str(tmp_path / "cache"), "--output", str(output)]
    assert train_uncertainty.main(command) == 0
    first = read_state(output)
    assert len(made) == 8
    assert train_uncertainty.main(command) == 0
    assert len(made) == 8
    assert all(torch.equal(value, first[name]) for name, value in read_state(output).items())
    checkpoint.write_bytes(b"another cascade")
    assert train_uncertainty.main(command) == 0
    assert len(made) == 16


def test_training_cts_alone_are_mirrored(small_cascade, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CT the cascade was trained on comes left for right; held-out CTs and phantoms as they are."""
    hu = np.full((32, 32, 32), -1000, dtype=np.int16)
    hu[4:20, 8:24, 8:24] = 0
    truths: list[np.ndarray] = []
    case = Case("case", "patient", hu, volume_affine((32, 32, 32), 1.4), None)

    def remember(_: Any, truth: np.ndarray, valid: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        truths.append(truth)
        return torch.zeros(1, 1, 8, 8, 8), torch.zeros(1, 1, 8, 8, 8)

    monkeypatch.setattr(error_cases, "load_case", lambda _: case)
    monkeypatch.setattr(error_cases, "reconstruct", lambda *_, **__: SimpleNamespace(hu=None))
    monkeypatch.setattr(error_cases, "describe", lambda *_: torch.zeros(1, 10, 8, 8, 8))
    monkeypatch.setattr(error_cases, "block_errors", remember)
    network, beam = small_cascade(stage=1), SMALL["geometry"]
    for item, held_out in (({"label": "a"}, False), ({"label": "b"}, True), ({"seed": 7}, False)):
        example = error_cases.Example("name", item, 0, augmented=False, held_out=held_out)
        error_cases.make_tensors(example, network, beam)
    assert np.array_equal(truths[0], hu[::-1]) and not np.array_equal(truths[0], hu)
    assert np.array_equal(truths[1], hu) and np.array_equal(truths[2], hu)


def test_tally_of_gaussian_errors_is_the_gaussians(bench: ModuleType) -> None:
    """Errors drawn with the predicted sigma are covered as a Gaussian is, and lie on the diagonal of reliability."""
    rng = np.random.default_rng(0)
    sigma = np.exp(rng.uniform(1, 6, 200_000))
    tally = bench.Tally()
    tally.add(rng.normal(size=sigma.size) * sigma, sigma)
    summary = tally.summary()
    assert summary["coverage_1_sigma"] == pytest.approx(bench.GAUSSIAN[1], abs=0.005)
    assert summary["coverage_2_sigma"] == pytest.approx(bench.GAUSSIAN[2], abs=0.005)
    assert summary["mean_squared_z"] == pytest.approx(1, abs=0.02)
    assert summary["nll"] < summary["nll_constant"]
    assert len(summary["reliability"]) == 10
    for part in summary["reliability"]:
        assert part["rms_error_hu"] == pytest.approx(part["rms_sigma_hu"], rel=0.03)
        assert part["voxels"] == pytest.approx(20_000, rel=0.1)


def test_tallies_add_up(bench: ModuleType) -> None:
    """Two patients counted apart and merged are the same as all their voxels counted at once."""
    rng = np.random.default_rng(1)
    error, sigma = rng.normal(size=1000), rng.uniform(0.5, 2, 1000)
    parts = [bench.Tally(), bench.Tally()]
    parts[0].add(error[:300], sigma[:300])
    parts[1].add(error[300:], sigma[300:])
    whole = bench.Tally()
    whole.add(error, sigma)
    merged, at_once = bench.merge(parts).summary(), whole.summary()
    for part, expected in zip(merged.pop("reliability"), at_once.pop("reliability"), strict=True):
        assert part == pytest.approx(expected)
    assert merged == pytest.approx(at_once)


def test_benchmark_writes_numbers_table_and_picture(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The JSON names both weights and both regions, the table shows the Gaussian beside them, the picture is drawn."""
    x, y, _ = np.indices((32, 32, 32)) - 15.5
    cylinder = np.where(x**2 + y**2 < 100, 0, -1000).astype(np.int16)
    case = Case("phantom_2000000", "phantom_2000000", cylinder, volume_affine((32, 32, 32), 1.4), None)
    noise = np.random.default_rng(0).normal(scale=50, size=cylinder.shape).round()
    result = SimpleNamespace(hu=(cylinder + noise).clip(-1024, 1024).astype(np.int16))
    monkeypatch.setattr(bench, "load_case", lambda _: case)
    monkeypatch.setattr(bench, "load_cascade", lambda *_: None)
    monkeypatch.setattr(bench, "reconstruct", lambda *_, **__: result)
    monkeypatch.setattr(
        bench, "predict_sigma", lambda *_: np.linspace(40, 60, 32**3, dtype=np.float32).reshape(x.shape)
    )
    for name, content in (("model", b"cascade"), ("other", b"other")):
        (tmp_path / f"{name}.pt").write_bytes(content)
    head = UncertaintyHead()
    remember_cascade(head, tmp_path / "other.pt")
    torch.save(head.state_dict(), tmp_path / "uncertainty.pt")
    command = ["--phantoms", "1", "--checkpoint", str(tmp_path / "model.pt"), "--output", str(tmp_path / "results")]
    command += ["--weights", str(tmp_path / "uncertainty.pt"), "--picture", str(tmp_path / "uncertainty.png")]
    assert bench.main(command) == 0
    printed = capsys.readouterr().out
    assert "another checkpoint" in printed and "68.3%" in printed and "95.4%" in printed
    report = json.loads((tmp_path / "results" / "uncertainty.json").read_text())
    assert report["checkpoint"]["file"] == "model.pt" and report["uncertainty"]["file"] == "uncertainty.pt"
    body, cube = (report["groups"]["phantoms"][region] for region in ("body", "cube"))
    assert body["voxels"] < cube["voxels"] == 32**3
    assert body["coverage_1_sigma"] == pytest.approx(bench.GAUSSIAN[1], abs=0.03)
    assert (tmp_path / "results" / "uncertainty.md").read_text() in printed
    assert imread(tmp_path / "uncertainty.png").std() > 0.05


def test_benchmark_without_weights_says_which(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Missing weights end the benchmark with one line."""
    assert bench.main(["--weights", str(tmp_path / "nowhere.pt")]) == 2
    assert "nowhere.pt must exist" in capsys.readouterr().err
