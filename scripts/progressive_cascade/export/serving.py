# SPDX-License-Identifier: Apache-2.0
"""What inference servers take: a model repository of NVIDIA Triton, the manifests of a MONAI application package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_TRITON = """\
# https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_configuration.html
# A pair of line integrals of the geometry in metadata.json in, a CT on [0, 1] out (0 is -1024 HU, 1 is 1024 HU).
name: "{name}"
backend: "onnxruntime"
max_batch_size: 0
input [
{inputs}
]
output [
{outputs}
]
instance_group [
  {{ count: 1 kind: KIND_AUTO }}
]
version_policy {{ latest {{ num_versions: 1 }} }}
"""
_INPUT, _OUTPUT = "/var/monai/input", "/var/monai/output"


def write_triton(program: Any, folder: Path, *, name: str) -> None:
    """Writes a model repository: ``NAME/config.pbtxt`` and ``NAME/1/model.onnx``.

    Args:
        program: of :func:`progressive_cascade.export.programs.onnx_program`.
        folder: the repository, as ``tritonserver --model-repository`` takes it.
        name: of the model.
    """
    target = folder / name
    (target / "1").mkdir(parents=True)
    (target / "1" / "model.onnx").write_bytes(program.SerializeToString(deterministic=True))
    tensors = {"inputs": program.graph.input, "outputs": program.graph.output}
    text = _TRITON.format(name=name, **{key: ",\n".join(map(_tensor, value)) for key, value in tensors.items()})
    (target / "config.pbtxt").write_text(text, encoding="utf-8")


def _tensor(value: Any) -> str:
    """A float32 input or output."""
    sizes = ", ".join(str(size.dim_value) for size in value.type.tensor_type.shape.dim)
    return f'  {{ name: "{value.name}" data_type: TYPE_FP32 dims: [ {sizes} ] }}'


def write_application(folder: Path, *, metadata: Mapping[str, Any]) -> None:
    """Writes ``app.json`` and ``pkg.json``, the manifests of a MONAI application package (MAP 1.0).

    They belong into ``/etc/monai`` of an image whose command is `progressive-cascade`; the ``Dockerfile`` of this
    project makes one. A study in the input folder becomes a CT, its sidecar and its page in the output folder.

    Args:
        folder: made.
        metadata: content of ``metadata.json``.
    """
    version = str(metadata["version"])
    common = {"apiVersion": "1.0.0", "sdkVersion": "1.0.0", "version": version}
    command = ["progressive-cascade", "reconstruct", "--input", _INPUT, "--output", _OUTPUT]
    application = {
        **common,
        "command": json.dumps(command),
        "environment": {},
        "input": {"path": "input", "formats": [{"data": {"type": "image", "kind": "2d", "format": "dicom"}}]},
        "output": {"path": "output", "format": {"data": {"type": "image", "kind": "3d", "format": "nifti"}}},
        "timeout": 3600,
        "workingDirectory": "/var/monai",
    }
    package = {
        **common,
        "applicationRoot": "/opt/monai/app",
        "modelRoot": "/opt/monai/models",
        "models": {},
        "resources": {"cpu": 2, "gpu": 0, "memory": "8Gi"},
    }
    folder.mkdir(parents=True)
    for name, content in (("app.json", application), ("pkg.json", package)):
        (folder / name).write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
