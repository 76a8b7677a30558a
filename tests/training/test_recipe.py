# SPDX-License-Identifier: Apache-2.0
"""Laws of recipes: steps in order, each done once, and done again when what it depends on changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from progressive_cascade.errors import UserError
from progressive_cascade.io.released import released_hashes
from progressive_cascade.paths import bundle_root
from progressive_cascade.training.recipe import Record, choose, read_recipe

RECIPE = {
    "settings": {"num_phantoms": 8},
    "steps": [
        {"name": "first", "stage": 1, "output": "stage1_best.pt", "settings": {"epochs": 2}},
        {"name": "second", "stage": 2, "output": "stage2_best.pt", "needs": ["stage1_best.pt"]},
        {
            "name": "sigma",
            "module": "uncertainty",
            "output": "uncertainty.pt",
            "settings": {"steps": 5, "checkpoint": "m.pt"},
        },
    ],
}


def _write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_steps_share_settings_and_keep_their_own(tmp_path: Path) -> None:
    """Stages get the shared settings; a module's arguments are its own, its paths those of the models' folder."""
    first, second, sigma = read_recipe(_write(tmp_path / "recipe.json", RECIPE))
    assert (first.settings, second.settings) == ({"num_phantoms": 8, "epochs": 2}, {"num_phantoms": 8})
    assert sigma.arguments(None, Path("models")) == [
        *("--output", "models/uncertainty.pt"),
        *("--steps", "5"),
        *("--checkpoint", "models/m.pt"),
    ]
    assert choose([first, second, sigma], ["sigma", "first"]) == [first, sigma]


def test_a_step_is_done_once_and_again_when_something_changed(tmp_path: Path) -> None:
    """Other settings, other data, another predecessor or a changed file: each is a reason to do it again."""
    _, second, _ = read_recipe(_write(tmp_path / "recipe.json", RECIPE))
    (tmp_path / "stage1_best.pt").write_bytes(b"before")
    (tmp_path / "stage2_best.pt").write_bytes(b"made")
    record = Record(tmp_path, "data")
    assert not record.is_done(second)
    record.add(second, 1.0)
    assert Record(tmp_path, "data").is_done(second)
    assert not Record(tmp_path, "other data").is_done(second)
    changed = read_recipe(_write(tmp_path / "other.json", {**RECIPE, "settings": {"num_phantoms": 9}}))[1]
    assert not Record(tmp_path, "data").is_done(changed)
    (tmp_path / "stage1_best.pt").write_bytes(b"after")
    assert not Record(tmp_path, "data").is_done(second)
    (tmp_path / "stage1_best.pt").write_bytes(b"before")
    (tmp_path / "stage2_best.pt").write_bytes(b"damaged")
    assert not Record(tmp_path, "data").is_done(second)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "must be an object with a list of steps"),
        ({"steps": [{"stage": 1}]}, "a step must be an object with name and output"),
        ({"steps": [{"name": "a", "output": "b", "stage": 4}]}, "stage of step 'a' must be 1, 2 or 3, got 4"),
        ({"steps": [{"name": "a", "output": "b"}]}, "step 'a' must have either stage or module"),
        ({"steps": [{"name": "a", "output": "b", "module": "os"}]}, "module of step 'a' must be one of"),
        ({"steps": [{"name": "a", "output": "b", "stage": 1, "sttings": {}}]}, "unknown key 'sttings'"),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path: Path, content: object, message: str) -> None:
    """One line that names the file or the step."""
    with pytest.raises(UserError, match=message):
        read_recipe(_write(tmp_path / "recipe.json", content))


def test_the_shipped_recipe_makes_every_released_file() -> None:
    """Its outputs hold all that is released, and every step needs only what earlier ones made."""
    made: set[str] = set()
    for step in read_recipe(bundle_root() / "configs" / "recipe.json"):
        assert set(step.needs) <= made, step.name
        made.add(step.output)
    assert set(released_hashes()) <= made


def test_modules_get_what_they_take(tmp_path: Path) -> None:
    """A cascade is assembled without a dataset; a calibration reads the folder of models."""
    steps = {step.name: step for step in read_recipe(bundle_root() / "configs" / "recipe.json")}
    assert steps["any_geometry"].arguments(Path("data"), tmp_path) == [
        *("--output", str(tmp_path / "any_geometry.pt")),
        *("--checkpoint", str(tmp_path / "model.pt")),
        *("--first_stage", str(tmp_path / "any" / "stage1_best.pt")),
        *("--average_with", str(tmp_path / "films" / "stage1_best.pt")),
    ]
    arguments = steps["trust"].arguments(Path("data"), tmp_path)
    assert arguments[2:6] == ["--dataset", "data", "--models", str(tmp_path)]
    assert arguments[-2:] == ["--report", str(tmp_path / "trust_report.json")]


def test_an_unknown_step_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    """`--only` names steps."""
    with pytest.raises(UserError, match="got 'frist'; did you mean first"):
        choose(read_recipe(_write(tmp_path / "recipe.json", RECIPE)), ["frist"])
