# SPDX-License-Identifier: Apache-2.0
"""``python -m tools.fuzzing --mutants 500``: mutants of every kind of input, each in a process of its own."""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

from tools.fuzzing.inputs import KINDS, write_inputs
from tools.fuzzing.trial import MAX_BYTES, MAX_SECONDS, Outcome, try_mutant

# Seconds of the clock, on a machine that has much else to do.
_LONGEST_WAIT = 20 * MAX_SECONDS


def main() -> int:
    """Tries the mutants, prints a table, and says what fell.

    Returns:
        0 if every mutant ended as it may, else 1.
    """
    parser = argparse.ArgumentParser(description="Damaged inputs through every command.")
    parser.add_argument("--mutants", type=int, default=500, help="how many (default: 500)")
    parser.add_argument("--seed", type=int, default=0, help="of the first mutant of every kind (default: 0)")
    parser.add_argument("--kind", nargs="+", choices=list(KINDS), default=list(KINDS), help="default: all")
    parser.add_argument("--processes", type=int, default=2, help="at once (default: 2)")
    parser.add_argument("--only-read", action="store_true", help="stop where a CT is placed or reconstructed")
    options = parser.parse_args()
    jobs = [
        (options.kind[i % len(options.kind)], options.seed + i // len(options.kind)) for i in range(options.mutants)
    ]
    outcomes = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.processes) as pool:
        inputs = Path(folder) / "inputs"
        write_inputs(inputs)
        for outcome in pool.map(lambda job: _try_apart(job[0], job[1], inputs, options.only_read), jobs):
            outcomes.append(outcome)
            if not outcome.is_allowed:
                print(
                    f"{outcome.kind} {outcome.seed}: {outcome.ending}, {outcome.seconds:.0f} s\n{outcome.detail}",
                    flush=True,
                )
    _print_table(outcomes)
    return 0 if all(outcome.is_allowed for outcome in outcomes) else 1


def _try_apart(kind: str, seed: int, inputs: Path, only_read: bool) -> Outcome:
    """A mutant in a forked process that dies when it takes too much memory or processor time."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(kind, seed, inputs, only_read, sender))
    process.start()
    sender.close()
    try:
        outcome = receiver.recv() if receiver.poll(_LONGEST_WAIT) else None
    except EOFError:
        outcome = None
    process.join(5 if outcome is None else None)
    if outcome is None:
        process.kill()
        process.join()
        return Outcome(kind, seed, f"died ({process.exitcode})", "", MAX_SECONDS)
    return outcome


def _child(kind: str, seed: int, inputs: Path, only_read: bool, sender: Connection) -> None:
    used = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (used + MAX_BYTES, used + MAX_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS, MAX_SECONDS))
    with tempfile.TemporaryDirectory() as folder:
        sender.send(try_mutant(kind, seed, inputs, Path(folder), only_read=only_read))


def _print_table(outcomes: list[Outcome]) -> None:
    print("| input | mutants | valid result | one line | wrong | longest |\n|---|---|---|---|---|---|")
    for kind in KINDS:
        of_kind = [outcome for outcome in outcomes if outcome.kind == kind]
        if of_kind:
            counts = Counter(outcome.ending if outcome.is_allowed else "wrong" for outcome in of_kind)
            numbers = " | ".join(str(counts[name]) for name in ("result", "one line", "wrong"))
            print(f"| {kind} | {len(of_kind)} | {numbers} | {max(o.seconds for o in of_kind):.1f} s |")
    allowed = sum(outcome.is_allowed for outcome in outcomes)
    print(f"{allowed}/{len(outcomes)} ended in a valid result or in one line")


if __name__ == "__main__":
    sys.exit(main())
