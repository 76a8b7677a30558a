# SPDX-License-Identifier: Apache-2.0
"""A cascade as a program that needs no Python: one tensor in, one tensor out."""

from __future__ import annotations

import json
import logging
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from monai.data.torchscript_utils import save_net_with_metadata

from progressive_cascade.errors import UserError
from progressive_cascade.networks import ProgressiveCascade

INPUT, OUTPUT = "image", "pred"
"""Names of the one input and the one output."""
# Of a zip archive: a file's header without its name, and the head of an extra field [bytes].
_HEADER_SIZE, _FIELD_SIZE = 30, 4
_ALIGNMENT = 64


def save_torchscript(
    network: ProgressiveCascade, path: Path, *, metadata: Mapping[str, Any], configs: Mapping[str, Mapping[str, Any]]
) -> None:
    """Writes a cascade as TorchScript, scripted and not traced, with the files that MONAI Deploy reads inside.

    Args:
        network: filled.
        path: file to write.
        metadata: content of ``metadata.json``.
        configs: further contents by file name, ``inference.json`` among them.
    """
    extra = {name: json.dumps(config).encode() for name, config in configs.items()}
    with quiet():
        scripted = torch.jit.script(network.eval())
        save_net_with_metadata(
            scripted, str(path), include_config_vals=False, meta_values=metadata, more_extra_files=extra
        )
    _strip_sources(path)


def _strip_sources(path: Path) -> None:
    """Leaves out where each line of the program came from: paths of the machine it was exported on."""
    with zipfile.ZipFile(path) as archive:
        records = [(name, archive.read(name)) for name in archive.namelist() if not name.endswith(".debug_pkl")]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in records:
            entry = zipfile.ZipInfo(name)
            # torch maps tensors into memory, which wants them at multiples of 64 bytes; an extra field of zeros pads.
            start = archive.fp.tell() + _HEADER_SIZE + len(name.encode()) + _FIELD_SIZE  # pyright: ignore
            padding = -start % _ALIGNMENT
            entry.extra = struct.pack("<2sH", b"FB", padding) + bytes(padding)
            archive.writestr(entry, content)


def save_onnx(network: ProgressiveCascade, path: Path) -> None:
    """Writes a cascade as ONNX, for one pair of radiographs at a time.

    Args:
        network: filled.
        path: file to write.

    Raises:
        UserError: if onnx and onnxscript are not installed.
    """
    path.write_bytes(onnx_program(network).SerializeToString(deterministic=True))


def onnx_program(network: ProgressiveCascade) -> Any:
    """A cascade as an ONNX model.

    Args:
        network: filled; its views must be parallel to the volume's faces.

    Returns:
        The ``onnx.ModelProto``.

    Raises:
        UserError: if onnx and onnxscript are not installed.
    """
    if find_spec("onnx") is None or find_spec("onnxscript") is None:
        raise UserError("ONNX needs two more packages: pip install onnx onnxscript")
    size = network.image_size
    example = torch.linspace(0.0, 8.0, 2 * size * size).reshape(1, 2, size, size)
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            network.eval(),
            (example,),
            dynamo=True,
            optimize=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
    return _lean(program.model_proto)  # pyright: ignore[reportOptionalMemberAccess]


def _lean(model: Any) -> Any:
    """The same program without repetitions, and without traces of the source in it.

    The exporter writes the projector's weights out for every conjugate-gradient step anew. A runtime that folds
    constants would hold all of them at once: more than 20 GB for the third stage, against 6 GB for one copy.
    """
    from onnx_ir import from_proto, to_proto
    from onnx_ir.passes import common
    from onnxscript import optimizer

    def merge(proto: Any) -> Any:
        graph = from_proto(proto)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph)
        common.DeduplicateHashedInitializersPass()(graph)
        common.CommonSubexpressionEliminationPass()(graph)
        common.RemoveUnusedNodesPass()(graph)
        return graph

    graph = merge(model)
    optimizer.optimize(graph)
    graph = merge(to_proto(graph))
    common.ClearMetadataAndDocStringPass()(graph)
    return to_proto(graph)


@contextmanager
def quiet() -> Iterator[None]:
    """Without what the exporters say about themselves: deprecations, and torchvision's absence."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
