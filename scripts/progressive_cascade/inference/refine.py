# SPDX-License-Identifier: Apache-2.0
"""Stage 1 refined on the case's own radiographs: its weights go on learning on what they leave unexplained.

A copy of stage 1's weights θ takes a few steps of Adam on

    L(θ) = Σ w (y - A N(θ, y))² / n,

the weighted square of what the volume N(θ, y) does not explain of the radiographs y, at two pixels per voxel. The
weights of a network spread a correction along anatomy, where voxels would spread it along rays. A tenth of the
radiographs, in patches, is kept out of the loss: the volume that explains these best is the one that is taken.
The last five passes lay the cube elsewhere each, and the volume is their mean (:mod:`.frames`): what averaging gains
costs no pass more. Where the intensities or the pose are not known they are fitted along (:mod:`.calibration`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from progressive_cascade.errors import UserError
from progressive_cascade.inference.evidence import Evidence
from progressive_cascade.inference.frames import FRAMES, Frame
from progressive_cascade.inference.passes import Passes, State
from progressive_cascade.inference.tuned import TunedWeights
from progressive_cascade.networks import ProgressiveCascade

DEFAULT_STEPS = 8
"""They hold most of what there is to gain, for 12 to 15 s on two cores (bundle/docs/EXPERIMENTS.md)."""
MAX_STEPS = 1000
REVISION = 3
"""Raised whenever refining comes to do something else with the same settings: what older code found is then not taken
from where it is kept."""
BELIEVABLE_RESIDUAL = 0.24
"""Radiographs of unknown intensities that leave more unexplained before the first step, root mean square of the line
integrals, are neither refined on nor taken for line integrals. Right pairs with a tone curve alone leave 0.09 to 0.24
and gain; with a console's local contrast, or acquired, they leave more and lose (bundle/docs/EXPERIMENTS.md)."""
# A loss so many times the lowest will not come back within the steps there are: the last step is taken back, and the
# next ones are a third as long. Networks differ in how long a step they bear.
_RISE, _SHORTER, _RETREATS = 2.0, 1 / 3, 3
# Adam's first steps are as long where little is left to explain as where much is, and lead beyond it: from less than
# twice of what is expected on they are shorter, as the square of the excess, down to this share.
_SHORTEST = 0.1
# A round is kept where a single pass explains the held-back patches less than a tenth better: they are few, and show
# little of what averaging gains in the volume.
_ROUND = 1.1
# Steps in which the held-back patches may be explained no better than before.
_PATIENCE = 10
# Passes without a gradient that bring the intensities near their values before the weights move.
_CALIBRATION_PASSES = 3


@dataclass(frozen=True)
class RefineSettings:
    """How stage 1 is refined.

    Args:
        steps: at most so many, 0 to 1000; 0: not at all.
        learning_rate: of Adam.
        parameters: what the names of the tuned parameters of stage 1 start with; empty: all of them.
        held_out: share of the radiographs' patches that is kept out of the loss.
        discrepancy: refining stops at this multiple of the loss that noise and grid let expect; 0: never.
        believable: see :data:`BELIEVABLE_RESIDUAL`; 0: whatever is left unexplained.
        pose: also fit an in-plane shift and three turns of each view.
        frames: where stage 1's cube is laid in the last passes, whose mean is kept; the first one as it stands.
        seed: of the patches.

    Raises:
        UserError: if the steps do not lie in 0 to 1000.
        ValueError: if another value is impossible.
    """

    steps: int = DEFAULT_STEPS
    learning_rate: float = 3e-4
    parameters: tuple[str, ...] = ()
    held_out: float = 0.1
    discrepancy: float = 1.0
    believable: float = BELIEVABLE_RESIDUAL
    pose: bool = False
    frames: tuple[Frame, ...] = FRAMES
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or not 0 <= self.steps <= MAX_STEPS:
            raise UserError(f"refine must be a number of steps from 0 (off) to {MAX_STEPS}, got {self.steps}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must lie in (0, 1), got {self.held_out}")
        if not self.frames or any(self.frames[0]):
            raise ValueError(f"frames must begin with the cube as it stands, (0, 0, 0), got {self.frames}")
        for name in ("discrepancy", "believable"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True)
class RefinementReport:
    """What refining one patient did.

    Attributes:
        steps: taken.
        kept: after how many of them the volume is that was kept; 0: the unrefined one.
        stopped: why: ``steps`` (the limit), ``discrepancy`` (no more unexplained than noise and grid allow),
            ``held_out`` (the held-back patches are explained no better any more), ``rising`` (the loss grew, however
            short the steps) or ``unexplained`` (so badly that no step was taken, and no intensity found is believed).
        residual_before: root mean square of ``y - A x`` before the first step, with the intensities found by then.
        residual_after: of the volume that was kept.
        held_out_before: the same in the patches kept out of the loss, before.
        held_out_after: and of the volume that was kept.
        spread_hu: mean deviation, in the body, of the volumes whose mean was kept [HU]; 0 of one alone.
        calibration: what was found, by view; empty for calibrated radiographs whose pose is not looked for.
        warnings: one line each.
    """

    steps: int
    kept: int
    stopped: str
    residual_before: float
    residual_after: float
    held_out_before: float
    held_out_after: float
    spread_hu: float = 0.0
    calibration: list[dict[str, object]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As a sidecar keeps it."""
        return asdict(self)


@dataclass(frozen=True)
class Refinement:
    """What the later stages go on with.

    Attributes:
        volume: of stage 1 (b, 1, g, g, g) in [0, 1].
        image: line integrals (b, view, rows, cols), as calibrated.
        matrices: (b, view, 3, 4), with the pose found.
        calibrated: 1 where the image is to be taken for true line integrals, else 0 (b,).
        reports: one per sample.
    """

    volume: Tensor
    image: Tensor
    matrices: Tensor
    calibrated: Tensor
    reports: list[RefinementReport]


def refine(
    network: ProgressiveCascade,
    image: Tensor,
    matrices: Tensor,
    *,
    known: str | Sequence[str] = "calibrated",
    settings: RefineSettings | None = None,
    mask: Tensor | None = None,
    observe: Callable[[int, Tensor], None] | None = None,
) -> Refinement:
    """Refine stage 1 on radiographs; the network stays as it is, and the same input gives the same result.

    Works in float32, also under autocast and within :func:`torch.inference_mode`.

    Args:
        network: the cascade, in eval mode.
        image: line integrals, or what :func:`progressive_cascade.inference.transforms.to_line_integrals` made of
            other values (b, view, rows, cols).
        matrices: (b, view, 3, 4), RAS mm about the isocenter to pixels.
        known: of each sample's intensities, see :data:`progressive_cascade.inference.calibration.KNOWN`.
        settings: default: :class:`RefineSettings`.
        mask: 1 where a pixel shows the patient, 0 where it must not count (b, view, rows, cols).
        observe: called with the number of steps taken so far and the volume they lead to, for every sample in turn.

    Returns:
        Stage 1's volume, and what was found on the way.

    Raises:
        UserError: if a radiograph shows no body, or the network is an exported program.
        ValueError: if another argument does not fit.
    """
    settings = settings or RefineSettings()
    if not isinstance(network, ProgressiveCascade):
        raise UserError(f"refine needs a cascade's weights, got {type(network).__name__}; 0 steps leave it as it is")
    found = []
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(image.device.type, enabled=False):
        # Tensors made in inference mode cannot be differentiated through; copies made here can.
        given, places = image.float().clone(), matrices.float().expand(len(image), -1, -1, -1).clone()
        for b, level in enumerate(per_sample(known, len(image))):
            evidence = Evidence(
                network,
                given[b : b + 1],
                places[b : b + 1],
                known=level,
                **{name: getattr(settings, name) for name in ("pose", "held_out", "seed")},
                mask=None if mask is None else mask[b : b + 1].clone(),
            )
            found.append(_tune(evidence, settings, observe))
    return join(found)


def per_sample(known: str | Sequence[str], samples: int) -> list[str]:
    """One word for each sample; ValueError where neither one is given nor as many."""
    levels = [known] * samples if isinstance(known, str) else list(known)
    if len(levels) != samples:
        raise ValueError(f"known must be one word or {samples}, got {levels}")
    return levels


def join(found: Sequence[Refinement]) -> Refinement:
    """A batch of what was found sample by sample."""
    tensors = (
        torch.cat([getattr(one, name) for one in found]) for name in ("volume", "image", "matrices", "calibrated")
    )
    return Refinement(*tensors, reports=[report for one in found for report in one.reports])


def _tune(
    evidence: Evidence, settings: RefineSettings, observe: Callable[[int, Tensor], None] | None = None
) -> Refinement:
    """Passes that calibrate, then steps; the volume that explains the held-back patches best is taken."""
    weights = TunedWeights(evidence.stage, settings.parameters, settings.learning_rate)
    if evidence.searches:
        for _ in range(_CALIBRATION_PASSES):
            evidence.calibrate(*evidence.predict(weights.values))
    frames = settings.frames if settings.steps else settings.frames[:1]
    passes = Passes(evidence, weights.values, frames, settings.steps)
    lowest, stopped = math.inf, ""
    for step in range(settings.steps + 1):
        with torch.enable_grad():
            loss, now = passes.run(step)
        if observe is not None:
            observe(step, now.volume)
        if step == 0:
            first = best = now
            if not evidence.is_sure and 0 < settings.believable < now.residuals[0]:
                evidence.forget()
                return _disbelieve(Passes(evidence, weights.values, frames), now, settings.believable)
            weights.shorten(min(1.0, max(_SHORTEST, (now.loss - 1.0) ** 2)))
        stopped = _reason_to_stop(now, best, lowest, settings)
        if stopped == "rising" and weights.retreats < _RETREATS and step < settings.steps:
            weights.retreat(_SHORTER)
            passes.take_back()
            continue
        lowest = min(lowest, now.loss)
        if stopped and stopped != "rising" and not passes.is_complete:
            now = passes.finish(step)
        if passes.is_whole and now.held_loss < best.held_loss * (_ROUND if passes.is_complete else 1.0):
            best = now
        if stopped:
            break
        weights.step(loss)
        if evidence.searches:
            passes.calibrate()
    return _conclude(first, first if stopped == "rising" else best, step, stopped)


def _disbelieve(passes: Passes, found: State, believable: float) -> Refinement:
    """The unrefined volume of the radiographs as they were given, and why."""
    line = (
        f"the first stage leaves {found.residuals[0]:.3f} of the line integrals unexplained, whatever their scale "
        f"(at most {believable:g} is believed): the CT is neither refined on the X-rays nor made consistent with them"
    )
    kept = replace(passes.finish(0), residuals=found.residuals, edges=[*found.edges, line])
    refinement = _conclude(kept, kept, 0, "unexplained")
    return replace(refinement, calibrated=torch.zeros_like(refinement.calibrated))


def _reason_to_stop(now: State, best: State, lowest: float, settings: RefineSettings) -> str:
    """Why no further step is taken; empty: one is."""
    if not math.isfinite(now.loss) or now.loss > _RISE * lowest:
        return "rising"
    if now.loss <= settings.discrepancy:
        return "discrepancy"
    if now.step - best.step >= _PATIENCE:
        return "held_out"
    return "steps" if now.step == settings.steps else ""


def _conclude(first: State, kept: State, steps: int, stopped: str) -> Refinement:
    warnings = list(kept.edges)
    if stopped == "rising":
        warnings.append(f"the residual rose after {steps} steps; the unrefined volume is kept")
    elif steps and kept.step == 0:
        warnings.append("no step explained the held-back patches better; the unrefined volume is kept")
    report = RefinementReport(
        steps=steps,
        kept=kept.step,
        stopped=stopped,
        residual_before=first.residuals[0],
        residual_after=kept.residuals[0],
        held_out_before=first.residuals[1],
        held_out_after=kept.residuals[1],
        spread_hu=kept.spread,
        calibration=kept.calibration,
        warnings=warnings,
    )
    return Refinement(kept.volume, kept.image, kept.matrices, torch.ones_like(kept.volume[:, 0, 0, 0, 0]), [report])
