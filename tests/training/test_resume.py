# SPDX-License-Identifier: Apache-2.0
"""Laws of the state a run keeps: what is kept, how signals are answered, what is passed over and what refused."""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events

from progressive_cascade.errors import RunError, UserError
from progressive_cascade.training.identity import RunIdentity
from progressive_cascade.training.kept import list_states, load_state, save_state, state_path
from progressive_cascade.training.resume import ResumableCheckpoint
from progressive_cascade.training.stream import SampleStream
from progressive_cascade.training.trainer import StageTrainer
from tests.support.processes import Child


def _objects() -> dict[str, Any]:
    layer = torch.nn.Linear(2, 1)
    return {"network": layer, "optimizer": torch.optim.AdamW(layer.parameters(), lr=0.1)}


def _engine(objects: dict[str, Any], seen: list[int]) -> Engine:
    def step(engine, batch):
        seen.append(batch)
        objects["optimizer"].zero_grad()
        objects["network"](torch.full((1, 2), float(batch))).sum().backward()
        objects["optimizer"].step()

    return Engine(step)


class _Loader:
    """Case numbers of a stream, one at a time."""

    def __init__(self, stream: SampleStream) -> None:
        self.stream = stream

    def __iter__(self):
        return (draw for _, draw, _ in self.stream)

    def __len__(self):
        return len(self.stream)


def _run(folder: Path, epochs: int, *, stop: int = 0, resume: bool | str = "auto", objects: Any = None) -> list[int]:
    """Trains epochs of three steps from five cases; stops dead after a step. The samples it saw."""
    objects = _objects() if objects is None else objects
    stream, seen = SampleStream(range(5), batch_size=1), []
    engine = _engine(objects, seen)
    handler = ResumableCheckpoint(folder, objects, stream=stream, resume=resume, minutes=1e-9)
    handler.attach(engine)
    if stop:

        @engine.on(Events.ITERATION_STARTED(once=stop))
        def die() -> None:
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        engine.run(_Loader(stream), max_epochs=epochs, epoch_length=3)
    return seen


def test_a_run_goes_on_within_an_epoch(tmp_path):
    """The samples go on where they stopped, within a pass and an epoch; no sample comes twice or is left out."""
    assert _run(tmp_path, 3, stop=5) == [0, 1, 2, 3]
    assert [path.name for path in list_states(tmp_path)] == ["step_00000004.pt", "step_00000003.pt"]
    assert _run(tmp_path, 3) == [4, 5, 6, 7, 8]
    state = load_state(list_states(tmp_path)[0])
    assert (state["epoch"], state["iteration"]) == (3, 9)


def test_a_fresh_run_replaces_an_older_one(tmp_path):
    """Without resuming, states that an earlier run left do not outlive the first own one."""
    _run(tmp_path, 3)
    assert _run(tmp_path, 1, resume=False) == [0, 1, 2]
    assert [path.name for path in list_states(tmp_path)] == ["step_00000003.pt", "step_00000002.pt"]


@pytest.mark.parametrize("harm", ["cut", "bit", "empty"])
def test_a_damaged_state_is_passed_over(harm, tmp_path, capsys):
    """Cut short, one bit turned, or empty: the one before is taken, with a line that names both."""
    _run(tmp_path, 2)
    newest, before = list_states(tmp_path)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes({"cut": bytes(content[:1000]), "bit": bytes(content), "empty": b""}[harm])
    assert _run(tmp_path, 2) == [5]
    told = capsys.readouterr().out
    assert f"{newest} is damaged" in told and f"passed over for {before.name}" in told
    for path in list_states(tmp_path):
        path.write_bytes(b"no state")
    with pytest.raises(RunError, match="holds 2 checkpoints, all damaged"):
        _run(tmp_path, 2)


def test_what_does_not_fit_is_refused(tmp_path):
    """No state where there must be one, a state of other objects, of another network."""
    with pytest.raises(UserError, match=r"resume must find a checkpoint in .*none"):
        _run(tmp_path / "none", 1, resume=True)
    _run(tmp_path, 1)
    with pytest.raises(UserError, match=r"must hold \['scheduler'\]; it is no checkpoint of this workflow"):
        _run(tmp_path, 2, objects={**_objects(), "scheduler": torch.nn.Identity()})
    with pytest.raises(UserError, match="must hold this network, got another"):
        _run(tmp_path, 2, objects={**_objects(), "network": torch.nn.Linear(3, 1)})
    with pytest.raises(ValueError, match="keep must be at least 1"):
        ResumableCheckpoint(tmp_path, {}, keep=0)


def test_a_full_or_lost_disk_leaves_what_there_was(tmp_path):
    """A state that cannot be written is one line that names the one before; nothing half-written stays."""
    save_state({"step": 1}, state_path(tmp_path, 1))
    blocked = state_path(tmp_path, 2)
    blocked.mkdir()  # a name that no file can take
    (blocked / "file").touch()
    with pytest.raises(RunError, match=r"step_00000002\.pt cannot be written: "):
        save_state({"step": 2}, blocked)
    assert load_state(state_path(tmp_path, 1)) == {"step": 1}
    assert {path.name for path in tmp_path.iterdir()} == {"step_00000001.pt", "step_00000002.pt"}


def test_an_identity_knows_data_and_order(tmp_path):
    """A file that changed, a case more, another predecessor: each is named; an equal one has the same hashes."""
    label = tmp_path / "a.nii.gz"
    label.write_bytes(b"1" * 100)
    items = [{"label": str(label), "valid": str(label), "case": "a"}, {"seed": 3}]

    def identity(items: list[Any]) -> RunIdentity:
        return RunIdentity({"training": items}, str(tmp_path / "before.pt"))

    first = identity(items)
    assert identity(items).hashes() == first.hashes() and not identity(items).differences(first.state_dict())
    assert identity([*items, {"seed": 4}]).differences(first.state_dict())["data"] == [
        "training: list of 2 cases is gone",
        "training: list of 3 cases is new",
    ]
    label.write_bytes(b"2" * 100)
    (tmp_path / "before.pt").write_bytes(b"weights")
    assert identity(items).differences(first.state_dict())["data"] == [
        "predecessor is new",
        "training: label a.nii.gz has changed",
        "training: valid a.nii.gz has changed",
    ]
    other = {**first.state_dict(), "code": {**first.parts["code"], "training/engine.py": "?"}}
    assert first.differences(other)["code"] == ["training/engine.py has changed"]
    assert "cli/training.py" not in first.parts["code"]


def _slow_training(folder: Path, steps: int, seconds: float = 0.02) -> None:
    """A trainer whose steps take 20 ms."""
    layer = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)

    def prepare(batch, *_, **__):
        time.sleep(seconds if trainer.state.iteration > 2 else 0)
        return torch.ones(1, 1), torch.ones(1, 1)

    trainer = StageTrainer(
        device="cpu", max_epochs=1, train_data_loader=[0] * steps, network=layer, optimizer=optimizer,
        loss_function=torch.nn.MSELoss(), prepare_batch=prepare, decollate=False,
        train_handlers=[ResumableCheckpoint(folder, {"network": layer}, resume="auto")],
    )  # fmt: skip
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: print("running", flush=True))
    trainer.run()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_writes_a_state_and_ends_the_run(number, code, tmp_path):
    """One state, of the step that was finished, and the exit code of the signal."""
    child = Child(tmp_path / "log", _slow_training, tmp_path / "states", 2000)
    child.wait_for(lambda: "running" in child.text())
    child.signal(number)
    assert child.wait() == code, child.text()
    (path,) = list_states(tmp_path / "states")
    assert f"stopped after step {load_state(path)['iteration']};" in child.text()


def test_a_warning_writes_a_state_and_goes_on(tmp_path):
    """SIGUSR1: the state is there before the epoch is over, and the run ends as if nothing had been."""
    child = Child(tmp_path / "log", _slow_training, tmp_path / "states", 100)
    child.wait_for(lambda: "running" in child.text())
    child.signal(signal.SIGUSR1)
    child.wait_for(lambda: bool(list_states(tmp_path / "states")))
    assert child.process.is_alive()
    assert child.wait() == 0
    assert load_state(list_states(tmp_path / "states")[0])["iteration"] == 100
    assert load_state(list_states(tmp_path / "states")[1])["iteration"] < 100


def test_a_second_interrupt_ends_at_once(tmp_path):
    """Ctrl-C twice does not wait for the step, and writes nothing."""
    child = Child(tmp_path / "log", _slow_training, tmp_path / "states", 9, 60.0)
    child.wait_for(lambda: "running" in child.text())
    child.signal(signal.SIGINT)
    child.wait_for(lambda: "once more to stop at once" in child.text())
    child.signal(signal.SIGINT)
    assert child.wait(30) != 0
    assert list_states(tmp_path / "states") == []
