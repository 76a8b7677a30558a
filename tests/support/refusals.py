# SPDX-License-Identifier: Apache-2.0
"""Trainings that cannot be meant, typed at the command line: one line each, before the first step."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from progressive_cascade.training.kept import list_states, load_state
from tests.support.faults import Outcome, make_dataset
from tests.support.faults_of_machines import refusal
from tests.support.kills import Miniature, differences
from tests.support.processes import Child, as_options, command


def _refused(run: Miniature, words: str, *arguments: str, **changes: Any) -> Outcome:
    child = Child(run.folder / "log", command, [*as_options(run.settings(**changes), run.stage), *arguments])
    code, line = child.wait(120), refusal(child)
    good = code == 2 and words in line and not list_states(run.states)
    return good, f"exit {code}: {line.replace(str(run.folder), '…').replace(str(run.source.parent), '…')}"


def _with_dataset(run: Miniature, words: str, change: Callable[[Path, dict[str, Any]], None]) -> Outcome:
    dataset = make_dataset(run.folder / "dataset")
    datalist = json.loads((dataset / "datalist.json").read_text())
    change(dataset, datalist)
    (dataset / "datalist.json").write_text(json.dumps(datalist))
    return _refused(run, words, dataset_dir=str(dataset), num_phantoms=0)


def patient_in_two_sections(run: Miniature) -> Outcome:
    """One ID in training and validation."""
    return _with_dataset(
        run, "must not share patients", lambda _, datalist: datalist["validation"][0].update(patient="p0")
    )


def two_cts_of_one_name(run: Miniature) -> Outcome:
    """Two patients whose CTs have one ID."""

    def copy(dataset: Path, datalist: dict[str, Any]) -> None:
        (dataset / "other").mkdir()
        os.link(dataset / "ct" / "p0.nii.gz", dataset / "other" / "p0.nii.gz")
        datalist["training"][1]["label"] = "other/p0.nii.gz"

    return _with_dataset(run, "case p0 must be one CT", copy)


def missing_file(run: Miniature) -> Outcome:
    """The list names a file that is not there."""
    return _with_dataset(run, "must be an existing file", lambda dataset, _: (dataset / "ct" / "p1.nii.gz").unlink())


def more_ranks_than_cases(run: Miniature) -> Outcome:
    """Two processes and one validation case."""
    child = Child(run.folder / "log", command, [*as_options(run.settings()), "--processes", "2"])
    code = child.wait(240)
    words = "num_validation_phantoms must be at least 2 for 2 processes, got 1"
    return code == 1 and words in child.text() and not list_states(run.states), f"exit {code}: {words}"


def other_stage(run: Miniature) -> Outcome:
    """Stage 3 from the weights of stage 1."""
    wrong = str(run.source / "models" / "stage1_best.pt")
    return _refused(replace(run, stage=3), "stage1_best.pt", predecessor=wrong)


def other_geometry(run: Miniature) -> Outcome:
    """Stage 2 for another source than the weights of stage 1."""
    stage = replace(run, stage=2)
    geometry = {**stage.settings()["geometry"], "source_to_detector": 1400, "source_to_isocenter": 1100}
    return _refused(stage, "geometry", geometry=geometry)


def finished_run(run: Miniature) -> Outcome:
    """Taken up again when it is finished: it says so, trains nothing, and ends well."""
    options = [*as_options(run.settings()), "--resume"]
    first = Child(run.folder / "first", command, as_options(run.settings()))
    first.wait(240)
    before = list_states(run.states)
    child = Child(run.folder / "log", command, options)
    code = child.wait(240)
    lines = [line for line in child.text().splitlines() if "this run is finished" in line]
    told = lines[0].replace(str(run.folder), "…") if lines else child.text()
    return code == 0 and len(lines) == 1 and list_states(run.states) == before, f"exit {code}: {told}"


def clock_that_jumps(run: Miniature) -> Outcome:
    """States dated into the next century and into 1990: the step counts, not the date."""
    child = Child(run.folder / "log", command, as_options(run.settings(epochs=500)))
    child.wait_for(lambda: len(list_states(run.states)) > 1, 240)
    child.signal(signal.SIGTERM)
    child.wait(240)
    newest, older = list_states(run.states)[:2]
    os.utime(newest, (0, 631152000))
    os.utime(older, (4e9, 4e9))
    step = load_state(newest)["iteration"]
    again = Child(run.folder / "again", command, as_options(run.settings(epochs=500)))
    again.wait_for(lambda: list_states(run.states)[0] != newest, 240)
    again.signal(signal.SIGTERM)
    again.wait(240)
    told = f"going on from {newest}"
    return told in again.text(), f"went on from step {step}, the newest by its number"


REFUSALS: dict[str, Callable[[Miniature], Outcome]] = {
    "one patient in two sections": patient_in_two_sections,
    "two CTs of one name": two_cts_of_one_name,
    "the datalist names a missing file": missing_file,
    "more processes than cases": more_ranks_than_cases,
    "weights of another stage": other_stage,
    "weights of another geometry": other_geometry,
    "resume of a finished run": finished_run,
    "a clock that jumps": clock_that_jumps,
}
"""By name: types a command in a folder of its own; whether it was answered well, and how."""


def restarted(run: Miniature) -> Outcome:
    """`--processes 2 --max-restarts 1` and a kill: the launcher starts both again, and the end is the same."""
    alone, struck = (replace(run, folder=run.folder / name, ranks=2) for name in ("alone", "struck"))
    changes: dict[str, Any] = {"epochs": 6, "batch_size": 1, "num_validation_phantoms": 2}
    if any(child.wait(600) for child in alone.start(alone.settings(**changes))):
        return False, "the run that was left alone failed"
    options = [*as_options(struck.settings(**changes)), "--processes", "2", "--max-restarts", "1"]
    child = Child(struck.folder / "log", command, options)
    child.wait_for(lambda: len(list_states(struck.states)) > 1, 600)
    workers = Path(f"/proc/{child.process.pid}/task/{child.process.pid}/children").read_text().split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    killed, begun = list_states(struck.states)[0].stem, time.monotonic()
    code = child.wait(600)
    different = differences(alone, struck) if code == 0 else ["no end"]
    told = f"killed after {killed}, exit {code} after {time.monotonic() - begun:.0f} s more; end "
    return code == 0 and not different, told + (f"different: {different}" if different else "bit-identical")
