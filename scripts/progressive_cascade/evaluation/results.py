# SPDX-License-Identifier: Apache-2.0
"""Score reconstructions of known CTs, beside the baselines a learned prior must beat."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.inferers.inferer import Inferer
from torch import Tensor

from progressive_cascade.attenuation import hu_to_mu, unit_to_hu
from progressive_cascade.consistency import agreement
from progressive_cascade.errors import UserError
from progressive_cascade.evaluation.agreement import draw_agreement, limits_of_agreement
from progressive_cascade.evaluation.baselines import EXTENT, resize, unlearned
from progressive_cascade.evaluation.clinical import score_chests, segment_chest
from progressive_cascade.evaluation.metrics import (
    BODY_HU,
    Truth,
    body_mask,
    parse_protocols,
    parse_truth,
    reprojection_psnr,
    score_volume,
)
from progressive_cascade.evaluation.scores import CONFIDENCE, save_csv, summarize
from progressive_cascade.geometry import VOLUME_SHAPE, VOXEL_SIZE, ConeBeam, parse_beam, volume_affine
from progressive_cascade.inference.inferers import CascadeInferer, device_defaults
from progressive_cascade.io import finite, read_json, save_json, save_nifti
from progressive_cascade.networks import ProgressiveCascade
from progressive_cascade.projector import project
from progressive_cascade.report.figures import comparison_figure
from progressive_cascade.training.cases import Case

BLAND_ALTMAN = "bland_altman.png"
"""How the name of the figure ends that shows measures against the CTs'."""


class EvaluationReport:
    """Scores every case, draws the comparison, and writes all numbers; also a handler of MONAI's evaluators.

    Args:
        output_dir: folder to write to.
        geometry: of the simulated radiographs, as for :class:`ProgressiveCascade`.
        protocols: names out of :data:`progressive_cascade.evaluation.metrics.PROTOCOLS`, a list or one text.
        save_nifti: also write each reconstruction as CASE.nii.gz.
        pictures: draw ``comparison_CASE.png``.
        baselines: also score back-projection and data-consistent least squares.
        mean: mean training volume (256, 256, 256) [HU] to score, or None.
        description: what to keep beside the numbers: checkpoint, hash, dataset.
        stem: how the names of the two files of numbers begin.
        method: what a batch's predictions are called.
        others: further ways to run the evaluator's network on a batch, by the method's name.

    Raises:
        UserError: if a protocol does not exist.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        geometry: str | dict | ConeBeam = "chest_stand",
        protocols: str | Sequence[str] = ("native",),
        save_nifti: bool = False,
        pictures: bool = True,
        baselines: bool = True,
        mean: np.ndarray | None = None,
        description: Mapping[str, Any] | None = None,
        stem: str = "evaluation",
        method: str = "cascade",
        others: Mapping[str, Inferer] | None = None,
    ) -> None:
        self.protocols = parse_protocols(protocols)
        self.output_dir = Path(output_dir)
        self.beam = parse_beam(geometry).at((0.0, 0.0, 0.0))
        self.save_nifti = save_nifti
        self.pictures = pictures
        self.baselines = baselines
        self.mean = mean
        self.description = dict(description or {})
        self.stem = stem
        self.method = method
        self.others = dict(others or {})
        self.cases: list[dict[str, Any]] = []

    @property
    def path(self) -> Path:
        """The file with all scores and their summary."""
        return self.output_dir / f"{self.stem}_metrics.json"

    def attach(self, engine: Engine) -> None:
        """Score after every batch, write at the end."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.score_batch)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def score_batch(self, engine: Engine) -> None:
        """Score the cases of a batch; see :class:`.training.simulation.SimulateBatch` for its targets."""
        batch: Any = engine.state.batch
        output: Any = engine.state.output
        size = tuple(batch["label"].shape[2:])
        units = {self.method: output["pred"], **self._infer_others(engine)}
        volumes = {name: resize(unit.detach().float(), size).clamp(0, 1) for name, unit in units.items()}
        patients = batch.get("patient", batch["case"])
        for index, name in enumerate(batch["case"]):
            truth, valid = (torch.as_tensor(batch[key][index, 0]).cpu().numpy() for key in ("label", "valid"))
            affine = torch.as_tensor(batch["affine"][index]).cpu().numpy()
            hus = {name: unit_to_hu(full[index, 0]).round().cpu().numpy() for name, full in volumes.items()}
            case = Case(str(name), str(patients[index]), truth, affine, valid)
            self.score_case(case, hus, image=output["label"]["image"][index : index + 1])

    def _infer_others(self, engine: Engine) -> dict[str, Tensor]:
        """The batch's volumes in [0, 1] by the other methods."""
        evaluator: Any = engine
        given = evaluator.state.output["label"]
        arguments = {"projection_matrices": given["matrices"], "calibrated": given["calibrated"]}
        with torch.inference_mode():
            return {name: infer(given["image"], evaluator.network, **arguments) for name, infer in self.others.items()}

    def score_case(
        self, case: Case, reconstructions: Mapping[str, np.ndarray], *, image: Tensor
    ) -> dict[str, dict[str, float]]:
        """Score reconstructions of one patient and the baselines; draw and keep the first.

        Args:
            case: the truth.
            reconstructions: volumes (x, y, z) [HU] by method; one on a coarser grid than the case's is scored against
                the CT averaged to that grid.
            image: line integrals (1, view, rows, cols) they were made from.

        Returns:
            Scores by name, by method.

        Raises:
            UserError: where the CT shows no body.
        """
        methods = dict(reconstructions)
        shape = (case.hu.shape[0], case.hu.shape[1], case.hu.shape[2])
        if self.mean is not None:
            methods["mean_volume"] = resize(torch.from_numpy(self.mean)[None, None], shape)[0, 0].numpy()
        if self.baselines:
            methods.update(unlearned(image, self.beam, shape))
        measured = image[0].cpu().numpy()
        projections = {name: self._reproject(volume) for name, volume in methods.items()}
        truths = {size: _truth(case, size) for size in {volume.shape[0] for volume in methods.values()}}
        scores: dict[str, dict[str, float]] = {}
        for name, volume in methods.items():
            scores[name] = score_volume(volume, truths[volume.shape[0]], self.protocols)
            scores[name]["reprojection_psnr_db"] = reprojection_psnr(projections[name], measured)
            if name in reconstructions:
                scores[name].update(_clinical_scores(volume, truths[volume.shape[0]]))
        first = next(iter(reconstructions))
        agreed = agreement(projections[first], measured, self.beam.views)
        self.cases.append({"case": case.name, "patient": case.patient, "scores": scores, "agreement": agreed})
        self._keep(case, reconstructions[first], scores[first], measured=measured, reprojected=projections[first])
        return scores

    def resume(self) -> bool:
        """Take up the cases of an earlier run into the same folder, if it was made alike.

        Returns:
            Whether there was one.

        Raises:
            UserError: where another checkpoint, other protocols or another setting made the file.
        """
        if not self.path.is_file():
            return False
        self.cases = self.read_cases(self.path)
        return True

    def read_cases(self, path: Path, *, may_differ: Sequence[str] = ()) -> list[dict[str, Any]]:
        """The cases of an earlier run's file, if it was made alike.

        Args:
            path: file written by :meth:`write`.
            may_differ: parts of the description that may be others.

        Returns:
            One record per case: its name, its patient, its scores by method and its agreement.

        Raises:
            FileNotFoundError: where there is no such file.
            UserError: where another checkpoint, other protocols or another setting made the file.
        """
        earlier = read_json(path)
        for key, value in finite(self._heading()).items():
            if key not in may_differ and earlier.get(key) != value:
                raise UserError(f"{path} must be of the same {key} to go on with, or be moved away")
        return [
            {**case, "scores": {method: _numbers(scores) for method, scores in case["scores"].items()}}
            for case in earlier["cases"]
        ]

    def summary(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Every score over the patients, per method; see :func:`progressive_cascade.evaluation.scores.summarize`."""
        return summarize(self.cases)

    def write(self, engine: Engine | None = None, *, finished: bool = True) -> None:
        """Write ``STEM_metrics.json`` (description, summary, every case) and ``STEM_cases.csv``.

        Args:
            engine: as a handler: whose run ends.
            finished: whether this is the last case; until then there is no summary, whose intervals take seconds.
        """
        report = {
            **self._heading(),
            "num_cases": len(self.cases),
            "num_patients": len({case["patient"] for case in self.cases}),
            **({"summary": self.summary(), "limits_of_agreement": limits_of_agreement(self.cases)} if finished else {}),
            "cases": self.cases,
        }
        save_json(finite(report), self.path)
        save_csv(self.cases, self.output_dir / f"{self.stem}_cases.csv")
        if finished and self.pictures:
            draw_agreement(self.cases, self.output_dir / f"{self.stem}_{BLAND_ALTMAN}")

    def _heading(self) -> dict[str, Any]:
        return {
            **self.description,
            "protocols": self.protocols,
            "confidence": CONFIDENCE,
            "grid": list(VOLUME_SHAPE),
            "voxel_size_mm": VOXEL_SIZE,
        }

    def _keep(
        self,
        case: Case,
        hu: np.ndarray,
        scores: Mapping[str, float],
        *,
        measured: np.ndarray,
        reprojected: np.ndarray,
    ) -> None:
        """Write the reconstruction and the picture, where they are asked for."""
        if self.save_nifti:
            save_nifti(hu.astype(np.int16), case.affine, self.output_dir / f"{case.name}.nii.gz")
        if self.pictures:
            comparison_figure(
                case.hu,
                hu,
                radiographs=measured,
                reprojected=reprojected,
                path=self.output_dir / f"comparison_{case.name}.png",
                title=f"{case.name}: {next(iter(scores.values())):.2f} dB ({self.protocols[0]} protocol)",
                spacing=EXTENT / case.hu.shape[0],
                views=self.beam.views,
            )

    def _reproject(self, hu: np.ndarray) -> np.ndarray:
        volume = hu_to_mu(torch.from_numpy(np.ascontiguousarray(hu, dtype=np.float32)))[None, None]
        matrices = torch.as_tensor(self.beam.projection_matrices())[None]
        shape = (hu.shape[0], hu.shape[1], hu.shape[2])
        affine = torch.as_tensor(volume_affine(shape, EXTENT / shape[0]))[None]
        return project(volume, matrices, affine, self.beam.detector_shape)[0].numpy()


def infer_hu(
    network: ProgressiveCascade,
    image: Tensor,
    beam: ConeBeam,
    *,
    inferer: CascadeInferer | None = None,
    calibrated: bool = True,
) -> np.ndarray:
    """A reconstruction on the cascade's own grid; `reconstruct` brings it to 256³ and gives it a place in the world.

    Args:
        network: the cascade, in eval mode.
        image: line integrals (1, view, rows, cols).
        beam: the geometry they are taken for.
        inferer: how to run it; default: the fastest way on the network's device.
        calibrated: whether the line integrals are true ones; if not, data consistency is skipped.

    Returns:
        float32 (g, g, g), whole HU.
    """
    matrices = network.projection_matrices
    inferer = inferer or CascadeInferer(**device_defaults(matrices.device)._asdict())
    given = torch.as_tensor(beam.at((0.0, 0.0, 0.0)).projection_matrices()).to(matrices)[None]
    flag = torch.tensor([float(calibrated)], device=matrices.device)
    with torch.inference_mode():
        unit = inferer(image.to(matrices), network, projection_matrices=given, calibrated=flag)
    return unit_to_hu(unit[0, 0].float().clamp(0, 1)).round().cpu().numpy()


def _truth(case: Case, size: int) -> Truth:
    """The case on a grid, to compare with."""
    truth = case if case.hu.shape[0] == size else case.at_grid(size)
    body = np.asarray(body_mask(truth.hu))
    if not (body if truth.valid is None else body & (truth.valid > 0)).any():
        raise UserError(f"case {case.name} must show a body, got no scanned voxel above {BODY_HU:g} HU")
    return parse_truth(truth.hu, valid=truth.valid, body=body)


def _clinical_scores(hu: np.ndarray, truth: Truth) -> dict[str, float]:
    """What is measured by threshold, where the scanner looked."""
    spacing = EXTENT / hu.shape[0]
    valid = truth.scanned.cpu().numpy()
    found, true = (segment_chest(volume, spacing, valid=valid) for volume in (hu, truth.hu.cpu().numpy()))
    return score_chests(found, true)


def _numbers(scores: Mapping[str, float | None]) -> dict[str, float]:
    """Scores as they were before JSON, which has null for what is not finite."""
    return {name: math.nan if value is None else value for name, value in scores.items()}
