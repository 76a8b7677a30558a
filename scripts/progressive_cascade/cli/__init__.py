# SPDX-License-Identifier: Apache-2.0
"""The console script `progressive-cascade`: one file per group of commands, heavy imports inside the commands.

A user's mistake is told in one line on stderr with exit code 2, what breaks underway with exit code 1; `--debug` shows
the traceback instead.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from progressive_cascade.cli.common import (
    HelpFormatter,
    Parser,
    broke_underway,
    describe_error,
    keep_freed_memory,
    print_what_the_terminal_can,
)

_EPILOG = """\
from nothing to a CT, in order:
  progressive-cascade check
  progressive-cascade phantom --seed 7 --output ct.nii.gz
  progressive-cascade simulate ct.nii.gz --output xrays
  progressive-cascade reconstruct --pa xrays/pa.nii.gz --lateral xrays/lateral.nii.gz \\
      --geometry xrays/geometry.json --output reconstruction.nii.gz

CT is in HU, lengths in mm, radiographs are line integrals of mu (no unit). Every image is NIfTI.
`progressive-cascade COMMAND --help` explains a command. For research only, not for diagnosis.
"""


def build_parser() -> Parser:
    """The parser of the whole command line."""
    from progressive_cascade import __version__
    from progressive_cascade.cli import (
        calibration,
        comparison,
        dataset,
        demo,
        evaluation,
        exchange,
        export,
        phantom,
        reconstruction,
        report,
        service,
        simulation,
        training,
    )

    parser = Parser(
        prog="progressive-cascade",
        description="Two chest X-rays in, a 256³ CT out.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"progressive-cascade {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    demo.add_check(commands)
    demo.add_demo(commands)
    phantom.add_phantom(commands)
    simulation.add_simulate(commands)
    reconstruction.add_reconstruct(commands)
    report.add_report(commands)
    comparison.add_compare(commands)
    dataset.add_prepare(commands)
    training.add_train(commands)
    evaluation.add_evaluate(commands)
    calibration.add_calibrate(commands)
    export.add_export(commands)
    service.add_serve(commands)
    exchange.add_watch(commands)
    exchange.add_listen(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: arguments without the program's name; by default those of the process.

    Returns:
        The exit code: 0, 2 after a user's mistake, 1 where something broke underway, 3 after a warning with `--strict`,
        130 after an interruption.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    print_what_the_terminal_can()
    if argv is None:
        keep_freed_memory()
    from progressive_cascade.cli import exchange

    own, rest = exchange.split(arguments)
    debug = "--debug" in own
    try:
        options = build_parser().parse_args(own, argparse.Namespace(arguments=rest))
        code = options.run(options)
    except KeyboardInterrupt:
        print("progressive-cascade: interrupted", file=sys.stderr)
        return 130
    except SystemExit as request:  # argparse after --help and --version
        return int(request.code or 0)
    except Exception as error:
        message = describe_error(error)
        if debug or message is None:
            raise
        print(f"progressive-cascade: error: {message}", file=sys.stderr)
        return 1 if broke_underway(error) else 2
    return int(code or 0)
