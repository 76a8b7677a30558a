# SPDX-License-Identifier: Apache-2.0
"""Laws of the programs: TorchScript, torch.export and ONNX reconstruct by themselves what the network reconstructs."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data.torchscript_utils import load_net_with_metadata

from progressive_cascade import ConeBeam
from progressive_cascade.export import onnx_program, save_torchscript
from progressive_cascade.inference.inferers import CascadeInferer

pytestmark = pytest.mark.filterwarnings("ignore")
BEAM = ConeBeam(detector_shape=(64, 64), pixel_spacing=(6.72, 6.72))


def _image(size: int = 64) -> torch.Tensor:
    return 4 * torch.rand(1, 2, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def cascade(small_cascade) -> Any:
    """Builds a miniature none of whose layers is zero: ``cascade(stage=2)``."""

    def build(**changes: Any) -> Any:
        fewer = {"unet_channels": ((4, 8), (4, 8), (4, 8)), "consistency_iterations": (1, 1, 1)}
        network = small_cascade(**{"geometry": BEAM, **fewer, **changes}).eval()
        for parameter in network.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.05)
        return network

    return build


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_torchscript_reconstructs_by_itself(cascade, tmp_path, stage):
    """Scripted, saved, loaded: the same volume, with metadata and configs inside and no path of this machine."""
    network = cascade(stage=stage, gradient_checkpointing=True)
    files = [tmp_path / name / "model.ts" for name in ("one", "two")[: 1 + (stage == 1)]]
    for path in files:
        path.parent.mkdir()
        save_torchscript(network, path, metadata={"version": "1"}, configs={"inference.json": {"stage": stage}})
    loaded, metadata, extra = load_net_with_metadata(str(files[0]), more_extra_files=("inference.json",))
    with torch.no_grad():
        torch.testing.assert_close(loaded(_image()), network(_image()), atol=1e-5, rtol=0)
    assert metadata["version"] == "1" and json.loads(extra["inference.json"]) == {"stage": stage}
    assert len({path.read_bytes() for path in files}) == 1
    assert str(Path(__file__).parents[2]).encode() not in files[0].read_bytes()
    torch.jit.load(str(files[0]), _restore_shapes=True)


def test_torchscript_keeps_its_precision_under_amp(cascade):
    """A program's line integrals stay in float32 where the workflow asks for mixed precision."""
    network = cascade(stage=1)
    scripted = torch.jit.script(network)
    with torch.no_grad():
        torch.testing.assert_close(CascadeInferer(amp=True)(_image(), scripted), network(_image()), atol=1e-5, rtol=0)


def test_whole_cascade_is_exported_by_torch(cascade):
    """torch.export follows all three stages."""
    network = cascade(stage=3)
    with torch.no_grad():
        program = torch.export.export(network, (_image(),))
        torch.testing.assert_close(program.module()(_image()), network(_image()), atol=1e-5, rtol=0)


def test_compiled_projection_stays_in_full_precision(cascade):
    """Under autocast a compiled network is as exact as an eager one, and compiles in one piece."""
    network = cascade(stage=1)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(compiled(_image()), network(_image()), atol=1e-3, rtol=0)


def _run_onnx(model: Any, image: np.ndarray) -> np.ndarray:
    try:
        from onnxruntime import InferenceSession  # pyright: ignore[reportMissingImports]
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        return ReferenceEvaluator(model).run(["pred"], {"image": image})[0]
    return InferenceSession(model.SerializeToString()).run(["pred"], {"image": image})[0]


def test_onnx_reconstructs_the_same_volume(cascade):
    """One input, one output, the eager volume, and no trace of the source."""
    # All three stages take onnx's own evaluator most of a minute.
    network = cascade(stage=3 if find_spec("onnxruntime") else 1)
    model = onnx_program(network)
    assert [value.name for value in model.graph.input] == ["image"]
    assert [value.name for value in model.graph.output] == ["pred"]
    with torch.no_grad():
        expected = network(_image()).numpy()
    np.testing.assert_allclose(_run_onnx(model, _image().numpy()), expected, atol=1e-4)
    assert b".py" not in model.SerializeToString()


def test_a_program_needs_views_parallel_to_the_volume(cascade):
    """An oblique view runs in eager mode alone, and a program says so."""
    network = cascade(stage=1)
    network.stages[0].consistency.axes = []
    scripted = torch.jit.script(network.stages[0].consistency)
    volume = torch.full((1, 1, 8, 8, 8), 0.5)
    with pytest.raises(torch.jit.Error, match="views must be parallel"):
        scripted(volume, _image(), network.projection_matrices[None])
