# SPDX-License-Identifier: Apache-2.0
"""What trackers keep of a training: every step's terms and every epoch's score, in files here, and nobody's name."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ignite.engine import Engine, Events

from progressive_cascade.training.tracking import Tracking
from tests.support.planted import PERSON, found

STEPS, EPOCHS = 2, 2


def _track(tool: str, folder: Path) -> None:
    """A run of four steps whose loss is the step's number, and whose score is the epoch's."""
    objective: Any = SimpleNamespace(terms={})
    engine, validator = Engine(lambda *_: None), Engine(lambda *_: None)
    engine.add_event_handler(Events.ITERATION_STARTED, lambda: objective.terms.update(l1=engine.state.iteration))
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: validator.run([0]))
    validator.add_event_handler(Events.EPOCH_COMPLETED, lambda: validator.state.metrics.update(psnr=engine.state.epoch))
    Tracking(tool, folder, name="stage1", objective=objective, validator=validator).attach(engine)
    engine.run(range(STEPS), max_epochs=EPOCHS)


def test_mlflow_keeps_steps_and_scores(tmp_path: Path) -> None:
    """Read by MLflow's own client from the one file that was written."""
    mlflow = pytest.importorskip("mlflow")
    _track("mlflow", tmp_path)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlruns.db'}")
    experiment = client.get_experiment_by_name("progressive-cascade")
    (run,) = client.search_runs([experiment.experiment_id])
    values = {
        name: [one.value for one in client.get_metric_history(run.info.run_id, name)] for name in run.data.metrics
    }
    assert values["l1"] == [1, 2, 3, 4] and values["psnr"] == [1, 2]
    assert run.info.run_name == "stage1" and run.info.status == "FINISHED"


def test_wandb_keeps_steps_and_scores_and_no_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An offline run's own records; a dataset's path on the command line, or on the screen, is in none of its files."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(sys, "argv", ["progressive-cascade", "train", "--dataset", f"/home/{PERSON}/dataset"])
    _track("wandb", tmp_path)
    wandb.teardown()  # its own process writes behind
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    rows = _history(path)
    assert [row["train/l1"] for row in rows if "train/l1" in row] == [1, 2, 3, 4]
    assert [row["validate/psnr"] for row in rows if "validate/psnr" in row] == [1, 2]
    assert found(tmp_path, capfd.readouterr().out) == []


def _history(path: Path) -> list[dict[str, Any]]:
    """The rows that were logged, as `wandb sync` would send them: a log as LevelDB writes it, of one block."""
    from wandb.proto import wandb_internal_pb2

    content, place, rows = path.read_bytes(), len(":W&B") + 3, []
    while place + 7 <= len(content):
        length, kind = struct.unpack_from("<HB", content, place + 4)
        assert kind == 1, "a record lies in one block"
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content[place + 7 : place + 7 + length])
        items = record.history.item
        rows.append({"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items})
        place += 7 + length
    return rows
