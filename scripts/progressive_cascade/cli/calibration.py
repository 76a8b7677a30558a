# SPDX-License-Identifier: Apache-2.0
"""`calibrate`: what error to expect of a reconstruction, learnt on patients whose truth is known."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from progressive_cascade.cli.common import (
    DEVICE_HELP,
    add_command,
    add_overwrite,
    check_output_file,
    select_device,
)
from progressive_cascade.cli.numbers import natural
from progressive_cascade.errors import UserError

_JSON = (".json",)


def add_calibrate(commands: Any) -> None:
    """Adds `calibrate`."""
    text = """
    Calibrate the expected error of reconstructions, and sigma by tissue.

    Takes radiographs of patients whose CT is known, well and not so well, some of them told wrongly; reconstructs them
    as `reconstruct` does with the shipped weights; and fits what the errors have in common with what a reconstruction
    shows of them. Training CTs come as mirror images, which the weights do not know; validation CTs as they are; test
    CTs never. About 40 s for each reconstruction on one core; an interrupted run goes on where it stopped.

    The result is a JSON file, by default trust.json beside the weights. It belongs to the weights it was made with.

    examples:
      progressive-cascade calibrate --dataset dataset --output trust.json
      progressive-cascade calibrate --phantoms 20 --output trust.json
    """
    parser = add_command(commands, "calibrate", run=run_calibrate, text=text)
    parser.add_argument("--dataset", type=Path, metavar="DATASET", help="folder written by `prepare`")
    parser.add_argument(
        "--models",
        type=Path,
        metavar="DIR",
        help="folder of model.pt, any_geometry.pt and uncertainty.pt (default: the bundle's)",
    )
    parser.add_argument("--phantoms", type=natural, default=2, metavar="N", help="unseen phantoms (default: 2)")
    parser.add_argument(
        "--perturbations", type=natural, default=2, metavar="N", help="for each CT, beside the plain pair (default: 2)"
    )
    parser.add_argument("--trials", type=natural, metavar="N", help="the first N reconstructions alone (default: all)")
    parser.add_argument(
        "--cache", type=Path, default=Path("runs/trust"), metavar="DIR", help="folder of finished reconstructions"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="calibration to write, .json (default: trust.json in --models)"
    )
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="also write what was found on unseen patients, .json"
    )
    parser.add_argument("--device", metavar="D", help=DEVICE_HELP)
    add_overwrite(parser)


def _models(folder: Path | None) -> tuple[Path, Path, Path, Path]:
    """The stand's weights, those for any geometry, those of sigma, and what is calibrated, of a folder."""
    from progressive_cascade.inference.reconstruct import default_checkpoint, wide_checkpoint
    from progressive_cascade.inference.trust import default_trust
    from progressive_cascade.inference.uncertainty import default_uncertainty

    usual = (default_checkpoint(), wide_checkpoint(), default_uncertainty(), default_trust())
    own, wide, sigma, trust = usual if folder is None else (folder / path.name for path in usual)
    for path in (own, wide, sigma):
        if not path.is_file():
            raise UserError(f"--models must name a folder that holds {path.name}, there is no {path}")
    return own, wide, sigma, trust


def _check_outputs(options: argparse.Namespace, output: Path) -> None:
    from progressive_cascade.paths import check_files

    check_output_file(output, _JSON)
    if options.report is not None:
        check_output_file(options.report, _JSON, "--report")
    check_files(
        reads={"--dataset": options.dataset},
        writes={"--output": [output], "--report": [] if options.report is None else [options.report]},
        overwrite=options.overwrite,
    )


def run_calibrate(options: argparse.Namespace) -> None:
    """Reconstructs what is left, fits, writes."""
    from progressive_cascade.evaluation.trials import Trials, plan_trials
    from progressive_cascade.evaluation.trust import fit_trust
    from progressive_cascade.inference.refine import DEFAULT_STEPS, REVISION
    from progressive_cascade.io import finite, save_json
    from progressive_cascade.io.released import file_hash
    from progressive_cascade.paths import record_trained

    own, wide, sigma, trust = _models(options.models)
    output = options.output or trust
    _check_outputs(options, output)
    plan = plan_trials(options.dataset, phantoms=options.phantoms, perturbations=options.perturbations)
    trials = Trials(own, wide, sigma, options.cache, select_device(options.device))
    records = list(trials.collect(plan[: options.trials]))
    content, report = fit_trust(
        records,
        checkpoints={file_hash(path): path.name for path in (own, wide)},
        uncertainty=file_hash(sigma),
        refine_steps=DEFAULT_STEPS,
        refine_revision=REVISION,
    )
    save_json(finite(content), output)
    record_trained(output)
    if options.report is not None:
        save_json(finite(report), options.report)
    for error, parts in report["errors"].items():
        found = parts["all"]
        print(
            f"{error}: rank correlation {found['rank_correlation']:.2f}, interval holds {found['coverage']:.0%} of "
            f"{found['cases']} cases of unseen patients"
        )
    print(output)
