# SPDX-License-Identifier: Apache-2.0
"""Laws of `progressive-cascade train`: which runs it plans, and which presets and overrides it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from progressive_cascade.cli import main
from progressive_cascade.cli.training_runs import check_key, parse_overrides, plan_runs
from progressive_cascade.errors import UserError, did_you_mean
from progressive_cascade.io import read_json, save_json
from progressive_cascade.paths import bundle_root
from progressive_cascade.training.plan import check_cases
from tests.support.processes import as_options, tiny_settings


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle's folder with one stage, an overlay for several GPUs, and presets."""
    root = tmp_path / "bundle"
    stage = {
        "epochs": 40,
        "amp": True,
        "train": {"trainer": {"max_epochs": "@epochs"}, "handlers": [{"interval": 1}]},
        "dataset": "%configs/train.json::dataset",
    }
    for number in (1, 2, 3):
        save_json(stage, root / "configs" / f"stage{number}.json")
    save_json({"amp": False}, root / "configs" / "multi_gpu.json")
    save_json({"_desc_": "short", "epochs": 5}, root / "configs" / "presets" / "fast.json")
    save_json({"epohcs": 5}, root / "configs" / "presets" / "broken.json")
    return root


def test_train_runs_stages_in_order(bundle: Path, tmp_path: Path) -> None:
    """Files are layered stage, preset, GPUs; paths are absolute, because the workflow runs in the bundle's folder."""
    runs = plan_runs(bundle, [1, 2, 3], preset="fast", output=tmp_path / "out", multi_gpu=True)
    assert [run.stage for run in runs] == [1, 2, 3]
    assert [path.name for path in runs[1].config_files] == ["stage2.json", "fast.json", "multi_gpu.json"]
    assert all(path.is_absolute() for run in runs for path in run.config_files)
    assert runs[2].overrides["bundle_root"] == str(bundle)


def test_train_command_starts_one_process_per_gpu(bundle: Path) -> None:
    """Several processes go through torchrun, one does not; overrides come last and win."""
    (run,) = plan_runs(bundle, [1], overrides={"train#trainer#max_epochs": 5})
    single, several = run.command(1), run.command(4)
    assert single[1:5] == ["-m", "monai.bundle", "run", "training"]
    assert several[1:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=4"]
    assert single[-2:] == several[-2:] == ["--train#trainer#max_epochs", "5"]


def test_train_output_is_absolute(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints of all stages share a folder, where the next stage looks for its predecessor."""
    monkeypatch.chdir(tmp_path)
    runs = plan_runs(bundle, [1, 2], dataset=Path("dataset"), output=Path("out"))
    assert {run.overrides["ckpt_dir"] for run in runs} == {str(tmp_path / "out" / "models")}
    assert [run.overrides["log_dir"] for run in runs] == [str(tmp_path / "out" / "logs" / f"stage{n}") for n in (1, 2)]
    assert runs[0].overrides["dataset_dir"] == str(tmp_path / "dataset")


@pytest.mark.parametrize("preset", ["fast", "low_memory", "max_quality"])
def test_train_plans_the_shipped_configs(preset: str) -> None:
    """Every shipped preset fits every shipped stage, and so does every setting the command makes itself."""
    runs = plan_runs(bundle_root(), [1, 2, 3], preset=preset, dataset=Path("dataset"), output=Path("out"))
    for run in runs:
        for key in run.overrides:
            check_key(key, read_json(run.config_files[0]), "train")


def test_train_refuses_an_unknown_preset(bundle: Path) -> None:
    """The error names the presets and the one that was probably meant."""
    with pytest.raises(UserError, match=r"--preset must be one of broken, fast, got 'fats'; did you mean fast\?"):
        plan_runs(bundle, [1], preset="fats")


def test_train_refuses_a_misspelt_preset_key(bundle: Path) -> None:
    """MONAI would silently train with the old value: the file and the key are named instead."""
    with pytest.raises(UserError, match=r"broken\.json: key 'epohcs' must exist.*did you mean epochs\?"):
        plan_runs(bundle, [1], preset="broken")


@pytest.mark.parametrize("key", ["epohcs", "train#trainer#max_epohcs", "train::trainr", "train#handlers#1", "epochs#0"])
def test_train_refuses_a_misspelt_override(key: str, bundle: Path) -> None:
    """Every part of a config id must exist."""
    with pytest.raises(UserError, match="--set, stage 1"):
        plan_runs(bundle, [1], overrides={key: 7})


def test_check_key_accepts_what_exists(bundle: Path) -> None:
    """Both separators and list positions are understood; what another file holds cannot be reached."""
    config = read_json(bundle / "configs" / "stage1.json")
    for key in ("epochs", "train#trainer#max_epochs", "train::handlers::0::interval"):
        check_key(key, config, "test")
    with pytest.raises(UserError, match="'dataset' refers to '%configs"):
        check_key("dataset#data", config, "test")


def test_parse_overrides_reads_values() -> None:
    """Numbers, lists and booleans become what they are, everything else is text."""
    parsed = parse_overrides(["a=1", "b#c=[1, 2]", "d=True", "e=$@f", "g=x=y"])
    assert parsed == {"a": 1, "b#c": [1, 2], "d": True, "e": "$@f", "g": "x=y"}
    with pytest.raises(UserError, match="--set must be KEY=VALUE, got 'epochs'"):
        parse_overrides(["epochs"])


def test_did_you_mean_is_silent_without_a_clue() -> None:
    """Close words are named; with many candidates and none close, nothing is."""
    assert did_you_mean("latreal", ["pa", "lateral"]) == "; did you mean lateral?"
    assert did_you_mean("zzz", [f"key{index}" for index in range(50)]) == ""


def test_a_dry_run_checks_tries_and_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Steps, disk, memory and time by their arithmetic, nothing written; a file that is no image is named."""
    output = tmp_path / "out"
    settings = tiny_settings(output, output / "cache", num_phantoms=20, epoch_size=None, batch_size=8)
    assert main([*as_options(settings), "--processes", "2", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "0 CTs and 20 phantoms for training, 0 CTs and 1 phantoms for validation" in told
    assert "steps: 3 epochs x 2 = 6, of 8 x 2 = 16 cases each" in told
    assert "cache 21 cases x 32^3 voxels x 3 bytes = 0.00 GB" in told
    assert re.search(r"memory: [\d.]+ GB at the most in a step of 8 cases on (cpu|cuda)", told)
    assert re.search(r"time: 3 x 2 steps x [\d.e-]+ s \+ 3 validations x 1 cases x [\d.e-]+ s = 0:0", told)
    assert not output.exists()
    missing = {**settings, "predecessor": str(tmp_path / "stage1_best.pt"), "grid": 16}
    assert main([*as_options(missing, 2), "--dry-run"]) == 2
    assert "stage1_best.pt must exist before stage 2 is trained" in capsys.readouterr().err
    (tmp_path / "a.nii.gz").write_bytes(b"no image")
    item = {"label": str(tmp_path / "a.nii.gz"), "valid": "", "case": "a", "patient": "p"}
    with pytest.raises(UserError, match=r"a\.nii\.gz must be a readable NIfTI image"):
        check_cases([item])
