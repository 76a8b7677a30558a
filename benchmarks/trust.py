# SPDX-License-Identifier: Apache-2.0
"""Whether expected errors can be trusted: against true ones, on patients that the calibration had not seen.

    python benchmarks/trust.py --dataset dataset                 # about 40 s a reconstruction on one core, resumable
    python benchmarks/trust.py --dataset dataset --without-test  # the calibration's patients alone

Protocol: radiographs are simulated from CTs at 256³, taken and told as `evaluation/perturbed.py` says; `reconstruct`
does what it does by default, up to 128³ and interpolated unless nominal. Training CTs come as mirror images, which the
weights have not seen as such; the validation CT and phantoms (seeds from 600,000) as they are. Each patient is expected
by terms, lines and intervals that the others chose and fitted (nested leave-one-patient-out), sigma recalibrated by the
others. Test patients come last, by the shipped file; they choose nothing. Writes ``trust.json``, from which `make
tables` makes the tables of RESULTS.md.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from progressive_cascade.errors import UserError
from progressive_cascade.evaluation.sigma import judge_sigma
from progressive_cascade.evaluation.trials import ERRORS, Trials, plan_trials
from progressive_cascade.evaluation.trust import fit_trust, summarize
from progressive_cascade.inference.reconstruct import default_checkpoint, wide_checkpoint
from progressive_cascade.inference.trust import Trust, load_trust
from progressive_cascade.inference.uncertainty import default_uncertainty
from progressive_cascade.io import finite, save_json
from progressive_cascade.io.released import file_hash

RESULTS = Path(__file__).parent / "results"


def expect_all(records: Sequence[Mapping[str, Any]], trust: Trust) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A row for every error that is expected of these cases, and those of which none is, with the reason."""
    rows, refused = [], []
    for record in records:
        signs = {name: math.nan if value is None else float(value) for name, value in record["signs"].items()}
        found = trust.expect(signs)
        told = {name: record[name] for name in ("name", "patient", "group", "perturbation")}
        if "reason" in found:
            refused.append({**told, "reason": found["reason"]})
        for error in ERRORS:
            if error in found and record["errors"][error] is not None:
                expected = {"expected": found[error]["value"], "interval": found[error]["interval"]}
                rows.append({"error": error, **told, "true": record["errors"][error], **expected})
    return rows, refused


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Reconstructs what is left, judges, and returns what the JSON holds."""
    trials = Trials(default_checkpoint(), wide_checkpoint(), default_uncertainty(), options.cache, options.device)
    plan = plan_trials(options.dataset, phantoms=options.phantoms, perturbations=options.perturbations)
    records = list(trials.collect(plan[: options.trials]))
    _, report = fit_trust(records, checkpoints={}, uncertainty="", refine_steps=0)
    weights = {path.name: file_hash(path) for path in (default_checkpoint(), wide_checkpoint())}
    report |= {"weights": weights, "calibration": len(records)}
    if options.without_test:
        return report
    plan = plan_trials(options.dataset, phantoms=2, perturbations=options.test_perturbations, section="test")
    records, trust = list(trials.collect(plan[: options.test_trials])), load_trust()
    rows, refused = expect_all(records, trust)
    report["test"] = {"rows": rows, "refused": refused, "errors": summarize(rows)}
    patients = [record for record in records if record["group"] == "test" and not record["undeclared"]]
    report["test"]["sigma"] = judge_sigma(patients, trust.sigma)
    return report


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, help="folder written by `prepare`")
    parser.add_argument("--phantoms", type=int, default=10, help="of the calibration")
    parser.add_argument("--perturbations", type=int, default=2, help="of each CT of the calibration")
    parser.add_argument("--trials", type=int, help="the first of the calibration alone")
    parser.add_argument("--test-perturbations", type=int, default=2, help="of each test patient")
    parser.add_argument("--test-trials", type=int, help="the first of the test patients' alone")
    parser.add_argument("--without-test", action="store_true", help="leave the test patients alone")
    parser.add_argument("--cache", type=Path, default=Path("runs/trust"), help="folder of finished reconstructions")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write."""
    options = parse_options(arguments)
    try:
        save_json(finite(run(options)), options.output / "trust.json")
    except (UserError, FileNotFoundError) as error:
        print(f"trust: error: {error}", file=sys.stderr)
        return 2
    print(options.output / "trust.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
