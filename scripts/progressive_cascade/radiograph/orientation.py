# SPDX-License-Identifier: Apache-2.0
"""What a radiograph shows, seen from the picture alone: view, which of eight ways it lies, whether it is inverted.

A small network says of a picture how much it looks like a frontal and like a lateral radiograph as they are read. It is
asked of all sixteen copies of the picture (four turns, mirrored or not, inverted or not), and the copy with the highest
score says what was done to the picture. What holds for one way of lying therefore holds for all.

A frontal picture and its mirror image differ by heart, stomach and liver alone: a mass in the right lung, an abdomen or
a situs inversus is easily taken for mirrored. Both are therefore counted as one answer, and how much the mirrored one
makes of it is told beside. PA and AP, or a left lateral and a mirrored right one, cannot be told apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from progressive_cascade.io import read_state
from progressive_cascade.paths import bundle_root, check_shipped

SIZE = 64
"""Rows and columns of the network's picture."""
KINDS = ("frontal", "lateral")
"""What a radiograph can be."""
NUM_COPIES = 16


@dataclass(frozen=True)
class Seen:
    """What a picture shows.

    Attributes:
        kind: one of :data:`KINDS`.
        quarter_turns: counter-clockwise turns that bring it to how it is read.
        mirrored: whether it must then be flipped left to right; of a frontal never.
        inverted: whether bright must become dark first.
        probability: of all of this together.
        mirror: of a frontal, the probability that it must be flipped as well.
    """

    kind: str
    quarter_turns: int
    mirrored: bool
    inverted: bool
    probability: float
    mirror: float = 0.0

    @property
    def as_read(self) -> bool:
        """Whether it lies as it is read, bone bright."""
        return not (self.quarter_turns or self.mirrored or self.inverted)


class OrientationNet(nn.Module):
    """A convolutional network with one score per kind.

    Args:
        channels: of its five layers.
    """

    def __init__(self, channels: tuple[int, ...] = (16, 32, 48, 64, 64)) -> None:
        super().__init__()
        strides, layers, before = (2, 2, 1, 2, 1), [], 1
        for after, stride in zip(channels, strides, strict=True):
            size = 5 if before == 1 else 3
            layers += [nn.Conv2d(before, after, size, stride, size // 2), nn.GroupNorm(4, after), nn.SiLU()]
            before = after
        self.features = nn.Sequential(*layers)
        # Where something is matters as much as what it is: the last map is read as a whole.
        self.score = nn.Sequential(nn.Flatten(), nn.Linear(before * (SIZE // 8) ** 2, 32), nn.SiLU(), nn.Linear(32, 2))

    def forward(self, picture: Tensor) -> Tensor:
        """Scores of all copies.

        Args:
            picture: (b, 1, 64, 64), of zero mean and unit variance.

        Returns:
            Logits (b, 32): copy (:func:`copies`), then kind.
        """
        return self.judge(copies(picture))

    def judge(self, some: Tensor) -> Tensor:
        """Scores of some copies (b, n, 1, 64, 64): logits (b, 2 n), copy, then kind."""
        return self.score(self.features(some.flatten(0, 1))).reshape(len(some), 2 * some.shape[1])


def copies(picture: Tensor) -> Tensor:
    """The sixteen copies (b, 16, 1, s, s) of pictures (b, 1, s, s): 4 turns, then mirrored, then inverted."""
    turned = [torch.rot90(picture, quarter, (2, 3)) for quarter in range(4)]
    both = turned + [copy.flip(3) for copy in turned]
    return torch.stack(both + [-copy for copy in both], dim=1)


def as_picture(pixels: np.ndarray) -> Tensor:
    """A radiograph as the network sees it: 64 x 64, of zero mean and unit variance (1, 1, 64, 64).

    The whole picture is seen, whatever its sides: the shorter one is filled up by its own edge.
    """
    image = torch.as_tensor(np.ascontiguousarray(pixels), dtype=torch.float32)[None, None]
    rows, cols = image.shape[2:]
    scale = SIZE / max(rows, cols)
    shape = (max(1, round(rows * scale)), max(1, round(cols * scale)))
    small = F.interpolate(image, shape, mode="area")
    top, left = (SIZE - shape[0]) // 2, (SIZE - shape[1]) // 2
    small = F.pad(small, (left, SIZE - shape[1] - left, top, SIZE - shape[0] - top), mode="replicate")
    return standardized(small)


def standardized(picture: Tensor) -> Tensor:
    """Pictures (b, 1, s, s) of zero mean and unit variance each."""
    mean = picture.mean(dim=(2, 3), keepdim=True)
    return (picture - mean) / picture.std(dim=(2, 3), keepdim=True).clamp(min=1e-6)


def look_at(pixels: np.ndarray, network: nn.Module | None = None) -> Seen | None:
    """What a radiograph shows.

    Args:
        pixels: (rows, cols), any scale, finite.
        network: an :class:`OrientationNet`; default: the bundle's.

    Returns:
        The most probable answer; None where the bundle has no weights for it.
    """
    network = network or load_orientation_net()
    if network is None:
        return None
    with torch.inference_mode():
        probability = network(as_picture(pixels)).softmax(dim=1)[0]
    frontal, lateral = probability.reshape(2, 2, 4, 2).unbind(dim=3)
    # Inverted or not, mirrored or not, turns; a frontal's mirror image needs the same turn.
    together = frontal.sum(dim=1)
    if float(together.max()) >= float(lateral.max()):
        inverted, turns = divmod(int(together.argmax()), 4)
        sure = float(together.max())
        mirror = float(frontal[inverted, 1, turns]) / sure
        return Seen("frontal", turns, False, bool(inverted), sure, mirror)
    inverted, rest = divmod(int(lateral.argmax()), 8)
    return Seen("lateral", rest % 4, rest >= 4, bool(inverted), float(lateral.max()))


def default_weights() -> Path:
    """Where the training command leaves the weights, ``models/orientation.pt`` of the bundle."""
    return bundle_root() / "models" / "orientation.pt"


@lru_cache(maxsize=1)
def load_orientation_net() -> nn.Module | None:
    """The bundle's network in eval mode; None where it has not been trained.

    Raises:
        UserError: if its file is damaged or was changed.
    """
    if not default_weights().is_file():
        return None
    check_shipped(default_weights())
    network = OrientationNet()
    network.load_state_dict(read_state(default_weights()))
    return network.eval()
