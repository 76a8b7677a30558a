# SPDX-License-Identifier: Apache-2.0
"""Trainings that are killed again and again, and pairs of processes, compared with one that is left alone."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from progressive_cascade.training.kept import list_states, load_state
from tests.support.processes import Child, same, start_ranks, tiny_settings, train

KEPT = ("network", "average", "optimizer", "lr_scheduler", "clip", "best", "epoch", "iteration")
"""Parts of a state that do not depend on places and times."""
LOSSES = {
    1: {"l1": 1.0, "mse": 5.0},
    2: {"l1": 1.0, "mse": 5.0, "ssim": 0.3, "perceptual": 0.005},
    3: {"l1": 1.0, "mse": 5.0, "ssim": 0.3, "perceptual": 0.005, "gradient": 0.5, "reprojection": 0.05},
}
"""Each stage's own loss, as far as a miniature can have it."""


@dataclass(frozen=True)
class Miniature:
    """A stage of a miniature cascade, trained in one or two processes.

    Args:
        folder: for its weights, states and logs.
        cache: of phantoms.
        source: of :func:`~tests.support.exported.make_source`, with weights of all stages.
        stage: 1, 2 or 3.
        ranks: processes.
    """

    folder: Path
    cache: Path
    source: Path
    stage: int = 1
    ranks: int = 1

    def settings(self, **changes: Any) -> dict[str, Any]:
        """Settings with the stage before's weights."""
        before = f"stage{self.stage - 1}_best.pt"
        predecessor = {"predecessor": str(self.source / "models" / before)} if self.stage > 1 else {}
        return tiny_settings(self.folder, self.cache, self.stage, **{**predecessor, **changes})

    def start(self, settings: dict[str, Any]) -> list[Child]:
        """One process, or two that train together."""
        if self.ranks > 1:
            return start_ranks(self.folder, settings, self.stage)
        return [Child(self.folder / "log", train, settings, self.stage)]

    @property
    def states(self) -> Path:
        """Folder of the states."""
        return self.folder / f"logs{self.stage}" / "checkpoints"

    def end(self) -> dict[str, Any]:
        """The last state."""
        return load_state(list_states(self.states)[0])

    def best(self) -> Any:
        """The best weights."""
        return torch.load(self.folder / "models" / f"stage{self.stage}_best.pt", weights_only=True)


def differences(one: Miniature, other: Miniature) -> list[str]:
    """What of two runs' ends is not the same to the bit."""
    states = [run.end() for run in (one, other)]
    different = [key for key in KEPT if not same(states[0][key], states[1][key])]
    return different + ([] if same(one.best(), other.best()) else ["best weights"])


def kills(run: Miniature, count: int, seed: int) -> tuple[bool, str]:
    """Kills one process of a run of 60 steps again and again: while it starts, or up to five steps after a state.

    Returns:
        Whether its end is that of a run that was left alone, to the bit, and what happened.
    """
    draw = random.Random(f"{seed} {run.stage} {run.ranks}")
    alone, killed = (replace(run, folder=run.folder / name) for name in ("alone", "killed"))
    # As much chance as a stage has, six epochs, and files so rare that some steps are lost with each kill.
    changes: dict[str, Any] = {
        "epochs": 6, "epoch_size": 20, "batch_size": 2 // run.ranks, "resume": "auto", "checkpoint_minutes": 0.003,
        "loss_weights": {"l1": 1.0, "mse": 5.0, "perceptual": 0.005, "reprojection": 0.05},
        "num_validation_phantoms": 2,
    }  # fmt: skip
    for _ in range(2):  # the second time with a full cache of phantoms
        shutil.rmtree(alone.folder, ignore_errors=True)
        begun = time.monotonic()
        children = alone.start(alone.settings(**changes))
        children[0].wait_for(lambda: bool(list_states(alone.states)), 600)
        first = time.monotonic() - begun
        if any(child.wait(600) for child in children):
            return False, "the run that was left alone failed"
    step = (time.monotonic() - begun - first) / 60
    moments, different, rounds = [], [], 0
    while len(moments) < count:
        shutil.rmtree(killed.folder, ignore_errors=True)
        rounds, codes = rounds + 1, None
        while codes is None:
            early = draw.random() < 0.25
            seconds = draw.uniform(0.1, 1) * first if early else draw.uniform(0, 5) * step
            seconds = seconds if len(moments) < count else None
            codes = _attempt(killed, killed.settings(**changes), seconds, early=early, victim=draw.randrange(run.ranks))
            if codes is None:
                moments.append(int(states[0].stem[5:]) if (states := list_states(killed.states)) else 0)
        if any(codes):
            return False, f"ended by itself with exit codes {codes}"
        different += differences(alone, killed)
    told = f"{count} kills in {rounds} run{'s' if rounds > 1 else ''}, after states of steps {_list(moments)} of 60"
    return not different, f"{told}: end {f'different: {different}' if different else 'bit-identical'}"


def _attempt(
    run: Miniature, settings: dict[str, Any], seconds: float | None, *, early: bool, victim: int
) -> list[int] | None:
    """Starts a run and kills one of its processes, so many seconds after its start or its first state (None: never).

    Returns:
        None if it was killed, else the exit codes.
    """
    before = list_states(run.states)[:1]
    children = run.start(settings)
    if seconds is not None and not early:
        children[0].wait_for(lambda: list_states(run.states)[:1] != before, 600)
    end = time.monotonic() + (3600 if seconds is None else seconds)
    while time.monotonic() < end and all(child.process.is_alive() for child in children):
        time.sleep(0.01)
    struck = all(child.process.is_alive() for child in children)
    if struck:
        children[victim].signal(signal.SIGKILL)
        _end_the_others(children)
    codes = [child.wait(600) for child in children]
    return None if struck else codes


def _end_the_others(children: Sequence[Child], patience: float = 60.0) -> None:
    """What torchrun does when a process is lost: who had not met it yet would wait for gloo's half hour."""
    for number in (0, signal.SIGTERM, signal.SIGKILL):
        for child in children:
            if number and child.process.is_alive():
                child.signal(number)
        end = time.monotonic() + patience
        while any(child.process.is_alive() for child in children) and time.monotonic() < end:
            time.sleep(0.1)


def _list(moments: list[int]) -> str:
    return ", ".join(str(moment) for moment in moments)


def compare_ranks(run: Miniature) -> tuple[bool, str]:
    """Ten steps of a stage's own loss by one process, and by two with half the batch each.

    Returns:
        Whether weights and their average agree to 1e-5, and by how much they differ.
    """
    one, two = (replace(run, folder=run.folder / str(ranks), ranks=ranks) for ranks in (1, 2))
    for each in (one, two):
        settings = each.settings(
            epochs=1, epoch_size=20, batch_size=2 // each.ranks, checkpoint_minutes=10, num_validation_phantoms=3,
            loss_weights=LOSSES[run.stage],
        )  # fmt: skip
        children = each.start(settings)
        if any(child.wait(600) for child in children):
            return False, " ".join(child.text() for child in children)
    ends = [each.end() for each in (one, two)]
    weights = [{**end["network"], **{f"average {k}": v for k, v in end["average"]["network"].items()}} for end in ends]
    far = max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0])
    scores = abs(ends[0]["best"]["best_metric"] - ends[1]["best"]["best_metric"])
    files = len(list(two.folder.rglob("step_*.pt")))
    good = far <= 1e-5 and scores <= 1e-3 and ends[0]["iteration"] == ends[1]["iteration"] == 10 and files == 1
    return good, f"weights differ by at most {far:.0e}, scores by {scores:.0e} dB; one process wrote {files} state"
