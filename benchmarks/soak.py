# SPDX-License-Identifier: Apache-2.0
"""Trainings that are killed, starved and robbed, by real processes and signals; what became of each, as a table.

    PYTHONPATH=. python benchmarks/soak.py [--kills 20] [--only kill] [--seed 0] [--afresh]      (`make soak`)

Miniature cascades (8³, 16³, 32³) on two cores. A killed run must end with the weights of one that was left alone, to
the bit; everything else must end in time, in one line that says what broke, with the last checkpoint whole. Writes
benchmarks/results/soak.json and the table of bundle/docs/RELIABILITY.md after every row; interrupted, it goes on with
the rows that are missing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
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
from tests.support.faults_of_machines import MACHINES
from tests.support.kills import Miniature, compare_ranks, kills
from tests.support.mounts import CannotMountError
from tests.support.refusals import REFUSALS, restarted

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "soak.json"
PAGE = ROOT / "bundle" / "docs" / "RELIABILITY.md"

Run = Callable[[Path], tuple[bool, str]]


def rows(arguments: argparse.Namespace, work: Path) -> dict[str, Run]:
    """Everything there is to be run, by name: what it does in a folder."""
    source, cache = work / "source" / "bundle", work / "cache"
    found: dict[str, Run] = {}
    for ranks in (1, 2):
        for stage in (1, 2, 3):
            name = f"kill -9, stage {stage}, {ranks} process{'es' if ranks > 1 else ''}"
            found[name] = lambda folder, stage=stage, ranks=ranks: kills(
                Miniature(folder, cache, source, stage, ranks), arguments.kills, arguments.seed
            )
    for stage in (1, 2, 3):
        found[f"two processes against one, stage {stage}"] = lambda folder, stage=stage: compare_ranks(
            Miniature(folder, cache, source, stage)
        )
    faults = {**FAULTS, **MACHINES}
    found |= {name: lambda folder, fault=fault: fault(folder, cache) for name, fault in faults.items()}
    typed = {"one of two processes killed, --max-restarts 1": restarted, **REFUSALS}
    found |= {name: lambda folder, ask=ask: ask(Miniature(folder, cache, source)) for name, ask in typed.items()}
    return found


def soak(arguments: argparse.Namespace, work: Path) -> bool:
    """Runs the rows that are asked for and not there yet, and writes each; whether all went well."""
    make_source(work / "source")
    done = {} if arguments.afresh else {row["case"]: row for row in read_rows()}
    all_rows = rows(arguments, work)
    for name, run in all_rows.items():
        if name in done if not arguments.only else arguments.only not in name:
            continue
        begun = time.monotonic()
        try:
            good, told = run(work / re.sub(r"\W+", "_", name))
        except CannotMountError as error:
            good, told = True, f"not tried: {error}"
        seconds = round(time.monotonic() - begun, 1)
        done[name] = {"case": name, "good": good, "outcome": told, "seconds": seconds, "commit": commit()}
        print(f"{'ok  ' if good else 'FAIL'}  {name}: {told} ({seconds} s)", flush=True)
        found = [done[each] for each in all_rows if each in done]
        content = {"cores": os.cpu_count(), "torch": torch.__version__, "rows": found}
        RESULTS.write_text(json.dumps(content, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
        write_page(found)
    return all(row["good"] for row in done.values())


def read_rows() -> list[dict[str, Any]]:
    """What an earlier attempt has found."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.exists() else []


def commit() -> str:
    """The checkout's commit."""
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return asked.stdout.strip()


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
    parser.add_argument("--only", help="rows whose name holds this, also those that are there")
    parser.add_argument("--afresh", action="store_true", help="every row anew")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return 0 if soak(arguments, Path(folder)) else 1


if __name__ == "__main__":
    sys.exit(main())
