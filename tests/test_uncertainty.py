# SPDX-License-Identifier: Apache-2.0
"""Laws of the uncertainty: its likelihood, its calibration, its weights, its training script and its benchmark."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from progressive_cascade import ConeBeam, volume_affine
from progressive_cascade.cases import Case
from progressive_cascade.errors import UserError
from progressive_cascade.io import read_state, save_json
from progressive_cascade.networks.uncertainty import MAX_SIGMA_HU, MIN_SIGMA_HU, NUM_INPUTS, UncertaintyHead
from progressive_cascade.reconstruction import Reconstruction
from progressive_cascade.uncertainty import (
    BLOCK,
    belongs_to,
    block_errors,
    calibration_factor,
    default_uncertainty,
    describe,
    gaussian_nll,
    interpolate_sigma,
    load_uncertainty,
    predict_sigma,
    remember_cascade,
)

_REPOSITORY = Path(__file__).resolve().parents[1]
BEAM = ConeBeam(detector_shape=(64, 64), pixel_spacing=(6.72, 6.72))
GRID = 8


def _load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The training script, imported."""
    return _load(_REPOSITORY / "scripts" / "train_uncertainty.py", "train_uncertainty")


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """The benchmark, imported."""
    return _load(_REPOSITORY / "benchmarks" / "uncertainty.py", "bench_uncertainty")


def _head(seed: int = 0) -> UncertaintyHead:
    """A network whose last layer is not zero."""
    torch.manual_seed(seed)
    head = UncertaintyHead()
    torch.nn.init.normal_(head.out.weight, std=0.5)
    return head.eval()


def _result(hu: np.ndarray, *, image: float = 3.0, reprojected: float = 3.0) -> Reconstruction:
    size = hu.shape[0]
    return Reconstruction(
        hu=hu.astype(np.int16),
        affine=volume_affine((size, size, size), 358.4 / size, (10.0, -20.0, 300.0)),
        agreement={},
        reprojected=np.full((2, 64, 64), reprojected, np.float32),
        image=np.full((2, 64, 64), image, np.float32),
        calibrated=True,
    )


def _random_result(seed: int = 0) -> Reconstruction:
    return _result(np.random.default_rng(seed).integers(-1000, 1000, (BLOCK * GRID,) * 3))


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


def test_sigma_is_positive_and_finite() -> None:
    """Whatever the inputs, sigma keeps its bounds; a fresh network starts in the middle of them."""
    generator = torch.Generator().manual_seed(0)
    for size in (1.0, 1e4):
        log_sigma = _head()(size * torch.randn(2, NUM_INPUTS, GRID, GRID, GRID, generator=generator))
        assert log_sigma.shape == (2, 1, GRID, GRID, GRID)
        assert log_sigma.isfinite().all()
        assert log_sigma.min() >= math.log(MIN_SIGMA_HU) and log_sigma.max() <= math.log(MAX_SIGMA_HU) + 1e-5
    fresh = UncertaintyHead()(torch.zeros(1, NUM_INPUTS, GRID, GRID, GRID))
    assert fresh.unique().tolist() == pytest.approx([0.5 * math.log(MIN_SIGMA_HU * MAX_SIGMA_HU)])


def test_every_weight_is_trained() -> None:
    """Each parameter gets a gradient, but for what hides behind zero-initialised residuals."""
    head = _head()
    for name, parameter in head.named_parameters():
        if "conv2" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    head(torch.randn(1, NUM_INPUTS, GRID, GRID, GRID)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.parameters())


def test_likelihood_is_least_at_the_true_sigma() -> None:
    """The negative log likelihood has its minimum where sigma is the root mean square error, block by block."""
    mse = torch.tensor([4.0, 900.0, 40000.0], dtype=torch.float64)
    log_sigma = (0.5 * mse.log()).requires_grad_()
    best = gaussian_nll(log_sigma, mse, torch.ones_like(mse))
    best.backward()
    assert log_sigma.grad is not None and log_sigma.grad.abs().max() < 1e-12
    for change in (-0.1, 0.1):
        assert gaussian_nll(log_sigma + change, mse, torch.ones_like(mse)) > best
    assert best.item() == pytest.approx(float(0.5 * mse.log().mean()) + 0.5)


def test_likelihood_counts_scanned_voxels_alone() -> None:
    """A block that was not scanned changes nothing; one scanned by half counts half."""
    log_sigma, mse, weight = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 9.0, 1e6]), torch.tensor([1.0, 0.5, 0.0])
    terms = log_sigma + mse / (2 * (2 * log_sigma).exp())
    expected = (terms[0] + 0.5 * terms[1]) / 1.5
    assert gaussian_nll(log_sigma, mse, weight).item() == pytest.approx(expected.item())


def test_calibration_makes_the_mean_squared_ratio_one() -> None:
    """With the factor applied, the weighted mean of error² / sigma² is 1, and the likelihood is no worse."""
    generator = torch.Generator().manual_seed(1)
    log_sigma = 3 + torch.randn(500, generator=generator)
    mse, weight = 1e4 * torch.rand(500, generator=generator), torch.rand(500, generator=generator)
    factor = calibration_factor(log_sigma, mse, weight)
    calibrated = log_sigma + math.log(factor)
    assert calibration_factor(calibrated, mse, weight) == pytest.approx(1, rel=1e-5)
    assert gaussian_nll(calibrated, mse, weight) <= gaussian_nll(log_sigma, mse, weight)
    with pytest.raises(ValueError, match="must be positive and finite"):
        calibration_factor(log_sigma, torch.zeros(500), weight)


def test_block_errors_are_means_over_scanned_voxels() -> None:
    """One wrong voxel of 64, one beyond the window, and a block that was not scanned, by hand."""
    hu, truth, valid = (np.full((8, 4, 4), value) for value in (100, 100, 1))
    hu[0, 0, 0] = 180
    truth[4, 0, 0], hu[4, 0, 0] = 3000, 1024
    valid[0, 1:, :] = 0
    mse, share = block_errors(hu, truth, valid)
    assert mse.dtype == torch.float32 and mse.shape == share.shape == (1, 1, 2, 1, 1)
    assert share.flatten().tolist() == [52 / 64, 1.0]
    assert mse.flatten().tolist() == pytest.approx([80**2 / 52, 0.0])
    mse, share = block_errors(hu, truth, np.zeros_like(valid))
    assert not share.any() and not mse.any()


def test_description_of_a_constant_reconstruction() -> None:
    """No texture, nothing unexplained, one grey value; the coordinates grow along their own axis; calibrated is 1."""
    inputs = describe(_result(np.zeros((32, 32, 32))), BEAM)
    assert inputs.shape == (1, NUM_INPUTS, GRID, GRID, GRID)
    mean, texture, pa, pa_rest, lateral, lateral_rest, *position, flag = inputs[0]
    assert (mean == 0.5).all() and not texture.any() and not pa_rest.any() and not lateral_rest.any()
    inside = (slice(1, -1),) * 3
    torch.testing.assert_close(pa[inside], torch.full_like(pa[inside], 0.6))
    torch.testing.assert_close(lateral[inside], torch.full_like(pa[inside], 0.6))
    for axis, values in enumerate(position):
        line = values.movedim(axis, 0)
        torch.testing.assert_close(line[:, 0, 0], (torch.arange(GRID) + 0.5) / GRID * 2 - 1)
    assert (flag == 1).all()


def test_description_shows_texture_and_what_is_unexplained() -> None:
    """A checkerboard of ±100 HU has that standard deviation; a radiograph brighter than explained is positive."""
    hu = 100 * (-1) ** np.indices((32, 32, 32)).sum(0)
    inputs = describe(_result(hu, image=3.0, reprojected=2.5), BEAM)
    torch.testing.assert_close(inputs[0, 1], torch.full((GRID,) * 3, 10 * 100 / 2048))
    assert (inputs[0, [3, 5], 1:-1, 1:-1, 1:-1] > 0).all()


def test_description_refuses_what_has_no_blocks() -> None:
    """A volume that is no cube of whole blocks is refused with its shape."""
    with pytest.raises(ValueError, match="multiple of 32 voxels"):
        describe(_result(np.zeros((30, 30, 30))), BEAM)


def test_prediction_is_deterministic_and_positive() -> None:
    """The same reconstruction gives the same sigma, one per voxel, float32."""
    head = _head()
    first, second = (predict_sigma(_random_result(), BEAM, head) for _ in range(2))
    assert first.dtype == np.float32 and first.shape == (32, 32, 32)
    assert (first > 0).all() and np.isfinite(first).all() and first.std() > 0
    np.testing.assert_array_equal(first, second)


def test_factor_scales_every_sigma() -> None:
    """The calibration multiplies sigma and changes nothing else."""
    head = _head()
    plain = predict_sigma(_random_result(), BEAM, head)
    head.scale.fill_(1.5)
    np.testing.assert_allclose(predict_sigma(_random_result(), BEAM, head), 1.5 * plain, rtol=1e-5)


def test_interpolation_keeps_a_constant() -> None:
    """Blocks of one sigma become voxels of that sigma."""
    sigma = interpolate_sigma(torch.full((1, 1, 2, 2, 2), math.log(50.0)))
    torch.testing.assert_close(sigma, torch.full((1, 1, 8, 8, 8), 50.0))


def test_weights_survive_their_file(script: ModuleType, tmp_path: Path) -> None:
    """Half precision keeps the file below 1.5 MB; factor and checkpoint's hash come back exactly."""
    head = _head()
    head.scale.fill_(1.2345)
    (tmp_path / "model.pt").write_bytes(b"cascade")
    (tmp_path / "other.pt").write_bytes(b"other")
    remember_cascade(head, tmp_path / "model.pt")
    script.save_head(head, tmp_path / "uncertainty.pt")
    assert (tmp_path / "uncertainty.pt").stat().st_size < 1.5e6
    loaded = load_uncertainty(tmp_path / "uncertainty.pt")
    assert loaded.scale == head.scale and not loaded.training
    assert belongs_to(loaded, tmp_path / "model.pt") and not belongs_to(loaded, tmp_path / "other.pt")
    expected = predict_sigma(_random_result(), BEAM, head)
    np.testing.assert_allclose(predict_sigma(_random_result(), BEAM, loaded), expected, rtol=0.05)


def test_missing_and_foreign_weights_are_named(tmp_path: Path) -> None:
    """A file that is not there, or holds another network, is a user's error with its name."""
    with pytest.raises(UserError, match=r"nowhere\.pt must exist"):
        load_uncertainty(tmp_path / "nowhere.pt")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "foreign.pt")
    with pytest.raises(UserError, match=r"foreign\.pt must hold the weights of an UncertaintyHead"):
        load_uncertainty(tmp_path / "foreign.pt")


def test_shipped_weights_load() -> None:
    """The bundle's weights fit the network and are calibrated."""
    if not default_uncertainty().is_file():
        pytest.skip(f"{default_uncertainty()} is not there: scripts/train_uncertainty.py writes it")
    head = load_uncertainty()
    assert 0.3 < float(head.scale) < 3 and head.cascade_sha256.any()


def test_examples_hold_out_whole_patients(script: ModuleType, tmp_path: Path) -> None:
    """Every variant of a validation CT is held out, or else every eighth phantom; test CTs are not used."""
    datalist = {}
    for section, patient in (("training", "a"), ("validation", "b"), ("test", "c")):
        item = {"label": f"{patient}.nii.gz", "valid": f"{patient}.nii.gz", "patient": patient}
        (tmp_path / item["label"]).touch()
        datalist[section] = [item]
    save_json(datalist, tmp_path / "datalist.json")
    examples = script.plan_examples(tmp_path, 16, 3)
    assert len({example.name for example in examples}) == len(examples) == 16 + 6
    held_out = {example.name for example in examples if example.held_out}
    assert held_out == {"b_0", "b_1", "b_2"}
    assert {example.name for example in script.plan_examples(None, 16, 3) if example.held_out} == {
        "phantom_500007",
        "phantom_500015",
    }
    assert not any(example.name.startswith("c") for example in examples)
    assert {example.name for example in examples if not example.augmented and "seed" not in example.item} == {
        "a_0",
        "b_0",
    }
    with pytest.raises(UserError, match="--phantoms must be at least 8"):
        script.plan_examples(None, 7, 1)


def test_training_finds_the_two_sigmas(script: ModuleType) -> None:
    """Trained on errors of 20 and 200 HU, the network tells them apart on unseen cases, and a calibration fits."""
    torch.manual_seed(0)
    head = UncertaintyHead()
    script.train(head, _cases(4), steps=80, batch=1, seed=0)
    cases = _cases(2, seed=1)
    scores = script.calibrate(head, cases)
    assert scores["nll_after"] <= scores["nll_before"] < scores["nll_constant"]
    assert float(head.scale) == pytest.approx(scores["factor"])
    with torch.inference_mode():
        log_sigma = torch.cat([head(case["inputs"][None].float()) for case in cases])
    mse = torch.stack([case["rms"] for case in cases]).float() ** 2
    assert calibration_factor(log_sigma, mse, torch.ones_like(mse)) == pytest.approx(1, abs=1e-3)


def test_script_resumes_and_is_deterministic(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run reconstructs nothing and writes the same weights; another checkpoint starts afresh."""
    made: list[str] = []

    def make(example: object, *_: object) -> dict[str, torch.Tensor]:
        made.append(example.name)  # type: ignore[attr-defined]
        return _cases(1, seed=len(made))[0]

    monkeypatch.setattr(script, "make_tensors", make)
    monkeypatch.setattr(script, "load_cascade", lambda *_: SimpleNamespace(image_size=512))
    checkpoint, output = tmp_path / "model.pt", tmp_path / "models" / "uncertainty.pt"
    checkpoint.write_bytes(b"cascade")
    command = ["--phantoms", "8", "--steps", "2", "--checkpoint", str(checkpoint)]
    command += ["--cache", str(tmp_path / "cache"), "--output", str(output)]
    assert script.main(command) == 0
    first = read_state(output)
    assert len(made) == 8
    assert script.main(command) == 0
    assert len(made) == 8
    assert all(torch.equal(value, first[name]) for name, value in read_state(output).items())
    checkpoint.write_bytes(b"another cascade")
    assert script.main(command) == 0
    assert len(made) == 16


def test_training_cts_are_reconstructed_by_who_has_forgotten_them(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training CTs alone: phantoms and held-out CTs are the shipped cascade's."""
    used: dict[str, str] = {}

    def make(example: Any, network: Any, _: object) -> dict[str, torch.Tensor]:
        used[example.name] = network.file
        return _cases(1)[0]

    monkeypatch.setattr(script, "make_tensors", make)
    monkeypatch.setattr(script, "load_cascade", lambda path, _: SimpleNamespace(image_size=512, file=path.name))
    for name in ("model.pt", "forgetful.pt"):
        (tmp_path / name).write_bytes(name.encode())
    examples = [
        script.Example("training", {"label": "a.nii.gz"}, 0, augmented=True, held_out=False),
        script.Example("validation", {"label": "b.nii.gz"}, 0, augmented=False, held_out=True),
        script.Example("phantom", {"seed": 7}, 7, augmented=False, held_out=False),
    ]
    files = tmp_path / "model.pt", tmp_path / "cache", "cpu"
    script.collect(examples, *files, unfamiliar=tmp_path / "forgetful.pt")
    assert used == {"training": "forgetful.pt", "validation": "model.pt", "phantom": "model.pt"}


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
    head = _head()
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
