# SPDX-License-Identifier: Apache-2.0
"""One folder that a model zoo, a clinic and a stranger's notebook can use as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from progressive_cascade.errors import UserError
from progressive_cascade.export.archive import (
    check_empty,
    files_in,
    read_published,
    staging,
    write_large_files,
    write_zip,
)
from progressive_cascade.export.configs import METADATA, for_stage, read_config, read_configs, to_text
from progressive_cascade.export.metadata import build_metadata
from progressive_cascade.export.programs import onnx_program, save_onnx, save_torchscript
from progressive_cascade.export.serving import write_application, write_triton
from progressive_cascade.export.weights import OTHER_GEOMETRIES, StageWeights, collect_weights, other_geometries
from progressive_cascade.io.released import MANIFEST, file_hash, manifest_text
from progressive_cascade.networks.cascade import NUM_STAGES
from progressive_cascade.paths import bundle_root

BUNDLE_NAME = "chest_xray_ct_reconstruction"
"""Name of the folder, as the zoo knows the bundle."""
_PACKAGE = Path(__file__).resolve().parents[1]
_PERCEPTUAL = "perceptual_ct.pt"


@dataclass(frozen=True)
class Export:
    """What to export beside configs, code, weights and docs.

    Attributes:
        stage: the bundle's cascade ends with this stage.
        models: folder of the stages' checkpoints; None: the bundle's own.
        zip: also write an archive.
        torchscript: also write ``models/model.ts``.
        onnx: also write ``models/model.onnx``.
        triton: also write ``triton/``, a model repository.
        deploy: also write ``deploy/``, the manifests of a MONAI application package.
        large_files_url: where files above the zoo's limit will be hosted.
        published: the bundle that was published last, a folder or a zip archive; None: nothing to compare with.
    """

    stage: int = NUM_STAGES
    models: Path | None = None
    zip: bool = False
    torchscript: bool = False
    onnx: bool = False
    triton: bool = False
    deploy: bool = False
    large_files_url: str = ""
    published: Path | None = None


def export_bundle(output: Path, options: Export | None = None) -> list[Path]:
    """Writes ``chest_xray_ct_reconstruction/`` into a folder: all of it, or nothing.

    Args:
        output: a new or an empty folder.
        options: what to export.

    Returns:
        The bundle's folder, the archive where it was asked for, and the files above the zoo's size limit.

    Raises:
        UserError: if the folder is not empty, a config, the metadata or a checkpoint does not fit, or the version was
            published with other content.
    """
    options = options or Export()
    check_empty(output)
    root = bundle_root()
    configs = for_stage(read_configs(root), options.stage)
    models = options.models or root / "models"
    weights = collect_weights(models, configs["inference.json"], options.stage)
    others = other_geometries(models, configs["inference.json"], options.stage)
    networks = {stage: part.network for stage, part in weights.items()}
    metadata = build_metadata(read_config(root / "configs" / METADATA), networks)
    published = None if options.published is None else read_published(options.published)
    with staging(output) as temporary:
        folder = temporary / BUNDLE_NAME
        _write_code(folder)
        _write_configs(folder, root, configs, metadata)
        _write_docs(folder, root)
        _write_weights(folder, root, weights, options.stage)
        if others is not None:
            _write(folder / "models" / OTHER_GEOMETRIES, others)
        _write_hashes(folder)
        _write_programs(folder, weights[options.stage], options, metadata=metadata, inference=configs["inference.json"])
        large = write_large_files(folder, options.large_files_url)
        if published is not None:
            check_published(folder, published)
        if options.zip:
            write_zip(folder, temporary / f"{BUNDLE_NAME}.zip")
    written = [output / BUNDLE_NAME, *([output / f"{BUNDLE_NAME}.zip"] if options.zip else [])]
    return [*written, *(output / BUNDLE_NAME / file for file in large)]


def check_published(folder: Path, published: Mapping[str, bytes]) -> None:
    """Refuses to give a published version other content, or to rewrite the changelog.

    Args:
        folder: the new bundle.
        published: the files of the last one, by name.

    Raises:
        UserError: naming the version and the first difference.
    """
    name = f"configs/{METADATA}"
    if name not in published:
        raise UserError(f"--published must be a bundle, it holds no {name}")
    theirs, ours = json.loads(published[name]), json.loads((folder / name).read_text(encoding="utf-8"))
    for version, text in theirs["changelog"].items():
        if ours["changelog"].get(version) != text:
            raise UserError(
                f"version {version} must stay in the changelog as it was published, {text!r}, "
                f"got {ours['changelog'].get(version)!r}"
            )
    if ours["version"] not in theirs["changelog"]:
        return
    contents = {file.as_posix(): (folder / file).read_bytes() for file in files_in(folder)}
    different = sorted(file for file, content in contents.items() if published.get(file) != content)
    if different or ours["version"] != theirs["version"]:
        raise UserError(
            f"version {ours['version']} is already in the changelog with other content (first difference: "
            f"{(different or [name])[0]}); raise the version"
        )


def _write_code(folder: Path) -> None:
    """A copy of the package under its own name, so that the configs' dotted names hold."""
    for file in files_in(_PACKAGE):
        # An installed wheel carries the bundle inside the package.
        # The report page's viewer is 2 MB of JavaScript that no workflow of a bundle needs.
        if (
            file.parts[0] == "bundle"
            or "assets" in file.parts
            or "__pycache__" in file.parts
            or file.name.startswith(".")
        ):
            continue
        _write(folder / _PACKAGE.name / file, (_PACKAGE / file).read_bytes())


def _write_configs(
    folder: Path, root: Path, configs: Mapping[str, Mapping[str, Any]], metadata: Mapping[str, Any]
) -> None:
    for name, config in {**configs, METADATA: metadata}.items():
        _write(folder / "configs" / name, to_text(config).encode())
    _write(folder / "configs" / "logging.conf", _read(root / "configs" / "logging.conf"))


def _write_docs(folder: Path, root: Path) -> None:
    _write(folder / "LICENSE", _read(root / "LICENSE"))
    for file in files_in(root / "docs"):
        _write(folder / "docs" / file, _read(root / "docs" / file))


def _write_weights(folder: Path, root: Path, weights: Mapping[int, StageWeights], stage: int) -> None:
    for number, part in weights.items():
        _write(folder / "models" / f"stage{number}_best.pt", part.content)
    _write(folder / "models" / "model.pt", weights[stage].content)
    _write(folder / "models" / _PERCEPTUAL, _read(root / "models" / _PERCEPTUAL))


def _write_hashes(folder: Path) -> None:
    """The list of released weights is that of the bundle's own files."""
    hashes = {path.name: file_hash(path) for path in (folder / "models").glob("*.pt")}
    _write(folder / _PACKAGE.name / MANIFEST.relative_to(_PACKAGE), manifest_text(hashes).encode("ascii"))


def _write_programs(
    folder: Path,
    weights: StageWeights,
    options: Export,
    *,
    metadata: Mapping[str, Any],
    inference: Mapping[str, Any],
) -> None:
    if options.torchscript:
        configs = {"inference.json": inference}
        save_torchscript(weights.network, folder / "models" / "model.ts", metadata=metadata, configs=configs)
    if options.onnx:
        save_onnx(weights.network, folder / "models" / "model.onnx")
    if options.triton:
        write_triton(onnx_program(weights.network), folder / "triton", name=BUNDLE_NAME)
    if options.deploy:
        write_application(folder / "deploy", metadata=metadata)


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise UserError(f"{path} must exist to be exported")
    return path.read_bytes()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
