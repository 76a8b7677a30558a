# SPDX-License-Identifier: Apache-2.0
"""Laws of what inference servers are given: their own parsers, or their schemas, read it, and it fits the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import onnx
import pytest

from progressive_cascade.cli import main
from progressive_cascade.export.serving import write_application, write_triton

# The application and package manifests of the MONAI Application Package specification, 1.0.
APPLICATION = {
    "type": "object",
    "required": ["apiVersion", "command", "input", "output", "sdkVersion", "version", "timeout", "workingDirectory"],
    "properties": {
        "command": {"type": "string"},
        "environment": {"type": "object"},
        "input": {"type": "object", "required": ["path", "formats"], "properties": {"formats": {"type": "array"}}},
        "output": {"type": "object", "required": ["path", "format"], "properties": {"format": {"type": "object"}}},
        "timeout": {"type": "integer", "minimum": 0},
        "version": {"type": "string", "pattern": r"^\d+\.\d+\.\d+"},
    },
}
PACKAGE = {
    "type": "object",
    "required": ["apiVersion", "applicationRoot", "modelRoot", "resources", "sdkVersion", "version"],
    "properties": {
        "resources": {
            "type": "object",
            "required": ["cpu", "gpu", "memory"],
            "properties": {"cpu": {"type": "integer"}, "gpu": {"type": "integer"}, "memory": {"type": "string"}},
        }
    },
}


def _program() -> Any:
    """An ONNX model with a cascade's input and output."""
    names = (("image", [1, 2, 512, 512]), ("pred", [1, 1, 256, 256, 256]))
    image, volume = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in names)
    node = onnx.helper.make_node("Identity", ["image"], ["pred"])
    return onnx.helper.make_model(onnx.helper.make_graph([node], "cascade", [image], [volume]))


def _triton_parser() -> Any:
    """Triton's own message, or one of the fields that are used, from model_config.proto."""
    try:
        from tritonclient.grpc import model_config_pb2  # pyright: ignore[reportMissingImports]

        return vars(model_config_pb2)["ModelConfig"]()
    except (ImportError, RuntimeError):
        return _fields()


def _fields() -> Any:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    text, integer, message, choice = 9, 3, 11, 14
    messages = {
        "Tensor": [("name", 1, text, 1, ""), ("data_type", 2, choice, 1, "Type"), ("dims", 3, integer, 3, "")],
        "Group": [("kind", 4, choice, 1, "Kind"), ("count", 2, integer, 1, "")],
        "Latest": [("num_versions", 1, integer, 1, "")],
        "Policy": [("latest", 1, message, 1, "Latest")],
        "Config": [
            *(("name", 1, text, 1, ""), ("backend", 17, text, 1, ""), ("max_batch_size", 4, integer, 1, "")),
            *(("input", 5, message, 3, "Tensor"), ("output", 6, message, 3, "Tensor")),
            *(("instance_group", 7, message, 3, "Group"), ("version_policy", 3, message, 1, "Policy")),
        ],
    }
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="t")
    for name, values in (("Type", {"TYPE_INVALID": 0, "TYPE_FP32": 11}), ("Kind", {"KIND_AUTO": 0, "KIND_CPU": 2})):
        kind = file.enum_type.add(name=name)
        for value, number in values.items():
            kind.value.add(name=value, number=number)
    for name, fields in messages.items():
        made = file.message_type.add(name=name)
        for field, number, type_, label, type_name in fields:
            reference = {"type_name": f".t.{type_name}"} if type_name else {}
            made.field.add(name=field, number=number, type=type_, label=label, **reference)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Config"))()


@pytest.mark.parametrize("make", [_triton_parser, _fields])
def test_the_model_repository_fits_its_model(tmp_path: Path, make: Any) -> None:
    """Names and shapes of config.pbtxt are those of the ONNX program beside it."""
    from google.protobuf import text_format

    write_triton(_program(), tmp_path, name="chest")
    config = text_format.Parse((tmp_path / "chest" / "config.pbtxt").read_text(), make())
    model = onnx.load(str(tmp_path / "chest" / "1" / "model.onnx"))
    for ours, theirs in ((config.input, model.graph.input), (config.output, model.graph.output)):
        assert [one.name for one in ours] == [one.name for one in theirs]
        shapes = [[size.dim_value for size in one.type.tensor_type.shape.dim] for one in theirs]
        assert [list(one.dims) for one in ours] == shapes
        assert {one.data_type for one in ours} == {11}
    assert (config.name, config.backend, config.max_batch_size) == ("chest", "onnxruntime", 0)


def test_the_application_is_a_command_of_this_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its manifests are of the specification's form, and the command parses to a reconstruction of a folder."""
    write_application(tmp_path / "deploy", metadata={"version": "1.2.3"})
    application, package = (json.loads((tmp_path / "deploy" / f"{name}.json").read_text()) for name in ("app", "pkg"))
    jsonschema.validate(application, APPLICATION)
    jsonschema.validate(package, PACKAGE)
    program, *arguments = json.loads(application["command"])
    called = []
    monkeypatch.setattr(
        "progressive_cascade.cli.reconstruction.run_reconstruct", lambda options: called.append(options)
    )
    assert program == "progressive-cascade" and main(arguments) == 0
    assert str(called[0].input).endswith("input") and str(called[0].output).endswith("output")
