# SPDX-License-Identifier: Apache-2.0
"""`export`: the bundle as a model zoo takes it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from progressive_cascade.cli.common import add_command, check_output_folder
from progressive_cascade.paths import check_files


def add_export(commands: Any) -> None:
    """Adds `export`."""
    text = """
    Write the bundle as one folder that needs nothing else of ours.

    DIR, new or empty, receives chest_xray_ct_reconstruction/ with configs, a copy of the package, weights, docs,
    licence and metadata.json. With torch, MONAI, ignite, nibabel and numpy it trains and reconstructs from inside
    that folder:

      python -m monai.bundle run --config_file configs/inference.json --dataset_dir XRAYS --output_dir OUT

    The same input gives the same bytes. All is written, or nothing.

    examples:
      progressive-cascade export --output zoo --zip
      progressive-cascade export --output zoo --models runs/first/models --published chest_xray_ct_reconstruction.zip
    """
    parser = add_command(commands, "export", run=run_export, text=text)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write, new or empty")
    parser.add_argument(
        "--stage", type=int, choices=(1, 2, 3), default=3, metavar="N", help="last stage of the cascade (default: 3)"
    )
    parser.add_argument("--zip", action="store_true", help="also write chest_xray_ct_reconstruction.zip")
    parser.add_argument(
        "--models", type=Path, metavar="DIR", help="folder with stageN_best.pt (default: the shipped weights)"
    )
    programs = parser.add_argument_group("programs without Python")
    programs.add_argument("--torchscript", action="store_true", help="also write models/model.ts")
    programs.add_argument("--onnx", action="store_true", help="also write models/model.onnx (needs onnx, onnxscript)")
    programs.add_argument("--triton", action="store_true", help="also write triton/, a model repository (needs onnx)")
    programs.add_argument(
        "--deploy", action="store_true", help="also write deploy/, manifests of a MONAI application package"
    )
    zoo = parser.add_argument_group("publishing")
    zoo.add_argument(
        "--large-files-url", default="", metavar="URL", help="where files above 25 MB will be, for large_files.yml"
    )
    zoo.add_argument(
        "--published",
        type=Path,
        metavar="BUNDLE",
        help="the last published bundle, folder or zip: its versions must keep their content",
    )


def run_export(options: argparse.Namespace) -> None:
    """Exports, then names what was written."""
    check_output_folder(options.output)
    # Whatever exists in the folder is refused by export_bundle itself: nothing is ever replaced.
    check_files(
        reads={"--models": options.models, "--published": options.published},
        writes={"--output": [options.output]},
        overwrite=True,
    )

    from progressive_cascade.export import Export, export_bundle

    chosen = Export(
        stage=options.stage,
        models=options.models,
        zip=options.zip,
        torchscript=options.torchscript,
        onnx=options.onnx,
        triton=options.triton,
        deploy=options.deploy,
        large_files_url=options.large_files_url,
        published=options.published,
    )
    written = export_bundle(options.output, chosen)
    for path in written:
        size = f"  {path.stat().st_size / 1e6:.1f} MB" if path.is_file() else ""
        print(f"{path}{size}")
    if len(written) > 1 + options.zip and not options.large_files_url:
        print("note: large_files.yml lacks the addresses of the files above 25 MB; --large-files-url gives them")
