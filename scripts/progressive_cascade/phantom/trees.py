# SPDX-License-Identifier: Apache-2.0
"""Trees of vessels and airways that branch from the hila into the lungs [mm]."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from progressive_cascade.phantom.tubes import Tubes

_MURRAY = 2.5  # radius of a branch ~ (leaves it feeds)^(1/2.5), between area- and flow-preserving


def draw_targets(
    rng: np.random.Generator,
    depth_at: Callable[[np.ndarray], np.ndarray],
    *,
    low: np.ndarray,
    high: np.ndarray,
    count: int,
) -> np.ndarray:
    """Points spread over the inside of an organ: (count, 3) [mm].

    Args:
        rng: source of randomness.
        depth_at: signed distance to the organ at points (n, 3), negative inside [mm].
        low: corner of a box around the organ [mm].
        high: the opposite corner [mm].
        count: points wanted.
    """
    points = rng.uniform(low, high, (8 * count, 3))
    depth = depth_at(points)
    inside = points[depth < -2.0]
    if len(inside) == 0:  # no lung to speak of: a tree without extent
        inside = points[np.argsort(depth)[:1]]
    return inside[np.arange(count) % len(inside)]


def grow_tree(
    rng: np.random.Generator, root: np.ndarray, targets: np.ndarray, *, radius: float, depth: int
) -> list[Tubes]:
    """A tree that halves its set of targets (2^m, 3) at each fork and grows towards each half's middle.

    Args:
        rng: source of randomness.
        root: where the tree starts (3,) [mm].
        targets: points to be reached [mm].
        radius: of the first branch [mm].
        depth: forks from root to tip, at most m.

    Returns:
        the branches of each generation, the thickest first.
    """
    generations = []
    groups = targets[None]
    nodes = root[None]
    arriving = np.zeros((1, 3))
    for level in range(depth):
        axis = groups.std(1) + rng.uniform(0, 6, (len(groups), 3))
        direction = axis * rng.choice([-1.0, 1.0], axis.shape)
        order = np.argsort(np.einsum("gnc,gc->gn", groups, direction), axis=1)
        groups = np.take_along_axis(groups, order[:, :, None], 1).reshape(2 * len(groups), -1, 3)
        parents, before = np.repeat(nodes, 2, 0), np.repeat(arriving, 2, 0)
        middle = groups.mean(1)
        share = rng.uniform(0.42, 0.62, (len(groups), 1)) if level < depth - 1 else 0.9
        nodes = parents + share * (middle - parents)
        arriving = nodes - parents
        # A branch leaves in the direction of the one it comes from and bends towards its goal.
        length = np.linalg.norm(arriving, axis=1, keepdims=True)
        forward = before / np.maximum(np.linalg.norm(before, axis=1, keepdims=True), 1e-6)
        knee = parents + 0.5 * arriving + 0.12 * length * forward + 0.05 * length * rng.standard_normal(arriving.shape)
        r = radius * 0.5 ** ((level + 0.35) / _MURRAY)
        count = len(nodes)
        generations.append(_branches(parents, knee, nodes, radius=np.full(count, r) * rng.uniform(0.8, 1.15, count)))
        arriving = nodes - knee
    return generations


def _branches(start: np.ndarray, knee: np.ndarray, end: np.ndarray, *, radius: np.ndarray) -> Tubes:
    """Bent branches, cut into pieces of similar length."""
    longest = float(np.percentile(np.linalg.norm(end - start, axis=1), 75))
    count = max(2, int(np.ceil(longest / 5.0)))
    t = np.linspace(0, 1, count + 1)[:, None, None]
    curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * knee + t**2 * end
    first, last = curve[:-1].reshape(-1, 3), curve[1:].reshape(-1, 3)
    taper = np.tile(radius, (count, 1)) * np.linspace(1.06, 0.86, count)[:, None]
    radii = taper.reshape(-1)
    return Tubes(first, last, radii, radii, np.tile([0.0, 0.0, 1.0], (len(first), 1)))
