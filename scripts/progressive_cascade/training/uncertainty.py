# SPDX-License-Identifier: Apache-2.0
"""Train the network that predicts the standard deviation of a reconstruction's error, and calibrate it.

    python -m progressive_cascade.training.uncertainty --dataset DATASET --phantoms 64

First the cascade reconstructs patients whose truth is known, and what the network needs of each is kept in a folder
(7 MB per case; an interrupted run goes on where it stopped, and another checkpoint has a folder of its own):

- phantoms that the cascade was not trained on (seeds from 500,000);
- the dataset's training CTs, as mirror images, further ones augmented. The cascade was trained on them, so their own
  errors are smaller than those of a new patient; to a cascade that knows a CT its mirror image is a new patient;
- its validation CTs, as they are and augmented. Test CTs are never used.

The validation CTs are held out (where there are none, every eighth phantom): the network is trained on the others, and
one factor then brings the mean squared ratio of error and sigma on the held-out ones to 1. Real patients alone decide
on it where there are any: errors on phantoms are smaller than those on a new patient.
The radiographs vary as in training: distances by 2 %, quantum noise in half of the cases, grey levels in place of
line integrals in a tenth. The result is a bare half-precision state dict that knows its checkpoint's hash.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from progressive_cascade.errors import UserError
from progressive_cascade.inference.reconstruct import default_checkpoint
from progressive_cascade.inference.uncertainty import (
    calibration_factor,
    default_uncertainty,
    gaussian_nll,
    load_uncertainty,
    remember_cascade,
)
from progressive_cascade.io import atomic_path
from progressive_cascade.networks.uncertainty import UncertaintyHead
from progressive_cascade.precision import mixed_precision, usual_device
from progressive_cascade.training.checkpoints import HalfPrecisionState
from progressive_cascade.training.error_cases import collect, plan_examples
from progressive_cascade.training.progress import Progress

_LEARNING_RATE = 2e-3
_WARM_UP_STEPS = 20
_KEEP_EVERY = 100


def _stack(cases: Sequence[dict[str, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, mean squared errors [HU²] and weights of a batch, float32."""
    inputs, rms, weight = (torch.stack([case[key] for case in cases]).float() for key in ("inputs", "rms", "weight"))
    return inputs, rms**2, weight


def train(
    head: UncertaintyHead,
    cases: Sequence[dict[str, Tensor]],
    *,
    steps: int,
    batch: int,
    seed: int,
    checkpoint: Path | None = None,
) -> Progress:
    """Minimise the negative log likelihood, in place, on the network's device.

    Args:
        head: the network.
        cases: tensors of :func:`make_tensors`.
        steps: of the optimizer.
        batch: cases per step.
        seed: of their order.
        checkpoint: where the state is kept, and gone on from; None: nowhere.

    Returns:
        What keeps the state, to be ended when the weights are written.
    """
    rng, device = np.random.default_rng(seed), next(head.parameters()).device
    optimizer = torch.optim.AdamW(head.parameters(), lr=_LEARNING_RATE, weight_decay=1e-2)
    rounds = math.ceil(steps * batch / len(cases))
    order = np.concatenate([rng.permutation(len(cases)) for _ in range(rounds)])[: steps * batch].reshape(steps, batch)
    settings = {"steps": steps, "batch": batch, "seed": seed, "cases": len(cases)}
    progress = Progress(checkpoint, {"head": head, "optimizer": optimizer}, settings)
    losses = []
    for step in range(progress.resume(), steps):
        for group in optimizer.param_groups:
            decay = 0.5 + 0.5 * math.cos(math.pi * step / steps)
            group["lr"] = _LEARNING_RATE * min((step + 1) / _WARM_UP_STEPS, decay)
        inputs, mse, weight = (part.to(device) for part in _stack([cases[index] for index in order[step]]))
        with mixed_precision(device.type):
            log_sigma = head(inputs)
        loss = gaussian_nll(log_sigma, mse, weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        # The likelihood's gradient grows with the square of an error that was not expected.
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % max(1, steps // 20) == 0:
            print(f"{(step + 1) / steps:4.0%}  step {step + 1}  nll {np.mean(losses):.4f}", flush=True)
            losses.clear()
        if (step + 1) % _KEEP_EVERY == 0:
            progress.keep(step + 1)
    return progress


@torch.inference_mode()
def calibrate(head: UncertaintyHead, cases: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """Set the head's factor, and score the held-out cases with it and without.

    Returns:
        The factor, and the negative log likelihood per voxel before, after, and of one sigma for all voxels.
    """
    head.scale.fill_(1.0)
    stacked = [_stack([case]) for case in cases]
    log_sigma = torch.cat([head(inputs) for inputs, _, _ in stacked])
    mse, weight = (torch.cat([parts[index] for parts in stacked]) for index in (1, 2))
    factor = calibration_factor(log_sigma, mse, weight)
    head.scale.fill_(factor)
    constant = 0.5 * math.log(float((mse * weight).double().sum() / weight.double().sum())) + 0.5
    return {
        "factor": factor,
        "nll_before": float(gaussian_nll(log_sigma, mse, weight)),
        "nll_after": float(gaussian_nll(log_sigma + math.log(factor), mse, weight)),
        "nll_constant": constant,
    }


def save_head(head: UncertaintyHead, path: Path) -> None:
    """Write the bare state dict: half-precision weights, factor and hash untouched; whole or not at all."""
    with atomic_path(path) as temporary:
        torch.save(HalfPrecisionState(head).state_dict(), temporary)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=default_uncertainty())
    parser.add_argument("--dataset", type=Path, help="folder written by `prepare`")
    parser.add_argument("--phantoms", type=int, default=64, help="number of phantoms")
    parser.add_argument("--repeats", type=int, default=4, help="variants of each CT, the first not augmented")
    parser.add_argument("--checkpoint", type=Path, default=default_checkpoint(), help="the cascade's weights")
    parser.add_argument("--cache", type=Path, default=Path("runs/uncertainty"), help="folder of finished cases")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default=usual_device(), help="default: cuda where there is one")
    return parser.parse_args(arguments)


def main(command_line: Sequence[str] | None = None) -> int:
    """Reconstruct what is left, train, calibrate, write the weights."""
    arguments = parse_arguments(command_line)
    try:
        examples = plan_examples(arguments.dataset, arguments.phantoms, arguments.repeats)
        cases = collect(examples, arguments.checkpoint, arguments.cache, arguments.device)
    except (UserError, FileNotFoundError) as error:
        print(f"training.uncertainty: error: {error}", file=sys.stderr)
        return 2
    torch.manual_seed(arguments.seed)
    head = UncertaintyHead().to(arguments.device)
    given = {name: getattr(arguments, name) for name in ("steps", "batch", "seed")}
    progress = train(head, cases[False], checkpoint=Progress.beside(arguments.output), **given)
    head = head.cpu()
    remember_cascade(head, arguments.checkpoint)
    # Calibrated as it is shipped: rounded to half precision.
    save_head(head, arguments.output)
    head = load_uncertainty(arguments.output)
    scores = calibrate(head, cases[True])
    save_head(head, arguments.output)
    progress.end()
    print(f"{len(cases[True])} held-out cases: " + "  ".join(f"{name} {value:.4f}" for name, value in scores.items()))
    print(f"wrote {arguments.output} ({arguments.output.stat().st_size / 1e6:.2f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
