# SPDX-License-Identifier: Apache-2.0
"""Reconstructions whose truth is known, each with what it shows of its error and with the error: made once, kept.

Pairs go through the stages up to 128³ and are interpolated, which saves almost half of the time. What the last stage
changes is far smaller than what an interval leaves open: of the validation CT 1.5 % of the error in the body, 0.04 dB,
1.2 % of sigma. Nominal pairs of test CTs go the whole way all the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from progressive_cascade.attenuation import HU_MAX, HU_MIN
from progressive_cascade.ct.datalist import load_datalist
from progressive_cascade.ct.tissues import TISSUES, tissue_classes
from progressive_cascade.errors import GeometryError, UserError
from progressive_cascade.evaluation.clinical import Chest, compare_chests, segment_chest
from progressive_cascade.evaluation.metrics import body_mask
from progressive_cascade.evaluation.perturbed import PERTURBATIONS
from progressive_cascade.geometry import VOXEL_SIZE
from progressive_cascade.inference.architecture import architecture_of
from progressive_cascade.inference.reconstruct import Reconstruction, load_cascade, reconstruct
from progressive_cascade.inference.refine import REVISION
from progressive_cascade.inference.signs import measure_signs
from progressive_cascade.inference.uncertainty import load_uncertainty, predict_sigma
from progressive_cascade.io import atomic_path, finite, read_json, save_json
from progressive_cascade.io.released import file_hash
from progressive_cascade.networks import ProgressiveCascade
from progressive_cascade.training.cases import Case, load_case

ERRORS: dict[str, str] = {
    "body_mae_hu": "mean absolute error in the body, protocol native [HU]",
    "psnr_3d_db": "PSNR of the scanned volume, protocol native [dB]",
    "lungs_surface_mm": "mean distance of the lungs' borders, on 2.8 mm voxels [mm]",
    "body_surface_mm": "mean distance of the body's border, on 2.8 mm voxels [mm]",
}
"""What is expected of a reconstruction, by name."""
FIRST_SEED = 600_000
"""Seed of the first phantom: none that anything was trained, chosen or is tested on."""
EDGES_HU = np.geomspace(1.0, 2048.0, 97)
"""Bins of sigma and of the error in a tally [HU]; what lies beyond counts in the outer ones."""
_BORDER_GRID = 128


@dataclass(frozen=True)
class Trial:
    """One reconstruction to make.

    Args:
        name: of its file.
        item: the CT or phantom, as for :func:`load_case`.
        patient: whose.
        group: ``patients``, ``phantoms`` or ``test``.
        mirrored: whether the patient is taken as his mirror image, whom networks that learnt his CT do not know.
        perturbation: of :data:`PERTURBATIONS`.
        whole: whether all stages run.
    """

    name: str
    item: Mapping[str, Any]
    patient: str
    group: str
    mirrored: bool
    perturbation: str
    whole: bool


def plan_trials(dataset: Path | None, *, phantoms: int, perturbations: int, section: str | None = None) -> list[Trial]:
    """All trials, in rounds, so that a run that is stopped early has seen everybody.

    Every CT is taken well once, and under so many perturbations, which differ from patient to patient so that each
    perturbation meets about equally many; every phantom, from the second round on, well and under one.

    Args:
        dataset: folder written by `prepare`; its training CTs come as mirror images, its validation CTs as they are.
            None: phantoms alone.
        phantoms: how many, alternately of the populations ``basic`` and ``clinical``.
        perturbations: for each CT, at most all there are.
        section: ``test``: that section's CTs alone, for a last look.

    Raises:
        UserError: if there is nobody.
    """
    sections = ("training", "validation") if section is None else (section,)
    cts = [
        (dict(item), name == "training")
        for name in sections
        for item in (load_datalist(dataset, name) if dataset else [])
    ]
    first = FIRST_SEED if section is None else FIRST_SEED + 50_000
    made = [
        ({"seed": first + number, **({} if number % 2 == 0 else {"population": "clinical"})}, False)
        for number in range(phantoms)
    ]
    placed = [((index + 0.5) / len(kind), index, *one) for kind in (cts, made) for index, one in enumerate(kind)]
    people = [each[1:] for each in sorted(placed, key=lambda each: each[0])]
    if not people:
        raise UserError("there must be somebody to reconstruct: name --dataset, or --phantoms above 0")
    others, trials = [name for name in PERTURBATIONS if name != "nominal"], []
    for round_ in range(max(min(perturbations, len(others)), 2 if phantoms else 0) + 1):
        for number, item, mirrored in people:
            turn = round_ - 1 if "seed" in item else round_
            if turn in range(2 if "seed" in item else min(perturbations, len(others)) + 1):
                chosen = "nominal" if turn == 0 else others[(turn - 1 + number) % len(others)]
                trials.append(_trial(item, chosen, mirrored=mirrored, is_test=section == "test"))
    return trials


def _trial(item: dict[str, Any], perturbation: str, *, mirrored: bool, is_test: bool) -> Trial:
    is_phantom = "seed" in item
    patient = f"phantom_{item['seed']}" if is_phantom else item["patient"]
    group = "phantoms" if is_phantom else "test" if is_test else "patients"
    name = f"{patient}_{list(PERTURBATIONS).index(perturbation)}"
    whole = group == "test" and perturbation == "nominal"
    return Trial(name, item, patient, group, mirrored, perturbation, whole)


@dataclass(frozen=True)
class _Known:
    """A patient whose truth is known: case, body on its grid, and its chest on 2.8 mm voxels."""

    case: Case
    body: np.ndarray
    chest: Chest

    @classmethod
    def load(cls, trial: Trial) -> _Known:
        case = load_case(trial.item)
        if trial.mirrored:
            valid = None if case.valid is None else np.ascontiguousarray(case.valid[::-1])
            case = replace(case, hu=np.ascontiguousarray(case.hu[::-1]), valid=valid)
        body = np.asarray(body_mask(case.hu))
        body = body if case.valid is None else body & (case.valid > 0)
        small = case.at_grid(_border_grid(case.hu))
        spacing = VOXEL_SIZE * case.hu.shape[0] / len(small.hu)
        return cls(case, body, segment_chest(small.hu, spacing, valid=small.valid))


class Trials:
    """Makes trials that are not in the folder yet.

    Args:
        checkpoint: the stand's weights.
        wide: the weights for any geometry, which take what the former do not, and give them a second opinion.
        uncertainty: weights of the network of sigma.
        cache: folder of the folders, one for each such three and revision of refining.
        device: where to reconstruct.
    """

    def __init__(self, checkpoint: Path, wide: Path, uncertainty: Path, cache: Path, device: str = "cpu") -> None:
        hashes = (file_hash(path)[:8] for path in (checkpoint, wide, uncertainty))
        self.folder = cache / "_".join([*hashes, f"r{REVISION}"])
        self._networks = {True: load_cascade(checkpoint, device), False: load_cascade(wide, device)}
        self._short = {key: without_last_stage(network) for key, network in self._networks.items()}
        self._head = load_uncertainty(uncertainty, device)
        self._known: dict[str, _Known] = {}

    def collect(self, trials: Sequence[Trial]) -> Iterator[dict[str, Any]]:
        """The record of every trial, from the folder where it is there.

        Yields:
            ``name``, ``patient``, ``group``, ``perturbation``, ``undeclared``, ``whole``, ``signs``, ``errors``, and
            ``tally``: counts by tissue of the CT, sigma and error (tissue, 96, 96).
        """
        for number, trial in enumerate(trials, start=1):
            path = self.folder / f"{trial.name}.json"
            if not path.is_file():
                start = time.process_time()
                record, tally = self._make(trial)
                self.folder.mkdir(parents=True, exist_ok=True)
                with atomic_path(path.with_suffix(".npz")) as temporary, temporary.open("wb") as file:
                    np.savez_compressed(file, tally=tally)
                save_json(finite(record), path)
                error = record["errors"]["body_mae_hu"]
                spent = f"{time.process_time() - start:.0f} CPU-s"
                print(
                    f"{number}/{len(trials)}  {trial.name} ({trial.perturbation}): {error:.0f} HU  {spent}", flush=True
                )
            yield {**read_json(path), "tally": np.load(path.with_suffix(".npz"))["tally"]}

    def _make(self, trial: Trial) -> tuple[dict[str, Any], np.ndarray]:
        if trial.patient not in self._known:
            self._known[trial.patient] = _Known.load(trial)
        known, told = self._known[trial.patient], None
        perturbation = PERTURBATIONS[trial.perturbation]
        told = perturbation.take(known.case, seed=FIRST_SEED)
        networks = self._networks if trial.whole else self._short
        given: dict[str, Any] = {"calibrated": told.intensities == "calibrated"}
        if not given["calibrated"]:
            given["intensities"] = told.intensities
        is_stand = True
        try:
            result = reconstruct(told.image, told.beam, network=networks[True], **given)
        except GeometryError:
            is_stand = False
            result = reconstruct(told.image, told.beam, network=networks[False], **given)
        sigma = predict_sigma(result, told.beam, self._head)
        second = self._networks[False] if is_stand else None
        signs = measure_signs(result, told.beam, networks[is_stand], second=second, sigma=sigma)
        record = {name: getattr(trial, name) for name in ("name", "patient", "group", "perturbation", "whole")}
        record |= {"undeclared": perturbation.undeclared, "signs": signs}
        record["errors"] = volume_errors(result.hu, known.case, known.body, known.chest)
        return record, tally_sigma(result, known.case, known.body, sigma)


def without_last_stage(network: ProgressiveCascade) -> ProgressiveCascade:
    """The cascade up to the stage before its last."""
    last = f"stages.{network.stage - 1}."
    state = {name: value for name, value in network.state_dict().items() if not name.startswith(last)}
    short = ProgressiveCascade(**architecture_of(state))
    short.load_state_dict(state)
    return short.to(network.projection_matrices.device).eval()


def volume_errors(hu: np.ndarray, case: Case, body: np.ndarray, chest: Chest) -> dict[str, float]:
    """The :data:`ERRORS` of a reconstruction.

    Args:
        hu: the reconstruction (x, y, z) [HU].
        case: the truth, of its shape.
        body: mask of the patient's scanned voxels, likewise.
        chest: of the truth on 2.8 mm voxels.
    """
    error = _errors(hu, case)
    scanned = error if case.valid is None else error[case.valid > 0]
    small = replace(case, hu=hu).at_grid(_border_grid(hu))
    borders = compare_chests(segment_chest(small.hu, chest.spacing, valid=small.valid), chest)
    mse = float(np.mean(np.square(scanned, dtype=np.float64))) / (HU_MAX - HU_MIN) ** 2
    return {
        "body_mae_hu": float(np.abs(error[body]).mean(dtype=np.float64)),
        "psnr_3d_db": -10.0 * float(np.log10(mse)),
        "lungs_surface_mm": borders["lungs_surface_mm"],
        "body_surface_mm": borders["body_surface_mm"],
    }


def tally_sigma(result: Reconstruction, case: Case, body: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """How often which error met which sigma, in the body.

    Returns:
        int64 (tissue, sigma, error): tissues by the reconstruction's HU, bins between :data:`EDGES_HU`.
    """
    bins = len(EDGES_HU) - 1
    error, spread = np.abs(_errors(result.hu, case))[body], sigma[body]
    tissue = tissue_classes(torch.from_numpy(result.hu[body].astype(np.float32))).numpy().astype(np.int64)
    places = [np.clip(np.searchsorted(EDGES_HU, values, side="right") - 1, 0, bins - 1) for values in (spread, error)]
    flat = (tissue * bins + places[0]) * bins + places[1]
    return np.bincount(flat, minlength=len(TISSUES) * bins * bins).reshape(len(TISSUES), bins, bins)


def _errors(hu: np.ndarray, case: Case) -> np.ndarray:
    """Reconstruction minus truth, both in the networks' window [HU]."""
    found, truth = (values.astype(np.float32).clip(HU_MIN, HU_MAX) for values in (hu, case.hu))
    return found - truth


def _border_grid(hu: np.ndarray) -> int:
    return min(_BORDER_GRID, hu.shape[0])
