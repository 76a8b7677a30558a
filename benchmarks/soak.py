# SPDX-License-Identifier: Apache-2.0
"""Trainings that are killed, starved and robbed, by real processes and signals; what became of each, as a table.

    PYTHONPATH=. python benchmarks/soak.py [--kills 20] [--only kill] [--seed 0]      (`make soak`)

Miniature cascades (8³, 16³, 32³) on two cores. A killed run must end with the weights of one that was left alone, to
the bit; everything else must end in time, in one line that says what broke, with the last checkpoint whole. Writes
benchmarks/results/soak.json and the table of bundle/docs/RELIABILITY.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tests.support.exported import make_source
from tests.support.faults import FAULTS
from tests.support.processes import Child, same, start_ranks, tiny_settings, train

from progressive_cascade.training.kept import list_states, load_state

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "soak.json"
PAGE = ROOT / "bundle" / "docs" / "RELIABILITY.md"
KEPT = ("network", "average", "optimizer", "lr_scheduler", "clip", "best", "epoch", "iteration")


def settings_of(folder: Path, cache: Path, source: Path, stage: int, ranks: int) -> dict[str, Any]:
    """A training of 60 steps in six epochs, with whatever a stage has that is random."""
    before = {"predecessor": str(source / "models" / f"stage{stage - 1}_best.pt")} if stage > 1 else {}
    return tiny_settings(
        folder, cache, stage, epochs=6, epoch_size=20, batch_size=2 // ranks, resume="auto",
        loss_weights={"l1": 1.0, "mse": 5.0, "perceptual": 0.005, "reprojection": 0.05},
        num_validation_phantoms=2, checkpoint_minutes=0.003, **before,
    )  # fmt: skip


def start(folder: Path, settings: dict[str, Any], stage: int, ranks: int) -> list[Child]:
    """One process, or two that train together."""
    return [Child(folder / "log", train, settings, stage)] if ranks == 1 else start_ranks(folder, settings, stage)


def kills(stage: int, ranks: int, count: int, work: Path, seed: int) -> tuple[bool, str]:
    """Kills a run at random moments, and compares its end with that of a run that was left alone."""
    draw = random.Random(f"{seed} {stage} {ranks}")
    folders = [work / f"{name}{stage}{ranks}" for name in ("alone", "killed")]
    options = [settings_of(folder, work / "cache", work, stage, ranks) for folder in folders]
    begun = time.monotonic()
    if any(child.wait(600) for child in start(folders[0], options[0], stage, ranks)):
        return False, "the run that was left alone failed"
    length = time.monotonic() - begun
    states, done, moments, different = folders[1] / f"logs{stage}" / "checkpoints", 0, [], []
    while done < count:
        shutil.rmtree(folders[1], ignore_errors=True)
        finished = False
        while not finished:
            children, before = start(folders[1], options[1], stage, ranks), len(moments)
            if done < count:
                end = time.monotonic() + draw.uniform(0.1, 0.8) * length
                while time.monotonic() < end and all(child.process.is_alive() for child in children):
                    time.sleep(0.01)
                if all(child.process.is_alive() for child in children):
                    draw.choice(children).signal(signal.SIGKILL)
                    done += 1
                    moments.append(int(list_states(states)[0].stem[5:]) if list_states(states) else 0)
            codes = [child.wait(600) for child in children]
            finished = not any(codes)
            if not finished and len(moments) == before:
                return False, f"ended by itself with exit codes {codes}"
        ends = [load_state(list_states(folder / f"logs{stage}" / "checkpoints")[0]) for folder in folders]
        different += [key for key in KEPT if not same(ends[0][key], ends[1][key])]
        best = [torch.load(folder / "models" / f"stage{stage}_best.pt", weights_only=True) for folder in folders]
        different += [] if same(*best) else ["best weights"]
    told = f"{done} kills, the last states before them of steps {min(moments)} to {max(moments)} of 60"
    return not different, f"{told}; ends {f'different: {different}' if different else 'bit-identical'}"


def rows(arguments: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    """Runs everything that was asked for."""
    make_source(work / "source")
    (work / "models").symlink_to(work / "source" / "bundle" / "models")
    cases: list[tuple[str, Callable[[Path], tuple[bool, str]]]] = [
        (
            f"kill -9, stage {stage}, {ranks} process{'es' if ranks > 1 else ''}",
            lambda folder, stage=stage, ranks=ranks: kills(stage, ranks, arguments.kills, work, arguments.seed),
        )
        for ranks in (1, 2)
        for stage in (1, 2, 3)
    ]
    cases += [(name, lambda folder, fault=fault: fault(folder, work / "cache")) for name, fault in FAULTS.items()]
    found = []
    for name, run in cases:
        if arguments.only and arguments.only not in name:
            continue
        begun = time.monotonic()
        good, told = run(work / re.sub(r"\W+", "_", name))
        found.append({"case": name, "good": good, "outcome": told, "seconds": round(time.monotonic() - begun, 1)})
        print(f"{'ok  ' if good else 'FAIL'}  {name}: {told} ({found[-1]['seconds']} s)", flush=True)
    return found


def write_page(found: list[dict[str, Any]]) -> None:
    """Puts the table between its marks."""
    lines = ["| what happens | outcome |", "|---|---|"]
    lines += [f"| {row['case']} | {row['outcome']}{'' if row['good'] else ' **(fails)**'} |" for row in found]
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition("<!-- soak -->\n")
    _, _, tail = rest.partition("<!-- end of soak -->")
    table = "\n".join(lines)
    PAGE.write_text(f"{head}<!-- soak -->\n{table}\n<!-- end of soak -->{tail}", encoding="utf-8")


def main() -> int:
    """Soak, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="per stage and number of processes")
    parser.add_argument("--only", help="cases whose name holds this; writes nothing")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = rows(arguments, Path(folder))
    if not arguments.only:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        content = {"commit": commit.stdout.strip(), "cores": os.cpu_count(), "torch": torch.__version__, "rows": found}
        RESULTS.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
        write_page(found)
    return 0 if found and all(row["good"] for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
