# SPDX-License-Identifier: Apache-2.0
"""Laws of `train --recipe`: options are heeded or refused, a dry run makes nothing, what no step made is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from progressive_cascade.cli import main, training
from progressive_cascade.cli.training_runs import StageRun

STEPS = [
    {"name": "first", "stage": 1, "output": "stage1_best.pt"},
    {"name": "named", "module": "assemble", "output": "model.pt", "needs": ["stage1_best.pt"]},
]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A stage, and a module that takes its file."""
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"settings": {"num_phantoms": 2}, "steps": STEPS}))
    return path


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[StageRun]:
    """What would have been trained; each leaves a file."""
    done: list[StageRun] = []

    def run_stage(run: StageRun, root: Path, *_: Any) -> None:
        done.append(run)
        run.checkpoint(root).parent.mkdir(parents=True, exist_ok=True)
        run.checkpoint(root).write_bytes(b"weights")

    monkeypatch.setattr(training, "_run_stage", run_stage)
    return done


def _train(recipe: Path, *more: str) -> int:
    return main(["train", "--recipe", str(recipe), "--output", str(recipe.parent / "out"), *more])


@pytest.mark.parametrize(
    "more",
    [
        ["--stages", "1"],
        ["--preset", "fast"],
        ["--processes", "2"],
        ["--max-restarts", "1"],
        ["--scheduler", "tcp://localhost:1"],
        ["--resume", "yes"],
    ],
    ids=lambda more: more[0],
)
def test_options_of_stages_alone_are_refused(recipe: Path, runs: list[StageRun], capsys: Any, more: list[str]) -> None:
    """What a recipe would pass over ends in one line that names it."""
    assert _train(recipe, *more) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and more[0] in told and "--recipe" in told
    assert not runs and not (recipe.parent / "out").exists()


def test_only_is_of_a_recipe(capsys: Any, tmp_path: Path) -> None:
    """Steps without a recipe are refused."""
    assert main(["train", "--only", "first", "--output", str(tmp_path / "out")]) == 2
    assert "--only names steps of a recipe" in capsys.readouterr().err


def test_other_options_reach_the_stages(recipe: Path, runs: list[StageRun]) -> None:
    """Resuming by force, cases to pass over, tracking and --set hold for a recipe's stage too."""
    more = ["--force-resume", "--skip-bad", "3", "--tracking", "mlflow", "--resume", "no", "--set", "seed=7"]
    assert _train(recipe, "--only", "first", *more) == 0
    wanted = {"force_resume": True, "skip_bad": 3, "tracker": "mlflow", "resume": False, "seed": 7, "num_phantoms": 2}
    assert wanted.items() <= dict(runs[0].overrides).items()


def test_dry_run_tells_and_makes_nothing(recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Every step is told; one whose files are still to come is not tried."""
    tried: list[int] = []
    monkeypatch.setattr(training, "_tell_plan", lambda run, *_, **__: tried.append(run.stage))
    again = {"name": "second", "stage": 2, "output": "stage2_best.pt", "needs": ["stage1_best.pt"]}
    recipe.write_text(json.dumps({"steps": [*STEPS, again]}))
    assert _train(recipe, "--dry-run") == 0
    told = capsys.readouterr().out
    assert tried == [1]
    assert (
        "step 3 of 3, second, begins when stage1_best.pt is there" in told
        and "python -m progressive_cascade.training.assemble --output" in told
    )
    assert not list((recipe.parent / "out").rglob("*.pt")) and not list((recipe.parent / "out").rglob("*.json"))


def test_file_that_no_step_made_is_kept(recipe: Path, runs: list[StageRun], capsys: Any) -> None:
    """Weights in the way of a step stay, unless the user says otherwise."""
    theirs = recipe.parent / "out" / "models" / "stage1_best.pt"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"theirs")
    assert _train(recipe, "--only", "first") == 2
    assert "--overwrite" in capsys.readouterr().err and theirs.read_bytes() == b"theirs" and not runs
    assert _train(recipe, "--only", "first", "--overwrite") == 0
    assert theirs.read_bytes() == b"weights"
    assert _train(recipe, "--only", "first") == 0 and len(runs) == 1
