# SPDX-License-Identifier: Apache-2.0
"""`check`, `demo` and `reconstruct`: from two X-rays to a CT."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progressive_cascade.attenuation import EFFECTIVE_ENERGY_KEV
from progressive_cascade.cli.common import (
    DEVICE_HELP,
    add_command,
    add_overwrite,
    add_refine,
    check_output_file,
    check_output_folder,
    natural,
    select_device,
    versions,
)
from progressive_cascade.cli.report import build_case, page_path
from progressive_cascade.cli.simulation import NIFTI, simulate_radiographs
from progressive_cascade.cli.xrays import EXPOSURE_FILE, folder_files, read_exposure, write_xrays
from progressive_cascade.errors import UserError
from progressive_cascade.geometry import ConeBeam
from progressive_cascade.paths import check_files

if TYPE_CHECKING:
    import numpy as np

    from progressive_cascade.inference.reconstruct import Reconstruction
    from progressive_cascade.networks.uncertainty import UncertaintyHead
    from progressive_cascade.physics import Exposure

_DEMO_FILE = "demo.json"
_CHECK_SHAPE = (64, 64, 64)
_CHECK_SPACING_MM = 5.6


def add_check(commands: Any) -> None:
    """Adds `check`."""
    text = """
    Check the installation in about ten seconds.

    Prints versions, devices and the hashes of the shipped weights, and runs one small reconstruction (64³ voxels,
    the first stage alone) of a phantom.

    example:
      progressive-cascade check
    """
    parser = add_command(commands, "check", run=run_check, text=text)
    parser.add_argument("--device", metavar="D", help=DEVICE_HELP)


def run_check(options: argparse.Namespace) -> None:
    """Prints what a bug report needs, and reconstructs 64³ voxels."""
    import torch

    from progressive_cascade.attenuation import HU_MAX, HU_MIN, unit_to_hu
    from progressive_cascade.inference.reconstruct import file_hash, load_cascade
    from progressive_cascade.paths import bundle_root
    from progressive_cascade.phantom import generate_phantom

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
    print(f"{'reconstruction':20s}64³ in {time.perf_counter() - start:.1f} s, mean absolute error {mae:.0f} HU")
    print("all is well")


def add_demo(commands: Any) -> None:
    """Adds `demo`."""
    from progressive_cascade.training.data import FIRST_SEEDS

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
    parser.add_argument(
        "--seed", type=natural, default=FIRST_SEEDS["test"], metavar="N", help="which patient (default: a test patient)"
    )
    parser.add_argument("--device", metavar="D", help=DEVICE_HELP)
    add_overwrite(parser)


def run_demo(options: argparse.Namespace) -> None:
    """Phantom, X-rays, reconstruction, score, pictures."""
    from progressive_cascade.evaluation.metrics import evaluate_volume
    from progressive_cascade.inference.reconstruct import load_cascade, reconstruct
    from progressive_cascade.io import read_json, save_json, save_nifti
    from progressive_cascade.phantom import generate_phantom
    from progressive_cascade.report import comparison_figure, write_page

    folder = options.output
    check_output_folder(folder)
    beam = ConeBeam()
    own = (folder / _DEMO_FILE).is_file()
    check_files(reads={}, writes={"--output": _demo_files(folder, beam)}, overwrite=options.overwrite or own)
    network = load_cascade(device=select_device(options.device))
    print(f"patient {options.seed}: generating the CT")
    phantom = generate_phantom(options.seed)
    save_json({"demo": "progressive-cascade", "patient": f"phantom {options.seed}"}, folder / _DEMO_FILE)
    save_nifti(phantom.hu, phantom.affine, folder / "truth.nii.gz")
    image = simulate_radiographs(phantom.hu, phantom.affine, beam)
    write_xrays(image, beam, folder / "xrays")
    print("reconstructing 256³ voxels from two X-rays")
    result = reconstruct(image, beam, network=network)
    write_reconstruction(result, beam, output=folder / "reconstruction.nii.gz")
    scores = evaluate_volume(result.hu, phantom.hu, protocol="native")
    line = describe_scores(scores, "native")
    comparison_figure(
        phantom.hu,
        result.hu,
        radiographs=image,
        reprojected=result.reprojected,
        path=folder / "comparison.png",
        title=f"phantom {options.seed}   {line}",
    )
    case = build_case(
        result,
        beam,
        name=f"phantom {options.seed}",
        record=read_json(folder / "reconstruction.json"),
        picture=folder / "comparison.png",
        truth=phantom.hu,
        scores=scores,
    )
    write_page(case, folder / "reconstruction.html")
    print(line)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        print(path)


def _demo_files(folder: Path, beam: ConeBeam) -> list[Path]:
    others = [folder / "truth.nii.gz", folder / "comparison.png"]
    return [*others, *companions(folder / "reconstruction.nii.gz"), *folder_files(beam, folder / "xrays")]


def add_reconstruct(commands: Any) -> None:
    """Adds `reconstruct`."""
    text = """
    Reconstruct a CT from a PA and a left lateral X-ray.

    The X-rays are NIfTI files of line integrals (column, row, 1), as `simulate` writes them. The geometry they were
    taken with must be that of the checkpoint; its isocenter says where in the patient's world [mm] the CT belongs.
    Beside CT.nii.gz (HU, int16, 256³ voxels of 1.4 mm) two files are written: CT.json (geometry, versions, the
    checkpoint's hash, agreement with the X-rays) and CT.png. With --uncertainty SIGMA.nii.gz the standard deviation of
    the CT's error is written as well, voxel by voxel in whole HU. CT.html shows the result in a browser, without a
    network; CT.radiographs.nii.gz keeps the line integrals, so that `report` can make the page again.

    With --refine STEPS the first stage is refined on these very X-rays; along with it a gain and an offset of each
    X-ray are found where its values are scaled, and a tone curve where they are display values. CT.json keeps the
    residual before and after, and in patches that were held back: agreement after refining says little.

    examples:
      progressive-cascade reconstruct --pa xrays/pa.nii.gz --lateral xrays/lateral.nii.gz \\
          --geometry xrays/geometry.json --output ct.nii.gz
      progressive-cascade reconstruct --pa pa.nii.gz --lateral lateral.nii.gz --output ct.nii.gz \\
          --intensities scaled --refine 30
    """
    parser = add_command(commands, "reconstruct", run=run_reconstruct, text=text)
    parser.add_argument("--pa", type=Path, required=True, metavar="PA", help="posteroanterior X-ray, NIfTI")
    parser.add_argument("--lateral", type=Path, required=True, metavar="LAT", help="left lateral X-ray, NIfTI")
    parser.add_argument("--output", type=Path, required=True, metavar="CT", help="CT to write, .nii.gz")
    parser.add_argument("--geometry", type=Path, metavar="JSON", help="geometry of the X-rays (default: chest_stand)")
    parser.add_argument(
        "--spectrum",
        metavar="S",
        help="what the X-rays were taken with, 120kV or 70keV (default: exposure.json beside PA, else 70keV)",
    )
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights (default: the shipped ones)")
    parser.add_argument(
        "--uncertainty", type=Path, metavar="SIGMA", help="also write each voxel's standard deviation [HU], .nii.gz"
    )
    pages = parser.add_mutually_exclusive_group()
    pages.add_argument("--report", type=Path, metavar="FILE", help="page to write, .html (default: beside CT)")
    pages.add_argument("--no-report", action="store_true", help="write no page")
    parser.add_argument("--device", metavar="D", help=DEVICE_HELP)
    parser.add_argument(
        "--portable", action="store_true", help="the same CT voxel for voxel with numba and without; slower on a CPU"
    )
    add_overwrite(parser)
    add_refine(parser)
    parser.add_argument(
        "--intensities",
        choices=("calibrated", "scaled", "display"),
        help="what pixel values are: line integrals; those but for gain and offset; no more than ordered (default: "
        "line integrals where they can be, else display)",
    )
    parser.add_argument(
        "--find-pose", action="store_true", help="while refining, also look for shifts up to 5 mm and turns up to 2°"
    )


def run_reconstruct(options: argparse.Namespace) -> None:
    """Reads and checks everything, reconstructs, writes the CT, its two companions and, where asked for, sigma."""
    from progressive_cascade.geometry import load_geometry
    from progressive_cascade.inference.inferers import CascadeInferer
    from progressive_cascade.inference.reconstruct import check_beam, load_cascade, reconstruct
    from progressive_cascade.inference.refine import RefineSettings
    from progressive_cascade.inference.transforms import LoadRadiographPaird
    from progressive_cascade.io import nifti_stem, read_json
    from progressive_cascade.report import write_page

    page = page_path(options)
    _check_files(options, page)
    settings = RefineSettings(steps=options.refine, pose=options.find_pose)
    beam = load_geometry(options.geometry) if options.geometry else ConeBeam()
    read_pair = LoadRadiographPaird(detector_shape=beam.detector_shape)
    image = read_pair({"pa": options.pa, "lateral": options.lateral})["image"].numpy()
    image, intensities = _read_intensities(image, options)
    head = _load_uncertainty(options)
    network = load_cascade(options.checkpoint, select_device(options.device))
    check_beam(network, beam, str(options.geometry or "the default geometry"))
    if intensities != "calibrated":
        print(f"note: the X-rays are no line integrals but {intensities}; {_calibration_note(settings.steps)}")
    start = time.perf_counter()
    inferer = CascadeInferer(amp=True, progress=True, portable=options.portable)
    calibrated = intensities == "calibrated"
    known = "display" if calibrated else intensities
    result = reconstruct(
        image, beam, network=network, inferer=inferer, calibrated=calibrated, intensities=known, refine=settings
    )
    _print_refinement(result)
    print(f"reconstructed in {time.perf_counter() - start:.1f} s")
    for path in write_reconstruction(result, beam, output=options.output, checkpoint=options.checkpoint):
        print(path)
    if head is not None:
        write_uncertainty(result, beam, head=head, output=options.uncertainty)
        print(options.uncertainty)
    if page is not None:
        stem = nifti_stem(options.output)
        record = read_json(options.output.with_name(f"{stem}.json"))
        picture = options.output.with_name(f"{stem}.png")
        write_page(build_case(result, beam, name=stem, record=record, picture=picture), page)
        print(page)


def _check_files(options: argparse.Namespace, page: Path | None) -> None:
    """Refuses, before any work, files that cannot be written, that exist, or that are inputs."""
    check_output_file(options.output, NIFTI)
    if options.uncertainty is not None:
        check_output_file(options.uncertainty, NIFTI, "--uncertainty")
    inputs = {f"--{name}": getattr(options, name) for name in ("pa", "lateral", "geometry", "checkpoint")}
    check_files(
        reads={**inputs, EXPOSURE_FILE: options.pa.parent / EXPOSURE_FILE},
        writes={
            "--output": companions(options.output),
            "--uncertainty": [] if options.uncertainty is None else [options.uncertainty],
            "--report": [] if page is None else [page],
        },
        overwrite=options.overwrite,
    )


def companions(output: Path) -> list[Path]:
    """The files of one reconstruction: CT.nii.gz, CT.json, CT.png, CT.radiographs.nii.gz."""
    from progressive_cascade.io import nifti_stem
    from progressive_cascade.report.finished import RADIOGRAPHS_SUFFIX

    stem = nifti_stem(output)
    endings = (".json", ".png", RADIOGRAPHS_SUFFIX)
    return [output, *(output.with_name(f"{stem}{ending}") for ending in endings)]


def _read_intensities(image: np.ndarray, options: argparse.Namespace) -> tuple[np.ndarray, str]:
    """The X-rays on the scale of line integrals, and what is known of them."""
    from progressive_cascade.inference.transforms import to_line_integrals

    given = options.intensities
    image, possible = to_line_integrals(image, display=given == "display")
    if given in ("calibrated", "scaled") and not possible:
        raise UserError(f"--intensities {given} wants values that can be line integrals, 0 to 30; try display")
    known = given or ("calibrated" if possible else "display")
    return (_at_one_energy(image, _choose_exposure(options)) if known == "calibrated" else image), known


def _calibration_note(steps: int) -> str:
    return "they are calibrated while refining" if steps else "data consistency is left out"


def _print_refinement(result: Reconstruction) -> None:
    """One line on what refining did, and each warning."""
    report = result.refinement
    if report is None:
        return
    print(
        f"refined in {report.steps} steps, {report.kept} kept: residual {report.residual_before:.3f} -> "
        f"{report.residual_after:.3f}, held back {report.held_out_before:.3f} -> {report.held_out_after:.3f}"
    )
    for line in report.warnings:
        print(f"warning: {line}")


def _load_uncertainty(options: argparse.Namespace) -> UncertaintyHead | None:
    """The network that predicts sigma, where it is asked for."""
    from progressive_cascade.inference.reconstruct import default_checkpoint
    from progressive_cascade.inference.uncertainty import belongs_to, load_uncertainty

    if options.uncertainty is None:
        return None
    head, weights = load_uncertainty(device=select_device(options.device)), options.checkpoint or default_checkpoint()
    if not belongs_to(head, weights):
        print(f"note: the uncertainty was calibrated with another checkpoint than {weights}")
    return head


def _choose_exposure(options: argparse.Namespace) -> Exposure:
    """What the X-rays were taken with: as given, as `simulate` left it beside them, or 70 keV."""
    from progressive_cascade.physics import Exposure

    if options.spectrum is None:
        beside = options.pa.parent / EXPOSURE_FILE
        return read_exposure(beside) if beside.is_file() else Exposure()
    try:
        return Exposure(spectrum=options.spectrum)
    except ValueError as error:
        raise UserError(f"--spectrum: {error}") from error


def _at_one_energy(image: np.ndarray, exposure: Exposure) -> np.ndarray:
    """Line integrals of a whole spectrum, as if of water at the energy the network knows."""
    import torch

    from progressive_cascade.physics import water_equivalent

    if exposure.is_monoenergetic and exposure.spectrum == f"{EFFECTIVE_ENERGY_KEV:g}keV":
        return image
    print(f"note: line integrals of {exposure.spectrum} are brought to {EFFECTIVE_ENERGY_KEV:g} keV as if behind water")
    pixels = torch.from_numpy(image)
    return water_equivalent(pixels, exposure.beam_spectrum, scintillator=exposure.scintillator).numpy()


def write_reconstruction(
    result: Reconstruction, beam: ConeBeam, *, output: Path, checkpoint: Path | None = None
) -> list[Path]:
    """Writes CT.nii.gz, CT.json, CT.png and CT.radiographs.nii.gz.

    Args:
        result: the reconstruction.
        beam: the geometry of its radiographs.
        output: the NIfTI file; the others stand beside it.
        checkpoint: the weights' file, None for the shipped one.

    Returns:
        The paths.
    """
    from progressive_cascade.geometry import VOXEL_SIZE
    from progressive_cascade.inference.reconstruct import default_checkpoint, file_hash
    from progressive_cascade.io import atomic_paths, finite, save_json, save_nifti
    from progressive_cascade.report import volume_figure
    from progressive_cascade.report.finished import save_radiographs

    weights = checkpoint or default_checkpoint()
    record = {
        "geometry": beam.to_dict(),
        "checkpoint": {"file": weights.name, "sha256": file_hash(weights)},
        "versions": versions(),
        "calibrated": result.calibrated,
        "agreement": result.agreement,
        "refinement": None if result.refinement is None else result.refinement.to_dict(),
    }
    files = companions(output)
    with atomic_paths(*files) as (volume, sidecar, picture, radiographs):
        save_nifti(result.hu, result.affine, volume)
        save_json(finite(record), sidecar)
        volume_figure(result.hu, VOXEL_SIZE, picture, radiographs=result.image)
        save_radiographs(result.image, radiographs)
    return files


def write_uncertainty(result: Reconstruction, beam: ConeBeam, *, head: UncertaintyHead, output: Path) -> None:
    """Writes the standard deviation of the error of every voxel of a CT: whole HU, at least 1, with the CT's affine.

    Args:
        result: the reconstruction.
        beam: the geometry of its radiographs.
        head: network of :func:`progressive_cascade.inference.uncertainty.load_uncertainty`.
        output: the NIfTI file.
    """
    from progressive_cascade.inference.uncertainty import predict_sigma
    from progressive_cascade.io import save_nifti

    sigma = predict_sigma(result, beam, head).round().clip(1, 32767)
    save_nifti(sigma.astype("int16"), result.affine, output)


def describe_scores(scores: dict[str, float], protocol: str) -> str:
    """A protocol's headline scores in one line, each with the protocol in its name."""
    from progressive_cascade.evaluation.metrics import HEADLINES

    names = [f"{protocol}_{name}" for name in HEADLINES[protocol]]
    return "   ".join(f"{name} {scores[name]:.4g}" for name in names)


def _devices() -> list[str]:
    import torch

    found = [f"cpu, {torch.get_num_threads()} threads"]
    found += [f"cuda:{index}, {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return found
