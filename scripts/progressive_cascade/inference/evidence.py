# SPDX-License-Identifier: Apache-2.0
"""One patient's radiographs as evidence to refine on: what each pixel weighs, what is held back, how far calibrated."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from progressive_cascade.consistency import apply_projector, estimate_noise, shrink_radiographs
from progressive_cascade.errors import UserError
from progressive_cascade.inference.calibration import ViewCalibration, fit_view
from progressive_cascade.inference.frames import Frame, in_frame
from progressive_cascade.networks import ProgressiveCascade
from progressive_cascade.networks.stages import EXTENT

EXPECTED_RESIDUAL = 0.095
"""Root mean square of line integrals that stage 1 leaves unexplained of patients like those it was trained on. A true
volume of 5.6 mm voxels leaves 0.05 to 0.06; phantoms, brought from 0.09 to there, lost 0.2 to 0.4 dB on stage 1's grid.
"""
# Side of a patch that is held back as a whole [pixels of the stage], wider than what a voxel casts.
_PATCH = 8
# A radiograph without a patient holds noise about 0, or about an unknown offset; 10 mm of water cast 0.2.
_EMPTY_LINE_INTEGRAL = 0.2
# Noise grows with the line integral as its exponential; beyond these bounds the model is not to be believed.
_LOG_NOISE_RANGE = (-3.0, 6.0)


class Evidence:
    """The radiographs of a patient, read by stage 1.

    Args:
        network: the cascade.
        image: on the scale of line integrals (1, view, rows, cols).
        matrices: (1, view, 3, 4).
        known: of the intensities, one of :data:`.calibration.KNOWN`.
        pose: whether each view's pose is looked for.
        held_out: share of the patches that is held back.
        seed: of their choice.
        mask: 1 where a pixel counts (1, view, rows, cols); None: everywhere.

    Raises:
        UserError: if the radiographs show no body.
    """

    def __init__(
        self,
        network: ProgressiveCascade,
        image: Tensor,
        matrices: Tensor,
        *,
        known: str,
        pose: bool,
        held_out: float,
        seed: int,
        mask: Tensor | None,
    ) -> None:
        self.stage: Any = network.stages[0]
        self.network, self.given, self.nominal = network, image, matrices
        self.pose = pose
        self.is_sure = known == "calibrated"
        self.searches = pose or not self.is_sure
        _check_body(image, known)
        self.known = known
        self.views = self._start()
        self.size = 2 * self.stage.grid
        self.basis = [self._shrink(view.basis(pixels)) for view, pixels in zip(self.views, image[0], strict=True)]
        shown = torch.ones_like(image) if mask is None else mask.to(image)
        self.shown = (shrink_radiographs(shown, matrices, self.size)[0] > 0.99).float()
        self.held = _choose_patches(self.shown, held_out, seed)
        self.affine: Tensor = self.stage.consistency.affine[None]
        self._read(self.is_sure)

    def forget(self) -> None:
        """Goes back to the radiographs as they were given, and what was known of them."""
        self.views = self._start()
        self._read(self.is_sure)

    def predict(self, parameters: dict[str, Tensor], frame: Frame = (0, 0, 0)) -> tuple[Tensor, Tensor]:
        """Stage 1's volume on the cube in a frame (1, 1, g, g, g), and what it explains (1, view, rows, cols)."""
        matrices = self._lay(self.matrices, frame)
        if frame not in self._contexts:
            with torch.no_grad():
                self._contexts[frame] = self.network.prepare_stage(self.image, matrices, self.flag, number=1)
        start, context = self._contexts[frame]
        volume = functional_call(self.stage, parameters, (start, [0, 0, 0], context))
        volume = self.stage.consistency(volume, self.image, matrices, self.flag)
        return volume, self._project(self.stage.consistency.to_mu(volume), self._lay(self.small_matrices, frame))

    def losses(self, explained: Tensor) -> tuple[Tensor, Tensor]:
        """Mean square of what is left unexplained over its expectation, outside and inside the held-back patches."""
        square = self.weights * (self.small - explained) ** 2
        inside, outside = self.held * self.shown, (1 - self.held) * self.shown
        return (square * outside).sum() / outside.sum().clamp(min=1), (square * inside).sum() / inside.sum().clamp(
            min=1
        )

    def residuals(self, explained: Tensor) -> tuple[float, float]:
        """Root mean squares of ``y - A x``, of all pixels that count and of the held-back ones."""
        square, inside = (self.small - explained) ** 2 * self.shown, self.held * self.shown
        everywhere = float(square.sum() / self.shown.sum().clamp(min=1))
        return math.sqrt(everywhere), math.sqrt(float((square * inside).sum() / inside.sum().clamp(min=1)))

    def calibrate(self, volume: Tensor, explained: Tensor, frame: Frame = (0, 0, 0)) -> None:
        """Fit intensities and pose to what a volume in a frame explains, and read the radiographs anew."""
        nominal = shrink_radiographs(self.given, self.nominal, self.size)[1]
        mu = self.stage.consistency.to_mu(volume.detach())

        def project(matrix: Tensor) -> Tensor:
            return self._project(mu, self._lay(matrix[None, None], frame))[0, 0]

        weights = self.weights * (1 - self.held)
        for index, view in enumerate(self.views):
            self.views[index] = fit_view(
                view,
                basis=self.basis[index],
                explained=explained[0, index].detach(),
                weights=weights[0, index],
                matrix=nominal[0, index],
                project=project if self.pose else None,
            )
        self._read(True)

    def _start(self) -> list[ViewCalibration]:
        return [ViewCalibration.start(self.known, view.cpu().numpy()) for view in self.given[0]]

    def _read(self, calibrated: bool) -> None:
        """What follows from the calibration so far: line integrals, matrices and weights."""
        triples = list(zip(self.views, self.given[0], self.nominal[0], strict=True))
        self.image = torch.stack([view.line_integrals(pixels) for view, pixels, _ in triples])[None]
        self.matrices = torch.stack([view.move(matrix) for view, _, matrix in triples])[None]
        self.small, self.small_matrices = shrink_radiographs(self.image, self.matrices, self.size)
        self.weights = _inverse_variance(self.image, self.small) * self.shown
        self.flag = torch.full((1,), float(calibrated), device=self.image.device)
        self._contexts: dict[Frame, Any] = {}

    def _lay(self, matrices: Tensor, frame: Frame) -> Tensor:
        return in_frame(matrices, frame, EXTENT / self.stage.grid) if any(frame) else matrices

    def _project(self, mu: Tensor, matrices: Tensor) -> Tensor:
        return apply_projector(mu, matrices, self.affine, (self.small.shape[2], self.small.shape[3]))

    def _shrink(self, parts: Tensor) -> Tensor:
        return F.avg_pool2d(parts[None], max(1, parts.shape[2] // self.size))[0]


def _check_body(image: Tensor, known: str) -> None:
    """Refuses a view in which nothing stands out, be its level known or not."""
    for index, view in enumerate(image[0]):
        low = 0.0 if known == "calibrated" else float(view.amin())
        if float(view.amax()) - low < _EMPTY_LINE_INTEGRAL:
            raise UserError(
                f"radiographs must show a patient to refine on, view {index} has nothing but {known} values within "
                f"{_EMPTY_LINE_INTEGRAL:g} of {low:.2g}; --refine 0 takes them as they are"
            )


def _inverse_variance(image: Tensor, small: Tensor) -> Tensor:
    """Of a small pixel: quantum noise, as it is estimated and as it grows behind the patient, and the grid's limits.

    Args:
        image: line integrals at full resolution (1, view, rows, cols).
        small: averaged to the stage's pixels.

    Returns:
        As ``small``.
    """
    views = []
    for view, pixels in zip(image[0], small[0], strict=True):
        # The estimate is that of the pixel with the median noise, behind the median line integral.
        growth = (pixels - view.median()).clamp(*_LOG_NOISE_RANGE).exp()
        averaged = view.numel() / pixels.numel()
        views.append(estimate_noise(view[None, None]) ** 2 * growth / averaged + EXPECTED_RESIDUAL**2)
    return 1.0 / torch.stack(views)[None]


def _choose_patches(shown: Tensor, share: float, seed: int) -> Tensor:
    """1 in the patches that are held back, 0 elsewhere, as ``shown`` (1, view, rows, cols)."""
    _, views, rows, cols = shown.shape
    generator = torch.Generator().manual_seed(seed)
    high, wide = -(-rows // _PATCH), -(-cols // _PATCH)
    ranks = torch.rand(views, high * wide, generator=generator).argsort(dim=1).argsort(dim=1)
    chosen = (ranks < max(1, round(share * high * wide))).reshape(1, views, high, wide).to(shown)
    return F.interpolate(chosen, scale_factor=float(_PATCH))[..., :rows, :cols].contiguous()
