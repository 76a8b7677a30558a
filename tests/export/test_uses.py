# SPDX-License-Identifier: Apache-2.0
"""The uses an exported bundle is made for, each tried: bare machines, notebooks, the zoo's checks, Deploy, Triton."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, create_workflow, load
from monai.bundle.scripts import ckpt_export, onnx_export, verify_net_in_out
from monai.bundle.scripts import run as run_bundle

from progressive_cascade.attenuation import unit_to_hu
from progressive_cascade.cli import main
from progressive_cascade.errors import UserError
from progressive_cascade.export import BUNDLE_NAME
from progressive_cascade.geometry import ConeBeam, save_geometry, volume_affine
from progressive_cascade.inference.reconstruct import load_cascade
from progressive_cascade.inference.transforms import LoadRadiographPaird
from tests.support.exported import BEAM, export, make_source, make_xrays, run_bare

EARLIER = Path(__file__).resolve().parents[1] / "data" / "bundle_6c2c709.tar.xz"
pytestmark = pytest.mark.filterwarnings("ignore")
WORKFLOWS = {
    "stage1": "train",
    "stage2": "train",
    "stage3": "train",
    "train": "train",
    "evaluate": "evaluation",
    "inference": "inference",
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported miniature."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        return export(make_source(folder), folder / "zoo", patch)


@pytest.fixture(scope="module")
def xrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair of radiographs with its geometry."""
    return make_xrays(tmp_path_factory.mktemp("xrays"))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder that is not the bundle's."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def _image(xrays: Path) -> torch.Tensor:
    read = LoadRadiographPaird(detector_shape=BEAM.detector_shape)
    return read({"pa": xrays / "pa.nii.gz", "lateral": xrays / "lateral.nii.gz"})["image"]


def _cause(error: BaseException) -> str:
    """The message of the mistake behind what MONAI raises for it."""
    while error.__cause__ is not None and not isinstance(error, UserError):
        error = error.__cause__
    return str(error)


def _config(bundle: Path, name: str) -> str:
    return str(bundle / "configs" / f"{name}.json")


def _in_turn(bundle: Path, xrays: Path, folder: Path, second: Path) -> str:
    """The code of the bare process."""
    command = ["run", "--bundle_root", str(bundle), "--config_file", _config(bundle, "inference")]
    command += ["--dataset_dir", str(xrays), "--output_dir", str(folder / "out")]
    return f"""
import os, runpy, sys
from monai.bundle.scripts import load, run
import progressive_cascade

assert progressive_cascade.__file__.startswith({str(bundle)!r}), progressive_cascade.__file__
for stage in (1, 2, 3):
    run(run_id="training", config_file=f"configs/stage{{stage}}.json", ckpt_dir="trained", cache_dir="cache",
        log_dir=f"logs{{stage}}")
run(config_file="configs/inference.json", dataset_dir={str(xrays)!r}, output_dir={str(folder / "trained")!r},
    checkpoint="trained/stage3_best.pt", refine_steps=1)

def forget():
    for name in [name for name in sys.modules if name.partition(".")[0] == "progressive_cascade"]:
        del sys.modules[name]

def turn_to(root):
    forget()
    sys.path.insert(0, f"{{root}}/{BUNDLE_NAME}")

forget()
sys.path[:] = [path for path in sys.path if path not in ("", ".", {str(bundle)!r})]
os.chdir({str(folder)!r})
sys.argv = ["monai.bundle", *{command!r}]
runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)

networks, versions = [], []
for root in ({str(bundle.parent)!r}, {str(second.parent)!r}):
    turn_to(root)
    networks.append(load({BUNDLE_NAME!r}, bundle_dir=root, workflow_type="inference", device="cpu"))
    versions.append(sys.modules["progressive_cascade"].__version__)
import torch
image = torch.rand(1, 2, 64, 64)
first, second = networks
files = [type(network).forward.__code__.co_filename for network in networks]
assert files[0].startswith({str(bundle)!r}) and files[1].startswith({str(second)!r}), files
torch.testing.assert_close(first(image), second(image))
turn_to({str(folder / "earlier")!r})
run(config_file={_config(folder / "earlier" / BUNDLE_NAME, "inference")!r}, dataset_dir={str(xrays)!r},
    bundle_root={str(folder / "earlier" / BUNDLE_NAME)!r}, output_dir={str(folder / "cts")!r})
print("code of", sys.modules["progressive_cascade"].__file__)
print(*versions)
"""


@pytest.fixture(scope="module")
def bare(bundle: Path, xrays: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """One bare process with all it is asked for in turn; the folder it writes into, and what it printed.

    From inside the bundle it trains and reconstructs. From a folder of its own the bundle is run as ``python -m
    monai.bundle run`` runs it; then come the same, a changed one and that of an earlier revision. Python keeps one
    package per name: forget the last one, and the next brings its own.
    """
    folder = tmp_path_factory.mktemp("bare")
    second = folder / "second" / BUNDLE_NAME
    shutil.copytree(bundle, second, ignore=shutil.ignore_patterns("__pycache__"))
    file = second / "progressive_cascade" / "__init__.py"
    file.write_text(file.read_text().replace("__version__ = ", "__version__ = '9.9.9'  # "))
    with tarfile.open(EARLIER) as packed:
        packed.extractall(folder / "earlier", filter="data")
    return folder, run_bare(_in_turn(bundle, xrays, folder, second), bundle)


def test_a_machine_without_our_package_trains_and_reconstructs(bundle, xrays, bare):
    """From inside the folder, with torch, MONAI, ignite, nibabel and numpy alone: three stages chain, and infer."""
    first, third = (torch.load(bundle / "trained" / f"stage{n}_best.pt", weights_only=True) for n in (1, 3))
    assert all(torch.equal(first[name], third[name]) for name in first)
    (written,) = (bare[0] / "trained").glob("*.nii.gz")
    image = nib.load(written)
    network = load_cascade(bundle / "trained" / "stage3_best.pt")
    matrices = torch.as_tensor(BEAM.projection_matrices(), dtype=torch.float32)[None]
    inferer = ConfigParser.load_config_file(_config(bundle, "inference"))["inferer"]
    parser = ConfigParser(
        {
            "inferer": {
                **inferer,
                "roi_size": 16,
                "overlap": 0.25,
                "consistency_rounds": 2,
                "amp": False,
                "refine_steps": 1,
                "portable": True,
            }
        }
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as there: another number adds in another order
    with torch.no_grad():
        unit = parser.get_parsed_content("inferer")(_image(xrays)[None], network, projection_matrices=matrices)
    torch.set_num_threads(threads)
    assert np.array_equal(np.asanyarray(image.dataobj), unit_to_hu(unit.clamp(0, 1)).round()[0, 0].numpy())
    np.testing.assert_allclose(image.affine, volume_affine((32, 32, 32), 11.2), atol=1e-4)


@pytest.mark.parametrize("kind", ["train", "inference"])
def test_load_gives_the_network_with_its_weights(bundle, elsewhere, kind):
    """monai.bundle.load from a stranger's folder, strictly filled."""
    network = load(BUNDLE_NAME, bundle_dir=bundle.parent, workflow_type=kind, device="cpu")
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    network.load_state_dict(state, strict=True)
    assert network.stage == 3
    assert torch.equal(network.state_dict()["stages.0.unet.enter.weight"], state["stages.0.unet.enter.weight"].float())
    assert list(elsewhere.iterdir()) == []


def test_a_workflow_without_weights_can_be_looked_at(bundle, elsewhere, xrays):
    """Networks are built without a checkpoint; running refuses in one clear error."""
    workflow = create_workflow(
        config_file=_config(bundle, "inference"), workflow_type="inference", dataset_dir=str(xrays), roi_size=8
    )
    assert workflow.network_def.stage == 3 and workflow.inferer.roi_size == [8, 8, 8]
    with pytest.raises(RuntimeError) as error:
        workflow.run()
    assert re.search("checkpoint .* does not exist", _cause(error.value))


def test_overrides_reach_the_workflow(bundle, elsewhere, tmp_path):
    """create_workflow(...) with overrides, as scalar and as a leaf of a block."""
    changes: dict[str, Any] = {
        "learning_rate": 0.5,
        "train#trainer#max_epochs": 7,
        "cache_dir": str(tmp_path / "cache"),
    }
    workflow = create_workflow(
        config_file=_config(bundle, "stage1"), workflow_type="train", log_dir=str(tmp_path / "logs"), **changes
    )
    assert workflow.max_epochs == 7 and workflow.trainer.optimizer.defaults["lr"] == 0.5


@pytest.mark.parametrize(("name", "kind"), WORKFLOWS.items())
def test_every_workflow_has_its_properties(bundle, elsewhere, monkeypatch, name, kind):
    """check_properties() == [] for every config, with no data at hand."""
    monkeypatch.chdir(bundle)
    # The baselines would paint forty phantoms first.
    settings = {"baselines": False} if name == "evaluate" else {}
    workflow = ConfigWorkflow(config_file=f"configs/{name}.json", workflow_type=kind, **settings)
    workflow.initialize()
    assert workflow.check_properties() == []


def test_evaluation_runs_in_the_exported_folder(bundle, monkeypatch, tmp_path):
    """One phantom, scored and written."""
    monkeypatch.chdir(bundle)
    settings = {"baselines": False, "pictures": False, "num_phantoms": 1, "output_dir": str(tmp_path)}
    settings["preprocessing#transforms#0#spatial_size"] = 32
    run_bundle(config_file="configs/evaluate.json", **settings)
    scores = json.loads((tmp_path / "evaluation_metrics.json").read_text())
    assert scores["num_cases"] == 1
    assert all("native_psnr_3d_db" in scores["summary"][method] for method in ("refined", "cascade"))


def test_the_zoos_checks_pass(bundle, elsewhere, monkeypatch):
    """Input and output as the metadata says, TorchScript and ONNX from the checkpoint, by MONAI's own commands."""
    monkeypatch.syspath_prepend(str(bundle))
    files = {"meta_file": str(bundle / "configs" / "metadata.json"), "config_file": _config(bundle, "inference")}
    verify_net_in_out(net_id="network_def", device="cpu", bundle_root=str(bundle), **files)
    checkpoint = {"ckpt_file": str(bundle / "models" / "model.pt"), "net_id": "network_def", **files}
    ckpt_export(filepath=str(elsewhere / "model.ts"), bundle_root=str(bundle), **checkpoint)
    assert torch.jit.load(str(elsewhere / "model.ts"))(torch.rand(1, 2, 64, 64)).shape == (1, 1, 32, 32, 32)
    checkpoint["ckpt_file"] = str(bundle / "models" / "stage1_best.pt")
    fewer_steps = {"network_def#consistency_iterations": [1]}
    onnx_export(filepath=str(elsewhere / "model.onnx"), stage=1, **checkpoint, **fewer_steps)
    assert (elsewhere / "model.onnx").is_file()


@pytest.mark.parametrize("scripted", [False, True])
def test_deploy_needs_neither_dataset_nor_files(bundle, elsewhere, xrays, scripted):
    """preprocessing, inferer, network and postprocessing of inference.json alone: one image in, one CT in HU out."""
    parser = ConfigParser.load_config_file(_config(bundle, "inference"))
    for name in ("dataset", "dataloader", "evaluator", "handlers", "run"):
        parser.pop(name)
    parser = ConfigParser({**parser, "amp": True})
    before, infer, after = (parser.get_parsed_content(name) for name in ("preprocessing", "inferer", "postprocessing"))
    network = load_cascade(bundle / "models" / "model.pt")
    item = before({"image": _image(xrays)})
    with torch.no_grad():
        unit = infer(item["image"][None], torch.jit.script(network) if scripted else network)
    result = after({**item, "pred": unit[0]})["pred"]
    assert result.shape == (1, 32, 32, 32) and result.min() >= -1024 and result.max() <= 1024
    assert float(result.max() - result.min()) > 100 and torch.equal(result, result.round())
    np.testing.assert_allclose(result.affine, volume_affine((32, 32, 32), 11.2), atol=1e-6)
    assert list(elsewhere.iterdir()) == []


def test_a_geometry_the_weights_do_not_know_is_refused(bundle, elsewhere, tmp_path, capsys):
    """The workflow says what the command line says: file, parameter, both values."""
    folder = make_xrays(tmp_path / "far")
    save_geometry(ConeBeam(1200, 1800, (64, 64), (6.72, 6.72)), folder / "geometry.json")
    words = (
        "geometry.json must lie in the range of geometries of the checkpoint: distance from source to isocenter of pa "
        "and left_lateral is 1200.0 mm, 270.0 mm (18.4%) beyond the trained 1470 to 1530 mm"
    )
    settings = {"bundle_root": str(bundle), "dataset_dir": str(folder)}
    with pytest.raises(RuntimeError) as error:
        run_bundle(config_file=_config(bundle, "inference"), **settings)
    assert words in _cause(error.value)
    arguments = ["--pa", str(folder / "pa.nii.gz"), "--lateral", str(folder / "lateral.nii.gz")]
    arguments += ["--geometry", str(folder / "geometry.json"), "--output", str(tmp_path / "ct.nii.gz")]
    assert (
        main(["reconstruct", *arguments, "--checkpoint", str(bundle / "models" / "model.pt"), "--allow-unverified"])
        == 2
    )
    assert _cause(error.value) in capsys.readouterr().err
    with pytest.raises(RuntimeError) as error:
        run_bundle(config_file=_config(bundle, "inference"), **{**settings, "dataset_dir": str(tmp_path / "none")})
    assert "dataset_dir must be a folder with pa.nii.gz" in _cause(error.value)


def test_any_folder_will_do(bare):
    """`python -m monai.bundle run` from outside: --bundle_root is all it needs."""
    folder, _ = bare
    assert len(list((folder / "out").glob("*.nii.gz"))) == 1


def test_two_versions_in_one_process_do_not_share_code(bare):
    """Each network is of its own bundle's code."""
    assert bare[1].split()[-1] == "9.9.9"


def test_a_bundle_of_an_earlier_revision_runs_by_itself(bare):
    """Under today's torch and MONAI its own code makes the CT that it made when it was written."""
    folder, text = bare
    assert f"code of {folder / 'earlier'}" in text
    (written,) = (folder / "cts").glob("*.nii.gz")
    image = nib.load(written)
    hu = np.asanyarray(image.dataobj)
    assert abs(hu.mean() + 444.96) < 0.5 and abs(hu.std() - 637.62) < 0.5
    np.testing.assert_allclose(image.affine, volume_affine((32, 32, 32), 11.2), atol=1e-4)
