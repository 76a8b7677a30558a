# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: which weights are shipped, the best and averaged ones, and how one stage starts from the one before."""

from __future__ import annotations

import io
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from ignite.handlers.checkpoint import BaseSaveHandler
from monai.handlers.checkpoint_saver import CheckpointSaver
from torch import Tensor, nn

from progressive_cascade.errors import UserError
from progressive_cascade.io import read_state
from progressive_cascade.networks import ProgressiveCascade
from progressive_cascade.networks.checkpoints import check_architecture, check_geometry, names_up_to, stage_prefix
from progressive_cascade.paths import record_trained
from progressive_cascade.training.growth import frozen_growth, grow_state
from progressive_cascade.training.kept import write_whole


class BestCheckpoint(CheckpointSaver):
    """MONAI's ``CheckpointSaver`` for files that are never half-written, nor missing while a better one is written.

    The original removes the best weights so far before it writes the next ones under the same name, so that an
    interruption in between loses both. The arguments are those of ``CheckpointSaver``.

    Its state is the best score so far, its epoch, and its file's name, so that a resumed run knows what to beat.
    """

    _engine: Engine | None = None

    def attach(self, engine: Engine) -> None:
        """Save as the original does, by way of a temporary name."""
        self._engine = engine
        for checkpoint in (self._final_checkpoint, self._key_metric_checkpoint, self._interval_checkpoint):
            if checkpoint is not None:
                checkpoint.save_handler = _WholeFile(checkpoint.save_handler)
        super().attach(engine)

    def state_dict(self) -> dict[str, Any]:
        """The best score so far; empty in a process that does not save."""
        if self._engine is None or self._key_metric_checkpoint is None:
            return {}
        return {
            "saved": [(float(item.priority), item.filename) for item in self._key_metric_checkpoint._saved],
            "best_metric": float(getattr(self._engine.state, "best_metric", -1)),
            "best_metric_epoch": int(getattr(self._engine.state, "best_metric_epoch", -1)),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a score; weights that somebody removed meanwhile are not held against the next ones."""
        checkpoint = self._key_metric_checkpoint
        if self._engine is None or checkpoint is None or not state_dict:
            return
        handler: Any = checkpoint.save_handler
        saved = [(score, name) for score, name in state_dict["saved"] if handler.path(name).is_file()]
        checkpoint.load_state_dict({"_saved": saved})
        if saved:
            for key in ("best_metric", "best_metric_epoch"):
                setattr(self._engine.state, key, state_dict[key])


class _WholeFile(BaseSaveHandler):
    """Writes where a handler of MONAI's would, but whole or not at all."""

    def __init__(self, handler: Any) -> None:
        self.folder = Path(handler.dirname)
        self.name: str | None = handler.filename

    def __call__(self, checkpoint: Mapping, filename: str, metadata: Mapping | None = None) -> None:
        if idist.get_rank() == 0:
            content = io.BytesIO()
            torch.save(checkpoint, content)
            write_whole(content.getvalue(), self.path(filename))
            record_trained(self.path(filename))

    def path(self, filename: str) -> Path:
        """Where a file of this name is written."""
        return self.folder / (self.name or filename)

    def remove(self, filename: str) -> None:
        """Removes a numbered file that is no longer wanted; one of a fixed name is replaced by the next instead."""
        if self.name is None and idist.get_rank() == 0:
            (self.folder / filename).unlink(missing_ok=True)


class AverageWeights:
    """Handler: an exponential moving average of the weights, which is steadier than the last step's.

    ``average = (1 - momentum) average + momentum weights`` after every step, by ignite's ``EMAHandler``. During the
    first ``1 / momentum`` steps the momentum falls linearly from 1, so that nothing of the initial weights remains.
    The average starts from the weights the network has when the run starts: a predecessor is loaded after this is
    built. Frozen parameters are their own average. For networks without running statistics.

    Args:
        network: the network in training, bare or wrapped for distributed training, on its device.
        momentum: share of a step's weights, below 1; 0 or None: no average, and ``network`` is the trained one itself.

    Attributes:
        network: the averaged network, bare and in eval mode.

    Raises:
        ValueError: if the momentum does not lie in [0, 1).
    """

    def __init__(self, network: nn.Module, momentum: float | None = 0.002) -> None:
        if momentum is not None and not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1) or be None, got {momentum}")
        self.trained: nn.Module = getattr(network, "module", network)
        self.network = self.trained
        self.handler: EMAHandler | None = None
        if momentum:
            self.network = deepcopy(self.trained).eval()
            self.handler = EMAHandler(
                _trainable(self.trained), momentum, momentum_warmup=1.0, warmup_iters=round(1 / momentum)
            )
            self.handler.ema_model = _trainable(self.network)
            self.network.requires_grad_(False)

    def attach(self, engine: Engine) -> None:
        """Start from the network's weights, follow them after every step. Attach what resumes a run after this."""
        if self.handler is not None:
            engine.add_event_handler(Events.STARTED, self._start)
            self.handler.attach(engine)

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights and how many steps went into them; empty without an average."""
        schedule = self._schedule()
        return {} if schedule is None else {"network": self.network.state_dict(), "steps": schedule.event_index}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved average; a run without one leaves none, and the average starts from the trained weights.

        Raises:
            RuntimeError: if the saved network is another one.
        """
        schedule = self._schedule()
        if schedule is not None:
            self.network.load_state_dict(state["network"] if state else self.trained.state_dict())
            schedule.event_index = state.get("steps", 0)

    def _start(self) -> None:
        self.network.load_state_dict(self.trained.state_dict())

    def _schedule(self) -> Any:
        return getattr(self.handler, "momentum_scheduler", None)


class HalfPrecisionState:
    """A network as checkpoints ship it: a bare state dict, parameters in half precision, geometry untouched.

    Args:
        network: bare or wrapped for distributed training.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters as float16, buffers as they are, on the host: a GPU's file is read where there is none."""
        network = getattr(self.network, "module", self.network)
        parameters = {name for name, _ in network.named_parameters()}
        return {
            name: (value.detach().half() if name in parameters else value).cpu()
            for name, value in network.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy into the network's own precision."""
        getattr(self.network, "module", self.network).load_state_dict(state)


def load_predecessor(
    network: ProgressiveCascade, path: str | Path | None, grow: bool = False, grow_from: str | Path | None = None
) -> None:
    """Start a stage from the checkpoint of the one before, or go on from one of its own.

    Stage 3, where its U-Net has the shapes of stage 2's, starts from those weights: what sharpens 128³ sharpens 256³.

    Args:
        network: the cascade to be trained; its encoder and earlier stages are filled, and its last stage where the
            checkpoint holds that, too.
        path: bare state dict of a cascade with one stage less, or with as many; None: nothing is loaded.
        grow: take a checkpoint that lacks the 2-D network, lifted features or cross-attention, too: the network equals
            it before the first step (:func:`progressive_cascade.training.growth.grow_state`).
        grow_from: where ``grow`` is true and the predecessor does not hold this stage, or is None: a checkpoint of as
            many stages without the 2-D network, from whose last U-Net this stage grows.

    Raises:
        UserError: if a file is missing, not a checkpoint, of another architecture or geometry, there is none to grow
            from, or what grows would be frozen.
    """
    if path is None and grow:
        path, grow_from = grow_from, None
        if path is None:
            raise UserError(f"predecessor or grow_from must be a checkpoint that stage {network.stage} grows from")
    if path is None:
        return
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"checkpoint {path} must exist before stage {network.stage} is trained; "
            f"train stage {network.stage - 1} first"
        )
    state = read_state(path)
    goes_on = any(name.startswith(stage_prefix(network.stage)) for name in state)
    reach = network.stage if goes_on else max(1, network.stage - 1)
    state = _fit(network, state, path, reach, grow=grow)
    check_geometry(network, state, path)
    if grow and grow_from is not None and not goes_on:
        state, reach, goes_on = _graft(network, state, grow_from), network.stage, True
    # The range is what this run trains for, whatever its predecessor was.
    kept = names_up_to(network, reach) - {"range_values"}
    network.load_state_dict({**network.state_dict(), **{name: state[name] for name in kept}})
    if goes_on or network.stage < 3:
        return
    unets = [stage.unet.state_dict() for stage in list(network.stages)[-2:]]  # pyright: ignore[reportAttributeAccessIssue]
    if _shapes(unets[0]) == _shapes(unets[1]):
        network.stages[-1].unet.load_state_dict(unets[0])  # pyright: ignore[reportAttributeAccessIssue]


def _fit(
    network: ProgressiveCascade, state: Mapping[str, Tensor], path: Path, stage: int, *, grow: bool
) -> Mapping[str, Tensor]:
    """The state, grown where that is wanted, of exactly the network's architecture up to a stage."""
    grown = grow_state(network, state, stage=stage)
    if not grow:
        try:
            check_architecture(network, state, path, stage=stage)
        except UserError as error:
            hint = "; set grow to true to start from it all the same" if _fits(network, grown, path, stage) else ""
            raise UserError(f"{error}{hint}") from None
        return state
    check_architecture(network, grown, path, stage=stage)
    untrained = frozen_growth(network, state, grown)
    if untrained is not None:
        raise UserError(
            f"freeze_earlier must be false where stage {network.stage} grows from {path}, or {untrained} would stay "
            "untrained; or grow stage 1 first, and set predecessor to what it wrote"
        )
    return grown


def _graft(network: ProgressiveCascade, state: Mapping[str, Tensor], path: str | Path) -> Mapping[str, Tensor]:
    """The earlier stages' state, and the last stage as it grows from another checkpoint."""
    donor = read_state(path)
    grown = grow_state(network, donor, stage=network.stage)
    check_architecture(network, grown, path, stage=network.stage)
    check_geometry(network, donor, path)
    # A run that goes on may find its own weights here; a stage that has learnt to read another encoder is worthless.
    foreign = [name for name in donor if name.startswith("xray.") and not torch.equal(donor[name], state[name])]
    if foreign:
        raise UserError(
            f"grow_from must be a checkpoint without a 2-D network, or with the predecessor's, got {path}; "
            f"first difference: {min(foreign)}"
        )
    return {**state, **{name: value for name, value in grown.items() if name.startswith(stage_prefix(network.stage))}}


def _fits(network: ProgressiveCascade, state: Mapping[str, Tensor], path: Path, stage: int) -> bool:
    try:
        check_architecture(network, state, path, stage=stage)
    except UserError:
        return False
    return True


def _trainable(network: nn.Module) -> nn.ParameterList:
    return nn.ParameterList([parameter for parameter in network.parameters() if parameter.requires_grad])


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}
