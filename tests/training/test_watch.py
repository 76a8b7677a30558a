# SPDX-License-Identifier: Apache-2.0
"""Laws of what one sees of a training: the line, the page, the pictures, and when it is enough."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events

from progressive_cascade.errors import UserError
from progressive_cascade.training.kept import list_states, load_state
from progressive_cascade.training.pictures import slices
from progressive_cascade.training.resume import ResumableCheckpoint
from progressive_cascade.training.summary import build_summary
from progressive_cascade.training.tracking import check_tracking
from progressive_cascade.training.watch import EarlyStop, Speed
from tests.support.processes import Child, tiny_settings, train


def test_a_training_tells_where_it_is(tmp_path):
    """A line an epoch, the same checks as a dry run, pictures for TensorBoard, and a page that needs no other file."""
    child = Child(tmp_path / "log", train, tiny_settings(tmp_path, tmp_path / "cache"))
    assert child.wait() == 0, child.text()
    told = child.text()
    assert "every file was opened" in told and "steps: 3 epochs x 3 = 9" in told
    line = (
        r"stage 1: epoch 2/3 step 3/3 \| loss \d\.\d+ \(l1 \d\.\d+, reprojection \d\.\d+\) \| "
        r"[\d.]+ samples/s, waiting \d+%, [\d.]+ GB \| 0:00:\d\d left"
    )
    assert re.search(line, told), told
    events = b"".join(path.read_bytes() for path in (tmp_path / "logs1").glob("events*"))
    assert b"output" in events and b"PNG" in events
    page = (tmp_path / "models" / "stage1_summary.html").read_text(encoding="utf-8")
    assert "Best epoch" in page and "hash of the data" in page and "version of torch" in page
    assert page.count("<svg") >= 4 and page.count("data:image/png;base64,") == 8
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    history = load_state(list_states(tmp_path / "logs1" / "checkpoints")[0])["history"]["epochs"]
    assert [row["epoch"] for row in history] == [1, 2, 3] and all(row["score"] > 0 for row in history)


def _scored(folder: Path, scores: list[float], patience: int | None) -> tuple[int, EarlyStop]:
    """Trains up to six epochs that get these scores; how many there were."""
    validator: Any = Engine(lambda *_: None)
    validator.state.key_metric_name = "psnr"
    trainer = Engine(lambda *_: None)
    stop = EarlyStop(validator, patience)

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate() -> None:
        @validator.on(Events.EPOCH_COMPLETED(once=1))
        def score() -> None:
            validator.state.metrics["psnr"] = scores[trainer.state.epoch - 1]

        validator.run([0])

    layer = torch.nn.Linear(1, 1)
    checkpoint = ResumableCheckpoint(folder, {"network": layer, "patience": stop}, resume="auto")
    checkpoint.attach(trainer)
    stop.attach(trainer)
    trainer.run([0], max_epochs=6)
    return trainer.state.epoch, stop


def test_patience_ends_a_run_that_is_no_better(tmp_path, capsys):
    """After so many validations without a better score; taken up again it stays ended; more patience goes on."""
    scores = [20.0, 21.0, 20.5, 20.9, 25.0, 20.0]
    assert _scored(tmp_path / "all", scores, None)[0] == 6
    epochs, _ = _scored(tmp_path / "two", scores, 2)
    assert epochs == 4
    assert "stopped after epoch 4: no better for 2 validations" in capsys.readouterr().out
    assert _scored(tmp_path / "two", scores, 2)[0] == 4
    epochs, stop = _scored(tmp_path / "two", scores, 3)
    assert epochs == 6 and stop.counter == 1


def test_a_run_that_waits_says_what_to_change(capsys):
    """The share of the time that a batch took to come, and the setting to turn."""

    class Slow(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            time.sleep(0.02)
            return {"label": torch.zeros(1)}

    engine = Engine(lambda *_: None)
    Speed().attach(engine)
    engine.run(torch.utils.data.DataLoader(Slow(), batch_size=1), max_epochs=2)
    assert engine.state.metrics["wait_share"] > 0.5
    assert 0 < engine.state.metrics["samples_per_second"] < 50
    first, second = capsys.readouterr().out.strip().splitlines()
    assert "epoch 1 waited" in first and "kept in cache_dir" in first
    assert "epoch 2 waited" in second and "raise num_workers (0 now" in second


def test_slices_are_shown_as_they_are_read():
    """Head up; the patient's right, or front, on the left."""
    volume = torch.zeros(4, 6, 8)
    volume[-1, 3, -1] = 1  # right, middle, head
    volume[2, -1, -1] = 2  # middle, front, head
    sagittal, coronal, axial = slices(volume)
    assert (sagittal.shape, coronal.shape, axial.shape) == ((8, 6), (8, 4), (6, 4))
    assert coronal[0, 0] == 1 and sagittal[0, 0] == 2
    volume[-1, -1, 4] = 3
    assert slices(volume)[2][0, 0] == 3


def test_a_summary_escapes_and_leaves_gaps():
    """What stands in a name is text; an epoch without a validation has no point on its curve."""
    epochs = [{"epoch": 1, "step": 2, "loss": 0.5, "score": 20.0}, {"epoch": 2, "step": 4, "loss": 0.4}]
    page = build_summary(
        "<b>", epochs, pictures={}, pictures_epoch=0, seconds=61, versions={"torch": "2"}, hashes={"data": "ab"}
    )
    assert "&lt;b&gt;" in page and "<b>" not in page and "0:01:01" in page
    assert "Best epoch 1 of 2: 20.00 dB" in page


def test_trackers_are_refused_in_one_line(monkeypatch):
    """An unknown one by the list, an absent one with the way to install it."""
    check_tracking(None)
    with pytest.raises(UserError, match="tracker must be one of mlflow, wandb or null, got 'other'"):
        check_tracking("other")
    monkeypatch.setattr("progressive_cascade.training.tracking.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"got wandb: pip install 'progressive-cascade\[tracking\]'"):
        check_tracking("wandb")
