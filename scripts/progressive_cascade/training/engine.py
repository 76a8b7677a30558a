# SPDX-License-Identifier: Apache-2.0
"""What SupervisedTrainer cannot do with a batch: weigh a window's loss, measure a masked PSNR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.metrics import CumulativeIterationMetric
from torch import Tensor, nn

from progressive_cascade.losses import CascadeLoss, Reprojection


class StageObjective(nn.Module):
    """The weighted loss of a stage on what :class:`.simulation.SimulateBatch` made; terms are kept by name for the log.

    Args:
        loss: the weighted sum.
    """

    def __init__(self, loss: CascadeLoss) -> None:
        super().__init__()
        self.loss = loss
        self._values: dict[str, Tensor] = {}
        self._terms: dict[str, float] = {}

    @property
    def terms(self) -> dict[str, float]:
        """The last batch's terms by name; a GPU is waited for when they are asked for, once for all."""
        if self._values:
            self._terms = dict(zip(self._values, torch.stack(list(self._values.values())).cpu().tolist(), strict=True))
            self._values = {}
        return self._terms

    def forward(self, prediction: Tensor, targets: Mapping[str, Any]) -> Tensor:
        """Loss of a whole prediction; where a window was refined, voxel terms look at that window alone.

        Args:
            prediction: (b, 1, g, g, g) in [0, 1].
            targets: of :class:`.simulation.SimulateBatch`.

        Returns:
            Scalar.
        """
        reprojection = Reprojection(
            volume=prediction,
            image=targets["image"],
            matrices=targets["matrices"],
            affine=targets["affine"].expand(len(prediction), 4, 4),
            calibrated=targets["calibrated"],
            weights=targets["weights"],
        )
        where = (slice(None), slice(None), *_window_slices(targets["window"]))
        terms = self.loss(
            prediction[where], targets["label"][where], valid=targets["valid"][where], reprojection=reprojection
        )
        self._values = {name: value.detach() for name, value in terms.items()}
        return terms["loss"]


class MaskedPSNR(CumulativeIterationMetric):
    """3-D PSNR inside the scanned region, data_range 1: the ``native`` protocol's PSNR, batch by batch."""

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        if y is None:
            raise ValueError("y must be the label and its valid mask, got None")
        label, valid = y[:, :1], y[:, 1:]
        count = valid.sum(dim=(1, 2, 3, 4)).clamp(min=1)
        mse = ((y_pred.clamp(0, 1) - label) ** 2 * valid).sum(dim=(1, 2, 3, 4)) / count
        return -10 * torch.log10(mse.clamp(min=1e-10))[:, None]

    def aggregate(self) -> Tensor:
        """Mean over the cases [dB]."""
        return torch.as_tensor(self.get_buffer()).mean()


def psnr_inputs(output: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Evaluator output to the arguments of :class:`MaskedPSNR`."""
    targets = output["label"]
    return output["pred"].detach(), torch.cat((targets["label"], targets["valid"]), dim=1)


def _window_slices(window: Sequence[int] | None) -> tuple[slice, slice, slice]:
    if window is None:
        return (slice(None), slice(None), slice(None))
    x, y, z = (slice(window[axis], window[axis] + window[axis + 3]) for axis in range(3))
    return x, y, z
