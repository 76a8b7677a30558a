# SPDX-License-Identifier: Apache-2.0
"""`check` and `demo`: whether everything is there, and the whole way once."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progressive_cascade.cli.common import (
    DEVICE_HELP,
    add_command,
    add_overwrite,
    check_output_folder,
    select_device,
    versions,
)
from progressive_cascade.cli.numbers import natural
from progressive_cascade.cli.report import build_case
from progressive_cascade.cli.results import CaseFiles, describe_case, describe_scores, fill_case
from progressive_cascade.cli.simulation import simulate_radiographs
from progressive_cascade.cli.xrays import EXPOSURE_FILE, folder_files, write_xrays
from progressive_cascade.geometry import ConeBeam
from progressive_cascade.paths import check_files

if TYPE_CHECKING:
    from progressive_cascade.inference.reconstruct import Reconstruction
    from progressive_cascade.phantom import Phantom

_DEMO_FILE = "demo.json"
_CHECK_SHAPE = (64, 64, 64)
_CHECK_SPACING_MM = 5.6


def add_check(commands: Any) -> None:
    """Adds `check`."""
    text = """
    Check the installation in about ten seconds.

    Prints versions, devices and the hashes of the shipped weights, and runs one small reconstruction (64³ voxels,
    the first stage alone) of a phantom. With --checkpoint it says of weights of one's own, in place of all that, what
    they are and what geometries they were trained for.

    examples:
      progressive-cascade check
      progressive-cascade check --checkpoint training/stage3_best.pt
    """
    parser = add_command(commands, "check", run=run_check, text=text)
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights to tell about")
    parser.add_argument("--device", metavar="D", help=DEVICE_HELP)


def run_check(options: argparse.Namespace) -> None:
    """Prints what a bug report needs, and reconstructs 64³ voxels."""
    import torch

    from progressive_cascade.attenuation import HU_MAX, HU_MIN, unit_to_hu
    from progressive_cascade.inference.acceptance import describe_range, trained_range
    from progressive_cascade.inference.reconstruct import load_cascade
    from progressive_cascade.io.released import file_hash
    from progressive_cascade.paths import bundle_root
    from progressive_cascade.phantom import generate_phantom

    if options.checkpoint is not None:
        network = load_cascade(options.checkpoint)
        print(f"{options.checkpoint.name:20s}sha256 {file_hash(options.checkpoint)}")
        print(f"{'stages':20s}{network.stage}, {network.grid}³ voxels, radiographs of {network.image_size}²")
        print(f"{'weights trained for':20s}{describe_range(trained_range(network))}")
        return
    for name, version in versions().items():
        print(f"{name:20s}{version}")
    for device in _devices():
        print(f"{'device':20s}{device}")
    root = bundle_root()
    print(f"{'bundle':20s}{root}")
    for path in sorted((root / "models").glob("*.pt")):
        print(f"{path.name:20s}sha256 {file_hash(path)}  {path.stat().st_size / 1e6:.1f} MB")
    start = time.perf_counter()
    device, beam = select_device(options.device), ConeBeam()
    network = load_cascade(device=device)
    phantom = generate_phantom(0, shape=_CHECK_SHAPE, spacing=_CHECK_SPACING_MM)
    image = torch.from_numpy(simulate_radiographs(phantom.hu, phantom.affine, beam))[None].to(device)
    matrices = torch.as_tensor(beam.projection_matrices(), dtype=torch.float32, device=device)[None]
    with torch.inference_mode():
        unit, _ = network.prepare_stage(image, matrices)
        unit = torch.nn.functional.adaptive_avg_pool3d(unit, _CHECK_SHAPE)
    mae = float((unit_to_hu(unit[0, 0].float().cpu()) - torch.from_numpy(phantom.hu).clip(HU_MIN, HU_MAX)).abs().mean())
    print(f"{'weights trained for':20s}{describe_range(trained_range(network))}")
    print(f"{'reconstruction':20s}64³ in {time.perf_counter() - start:.1f} s, mean absolute error {mae:.0f} HU")
    print("all is well")


def add_demo(commands: Any) -> None:
    """Adds `demo`."""
    text = """
    Go the whole way with an unseen simulated patient.

    Generates the patient's CT, simulates the two X-rays, reconstructs 256³ voxels with the shipped weights, scores the
    result against the CT and draws both. DIR receives

      truth.nii.gz             the patient's CT [HU]
      xrays/                   pa.nii.gz lateral.nii.gz geometry.json radiographs.png
      reconstruction.nii.gz    the reconstructed CT [HU], with .json and .png
      comparison.png           truth, reconstruction and error
      reconstruction.html      all of it on one page, to scroll through in a browser
      demo.json                which patient; by it `demo` knows a folder of its own and renews it

    example:
      progressive-cascade demo --output demo
    """
    parser = add_command(commands, "demo", run=run_demo, text=text)
    parser.add_argument(
        "--output", type=Path, default=Path("demo"), metavar="DIR", help="folder to write (default: demo)"
    )
    parser.add_argument("--seed", type=natural, metavar="N", help="which patient (default: a test patient)")
    parser.add_argument("--device", metavar="D", help=DEVICE_HELP)
    add_overwrite(parser)


def run_demo(options: argparse.Namespace) -> None:
    """Phantom, X-rays, reconstruction, score, pictures."""
    from progressive_cascade.evaluation.metrics import evaluate_volume
    from progressive_cascade.inference.expect import expect_error
    from progressive_cascade.inference.reconstruct import default_checkpoint, load_cascade, reconstruct
    from progressive_cascade.phantom import generate_phantom
    from progressive_cascade.training.data import FIRST_SEEDS

    folder = options.output
    seed = FIRST_SEEDS["test"] if options.seed is None else options.seed
    check_output_folder(folder)
    beam = ConeBeam()
    own = (folder / _DEMO_FILE).is_file()
    files = list(_demo_files(folder, beam).values())
    check_files(reads={}, writes={"--output": files}, overwrite=options.overwrite or own)
    network = load_cascade(device=select_device(options.device))
    print(f"patient {seed}: generating the CT")
    phantom = generate_phantom(seed)
    image = simulate_radiographs(phantom.hu, phantom.affine, beam)
    print("reconstructing 256³ voxels from two X-rays")
    result = reconstruct(image, beam, network=network)
    scores = evaluate_volume(result.hu, phantom.hu, protocol="native")
    expected = expect_error(result, beam, network, default_checkpoint())
    _write_demo(folder, seed, phantom, result, scores, expected)
    print(expected["text"])
    print(describe_scores(scores, "native"))
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        print(path)


def _write_demo(
    folder: Path,
    seed: int,
    phantom: Phantom,
    result: Reconstruction,
    scores: Mapping[str, float],
    expected: Mapping[str, Any],
) -> None:
    """All files at once: a demo that is stopped leaves no patient's CT beside another's reconstruction."""
    from progressive_cascade.io import atomic_paths, save_json, save_nifti
    from progressive_cascade.report import comparison_figure, write_page

    beam, targets = ConeBeam(), _demo_files(folder, ConeBeam())
    exposure = targets.pop(EXPOSURE_FILE)
    with atomic_paths(*targets.values(), obsolete=[exposure]) as temporaries:
        places = dict(zip(targets, temporaries, strict=True))
        save_nifti(phantom.hu, phantom.affine, places["truth"])
        write_xrays(result.image, beam, places["geometry.json"].parent)
        record = describe_case(result, beam, more={"expected_error": expected})
        fill_case(result, beam, places, record)
        comparison_figure(
            phantom.hu,
            result.hu,
            radiographs=result.image,
            reprojected=result.reprojected,
            path=places["comparison"],
            title=f"phantom {seed}   {describe_scores(scores, 'native')}",
        )
        given = {"record": record, "picture": places["comparison"], "truth": phantom.hu, "scores": scores}
        write_page(build_case(result, beam, name=f"phantom {seed}", **given), places["page"])
        save_json({"demo": "progressive-cascade", "patient": f"phantom {seed}"}, places["demo"])


def _demo_files(folder: Path, beam: ConeBeam) -> dict[str, Path]:
    """Every file by what it is, those of X-rays by their names."""
    case = CaseFiles(folder / "reconstruction.nii.gz", page=folder / "reconstruction.html").fixed()
    own = {"truth": folder / "truth.nii.gz", "comparison": folder / "comparison.png"}
    xrays = {path.name: path for path in folder_files(beam, folder / "xrays")}
    return {**own, **xrays, **case, "demo": folder / _DEMO_FILE}


def _devices() -> list[str]:
    import torch

    found = [f"cpu, {torch.get_num_threads()} threads"]
    found += [f"cuda:{index}, {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return found
