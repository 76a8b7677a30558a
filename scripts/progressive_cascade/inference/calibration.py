# SPDX-License-Identifier: Apache-2.0
"""What two radiographs were not told about themselves: gain, offset, tone curve and pose, found while refining.

Of a view's given pixels g, line integrals are ``y = Σ c_k φ_k(g)``: the coefficients of a line (gain and offset) or of
a monotone curve through five knots. A volume x explains them as ``A(t) x`` with the pose t. Both are found from

    min over c, d:  Σ w (Σ c_k φ_k - A(t) x - J d)² / n + |(c, d) - prior|² / s²,      J = dA(t)x / dt,

a least-squares problem of a handful of numbers with bounds, solved exactly for every view.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from progressive_cascade.geometry.poses import move_patient

KNOWN = ("calibrated", "scaled", "display")
"""What is known of pixel values: true line integrals; line integrals but for gain and offset; no more than their order.
"""
NUM_KNOTS = 5
SHIFT_LIMIT_MM = 5.0
TURN_LIMIT_DEGREES = 2.0
POSE = ("shift_columns_mm", "shift_rows_mm", "turn_x_degrees", "turn_y_degrees", "turn_z_degrees")
"""The pose of a view: the patient's shift along the detector's columns and rows, and turns about the world's axes."""
GAIN_RANGE = (0.5, 2.0)
OFFSET_RANGE = (-0.6, 0.6)
# A segment of the tone curve may be this much flatter or steeper than the straight line it starts from.
_SLOPE_RANGE = (0.2, 4.0)
_GAIN_DEVIATION, _OFFSET_DEVIATION, _SLOPE_DEVIATION = 0.2, 0.2, 0.5
_SHIFT_DEVIATION, _TURN_DEVIATION = 2.0, 1.0
# What a wrong volume leaves unexplained is alike within a patch of about 8 x 8 pixels, which therefore count once.
_CORRELATED_PIXELS = 64
# Steps of the finite differences: a tenth of a 5.6 mm voxel [mm], and as much at the edge of a patient [degrees].
_POSE_STEPS = (0.5, 0.5, 0.2, 0.2, 0.2)
_AT_THE_EDGE = 1e-3


@dataclass
class ViewCalibration:
    """What was found for one view.

    Attributes:
        known: one of :data:`KNOWN`.
        knots: pixel values between which the curve is straight, ascending (n,); none but for ``display``.
        values: gain and offset, or the first knot's line integral and the rises from knot to knot.
        pose: shifts [mm] and turns [degrees] in the order of :data:`POSE`.
    """

    known: str
    knots: np.ndarray
    values: np.ndarray
    pose: np.ndarray

    @classmethod
    def start(cls, known: str, pixels: np.ndarray) -> ViewCalibration:
        """The calibration that changes nothing.

        Args:
            known: one of :data:`KNOWN`.
            pixels: of the view, on the scale of line integrals.

        Raises:
            ValueError: if there is no such knowledge.
        """
        if known not in KNOWN:
            raise ValueError(f"known must be one of {KNOWN}, got {known!r}")
        knots, values = np.zeros(0), np.array([1.0, 0.0])
        if known == "display":
            low, high = np.percentile(pixels, [0.5, 99.5])
            knots = np.linspace(low, max(high, low + 1e-3), NUM_KNOTS)
            values = np.array([knots[0], *np.diff(knots)])
        return cls(known, knots, values, np.zeros(len(POSE)))

    def basis(self, pixels: Tensor) -> Tensor:
        """The functions whose weighted sum, by :attr:`values`, are the line integrals.

        Args:
            pixels: (rows, cols).

        Returns:
            (n, rows, cols).
        """
        if self.known != "display":
            return torch.stack((pixels, torch.ones_like(pixels)))
        knots = torch.as_tensor(self.knots).to(pixels)
        # The first and the last segment go on beyond their knots.
        rises = [(pixels - low) / (high - low) for low, high in pairwise(knots)]
        last = len(rises) - 1
        return torch.stack(
            [
                torch.ones_like(pixels),
                *(
                    rise.clamp(min=0.0 if i else -torch.inf, max=torch.inf if i == last else 1.0)
                    for i, rise in enumerate(rises)
                ),
            ]
        )

    def line_integrals(self, pixels: Tensor) -> Tensor:
        """(rows, cols) -> (rows, cols)."""
        if self.known == "calibrated":
            return pixels
        return torch.einsum("n,nrc->rc", torch.as_tensor(self.values).to(pixels), self.basis(pixels))

    def move(self, matrix: Tensor) -> Tensor:
        """The view's projection matrix with its pose, (3, 4) -> (3, 4)."""
        return moved_matrix(matrix, self.pose) if self.pose.any() else matrix

    def at_edge(self) -> dict[str, tuple[float, float, float]]:
        """What ended at an edge of its range: by name its value, and the lowest and highest believed possible."""
        _, low, high, _ = _priors(self, pose=True)
        names = [*_value_names(self), *POSE]
        now = np.concatenate(([] if self.known == "calibrated" else self.values, self.pose))
        rows = zip(names, now.tolist(), low.tolist(), high.tolist(), strict=True)
        return {name: (x, a, b) for name, x, a, b in rows if min(x - a, b - x) < _AT_THE_EDGE * (b - a)}

    def to_dict(self) -> dict[str, object]:
        """What a sidecar keeps: the line or the curve, and the pose where one was looked for."""
        found: dict[str, object] = {"known": self.known}
        if self.known == "scaled":
            found |= {"gain": float(self.values[0]), "offset": float(self.values[1])}
        if self.known == "display":
            curve = np.cumsum(self.values)
            found["tone_curve"] = {"pixel": self.knots.tolist(), "line_integral": curve.tolist()}
        if self.pose.any():
            found["pose"] = dict(zip(POSE, self.pose.tolist(), strict=True))
        return found


def moved_matrix(matrix: Tensor, pose: np.ndarray) -> Tensor:
    """A view's projection matrix after the patient moved.

    Args:
        matrix: (3, 4), RAS mm about the isocenter to pixels.
        pose: in the order of :data:`POSE`.

    Returns:
        (3, 4), of the matrix's dtype.
    """
    exact = matrix.double().cpu()
    along = exact[2, :3]
    columns, rows = (
        F.normalize(exact[i, :3] - (exact[i, :3] @ along) / (along @ along) * along, dim=0) for i in (0, 1)
    )
    moved = move_patient(exact, torch.from_numpy(pose[2:]), pose[0] * columns + pose[1] * rows)
    return moved.to(matrix)


def fit_view(
    found: ViewCalibration,
    *,
    basis: Tensor,
    explained: Tensor,
    weights: Tensor,
    matrix: Tensor,
    project: Callable[[Tensor], Tensor] | None = None,
) -> ViewCalibration:
    """One exact least-squares step for a view: values, and pose where it is asked for, given what a volume explains.

    Args:
        found: what is known so far.
        basis: of its :meth:`ViewCalibration.basis`, averaged to the pixels of ``explained`` (n, rows, cols).
        explained: line integrals of the volume in the pose so far (rows, cols).
        weights: inverse variances of the pixels, 0 where they do not count (rows, cols).
        matrix: the view's nominal projection matrix (3, 4), of the pixels of ``explained``.
        project: projects the volume by a matrix (3, 4) to (rows, cols); None: the pose stays.

    Returns:
        The new calibration.
    """
    columns = [] if found.known == "calibrated" else [part.flatten() for part in basis.double()]
    if project is not None:
        for index, step in enumerate(_POSE_STEPS):
            pose = found.pose.copy()
            pose[index] += step
            slope = (project(moved_matrix(matrix, pose)) - explained).double() / step
            columns.append(-slope.flatten())
    if not columns:
        return found
    target = explained.double().flatten()
    if found.known == "calibrated":
        target = target - basis[0].double().flatten()
    if project is not None:
        # The slopes are about the pose so far; the prior is about none.
        target = target + torch.stack(columns[-len(POSE) :], dim=1) @ torch.as_tensor(found.pose).to(target)
    solution = _bounded(torch.stack(columns, dim=1), target, weights.double().flatten(), found, project is not None)
    split = 0 if found.known == "calibrated" else len(found.values)
    return ViewCalibration(
        found.known,
        found.knots,
        solution[:split] if split else found.values,
        solution[split:] if project is not None else found.pose,
    )


def _bounded(design: Tensor, target: Tensor, weights: Tensor, found: ViewCalibration, pose: bool) -> np.ndarray:
    # Workflows that have nothing to calibrate do without scipy.
    from scipy.optimize import lsq_linear

    mean, low, high, deviation = _priors(found, pose=pose)
    weighed = design * (weights / _CORRELATED_PIXELS)[:, None]
    normal = (design.T @ weighed).cpu().numpy() + np.diag(deviation**-2)
    right = (weighed.T @ target).cpu().numpy() + mean / deviation**2
    # |L' x - L⁻¹ r|² is the same problem in as many rows as there are unknowns.
    factor = np.linalg.cholesky(normal)
    return lsq_linear(factor.T, np.linalg.solve(factor, right), bounds=(low, high), method="bvls").x


def _value_names(found: ViewCalibration) -> list[str]:
    if found.known == "calibrated":
        return []
    if found.known == "scaled":
        return ["gain", "offset"]
    return [f"tone_curve_{index}" for index in range(NUM_KNOTS)]


def _priors(found: ViewCalibration, *, pose: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean, lowest, highest, and standard deviation of every unknown."""
    rows: list[tuple[float, float, float, float]] = []
    if found.known == "scaled":
        rows = [(1.0, *GAIN_RANGE, _GAIN_DEVIATION), (0.0, *OFFSET_RANGE, _OFFSET_DEVIATION)]
    if found.known == "display":
        first, rise = float(found.knots[0]), float(found.knots[1] - found.knots[0])
        rows = [(first, first - 1.0, first + 1.0, 2 * _OFFSET_DEVIATION)]
        rows += [(rise, rise * _SLOPE_RANGE[0], rise * _SLOPE_RANGE[1], rise * _SLOPE_DEVIATION)] * (NUM_KNOTS - 1)
    if pose:
        rows += [(0.0, -SHIFT_LIMIT_MM, SHIFT_LIMIT_MM, _SHIFT_DEVIATION)] * 2
        rows += [(0.0, -TURN_LIMIT_DEGREES, TURN_LIMIT_DEGREES, _TURN_DEVIATION)] * 3
    table = np.array(rows, dtype=np.float64).reshape(-1, 4)
    return table[:, 0], table[:, 1], table[:, 2], table[:, 3]
