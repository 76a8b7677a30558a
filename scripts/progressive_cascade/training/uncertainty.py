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
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from progressive_cascade.ct.augment import RandAnatomyd
from progressive_cascade.ct.datalist import load_datalist
from progressive_cascade.errors import UserError
from progressive_cascade.geometry import VOXEL_SIZE, ConeBeam, volume_affine
from progressive_cascade.inference.inferers import CascadeInferer
from progressive_cascade.inference.reconstruct import default_checkpoint, load_cascade, reconstruct
from progressive_cascade.inference.transforms import to_line_integrals
from progressive_cascade.inference.uncertainty import (
    block_errors,
    calibration_factor,
    default_uncertainty,
    describe,
    gaussian_nll,
    load_uncertainty,
    remember_cascade,
)
from progressive_cascade.io import atomic_path, read_state
from progressive_cascade.io.released import file_hash
from progressive_cascade.networks import ProgressiveCascade
from progressive_cascade.networks.uncertainty import UncertaintyHead
from progressive_cascade.physics import Exposure
from progressive_cascade.physics.simulate import expose, jittered_beam
from progressive_cascade.precision import mixed_precision, usual_device
from progressive_cascade.training.cases import load_case
from progressive_cascade.training.checkpoints import HalfPrecisionState
from progressive_cascade.training.progress import Progress

FIRST_SEED = 500_000
"""Seed of the first phantom, between those of the cascade's training and validation."""
_HELD_OUT_EVERY = 8
_LEARNING_RATE = 2e-3
_WARM_UP_STEPS = 20
_KEEP_EVERY = 100


@dataclass(frozen=True)
class Example:
    """One reconstruction to make: whose, the how manieth variant of it, and what it is for.

    Args:
        name: of its file.
        item: the CT or phantom, as for :func:`load_case`.
        seed: of augmentation, geometry and noise.
        augmented: whether the anatomy is varied.
        held_out: for the calibration, not for the training.
    """

    name: str
    item: dict[str, Any]
    seed: int
    augmented: bool
    held_out: bool

    @property
    def mirrored(self) -> bool:
        """Whether the cascade was trained on this patient, and shall not know him."""
        return "seed" not in self.item and not self.held_out


def plan_examples(dataset: Path | None, num_phantoms: int, repeats: int) -> list[Example]:
    """All examples of a run, phantoms and CTs in turn, so that a run that is stopped early has seen both.

    Args:
        dataset: folder written by `prepare`, or None.
        num_phantoms: phantoms.
        repeats: variants of each CT; the first is not augmented.

    Raises:
        UserError: if there is nothing to train on, or nothing to calibrate with.
    """
    cts = [
        Example(f"{item['case']}_{repeat}", item, 1000 * number + repeat, repeat > 0, section == "validation")
        for repeat in range(repeats)
        for section in ("training", "validation")
        for number, item in enumerate(load_datalist(dataset, section) if dataset else [])
    ]
    has_held_out_ct = any(example.held_out for example in cts)
    phantoms = [
        Example(
            f"phantom_{seed}",
            {"seed": seed},
            seed,
            augmented=False,
            held_out=not has_held_out_ct and (seed - FIRST_SEED + 1) % _HELD_OUT_EVERY == 0,
        )
        for seed in range(FIRST_SEED, FIRST_SEED + num_phantoms)
    ]
    placed = [((index + 0.5) / len(kind), example) for kind in (phantoms, cts) for index, example in enumerate(kind)]
    examples = [example for _, example in sorted(placed, key=lambda pair: pair[0])]
    if {example.held_out for example in examples} != {False, True}:
        least = f"at least {_HELD_OUT_EVERY} where no CT is held out"
        raise UserError(f"--phantoms must be {least}, got {num_phantoms}")
    return examples


def make_tensors(example: Example, network: ProgressiveCascade, beam: ConeBeam) -> dict[str, Tensor]:
    """Reconstruct an example, and keep what the training needs in half precision.

    Windows do not overlap: the seams change the result by 0.4 HU where its error is 170 HU, at 40 % of the time.

    Returns:
        ``inputs`` (10, g, g, g), ``rms`` (1, g, g, g) [HU] and ``weight`` (1, g, g, g); float16.
    """
    case = load_case(example.item)
    hu = torch.from_numpy(case.hu.astype(np.float32))[None]
    valid = torch.ones_like(hu) if case.valid is None else torch.from_numpy(case.valid.astype(np.float32))[None]
    if example.mirrored:
        hu, valid = hu.flip(1), valid.flip(1)
    if example.augmented:
        vary = RandAnatomyd(prob=1.0)
        vary.set_random_state(seed=example.seed)
        varied = vary({"label": hu, "valid": valid})
        hu, valid = varied["label"], varied["valid"]
    rng = np.random.default_rng(example.seed)
    beam = jittered_beam(beam, rng, distance_jitter=0.02, shift_jitter=0.0)
    exposure = Exposure(photons=1e5 if rng.random() < 0.5 else None)
    generator = torch.Generator().manual_seed(example.seed)
    affine = volume_affine((hu.shape[1], hu.shape[2], hu.shape[3]), VOXEL_SIZE)
    image = expose(hu[None], beam, affine=affine, exposure=exposure, generator=generator)[0].numpy()
    calibrated = bool(rng.random() >= 0.1)
    if not calibrated:
        # Grey levels that nobody takes for line integrals, brought back as the command line does.
        image, calibrated = to_line_integrals(500 * image + 100)
    inferer = CascadeInferer(128, overlap=0.0, amp=True)
    result = reconstruct(image, beam, network=network, inferer=inferer, calibrated=calibrated)
    mse, weight = block_errors(result.hu, hu[0].numpy(), valid[0].numpy())
    return {
        "inputs": describe(result, beam)[0].half(),
        "rms": mse[0].sqrt().half(),
        "weight": weight[0].half(),
    }


def collect(
    examples: Sequence[Example], checkpoint: Path, cache: Path, device: str
) -> dict[bool, list[dict[str, Tensor]]]:
    """The tensors of all examples, from the folder where they are there, by whether they are held out.

    Args:
        examples: what to reconstruct.
        checkpoint: the cascade's weights.
        cache: folder of the folders, one for each checkpoint.
        device: where to reconstruct.
    """
    folder = cache / file_hash(checkpoint)[:12]
    network = load_cascade(checkpoint, device)
    size = network.image_size
    pitch = ConeBeam().pixel_spacing[0] * ConeBeam().detector_shape[0] / size
    beam = ConeBeam(detector_shape=(size, size), pixel_spacing=(pitch, pitch))
    found: dict[bool, list[dict[str, Tensor]]] = {False: [], True: []}
    for number, example in enumerate(examples, start=1):
        path = folder / f"{example.name}.pt"
        if not path.is_file():
            start = time.perf_counter(), time.process_time()
            tensors = make_tensors(example, network, beam)
            with atomic_path(path) as temporary:
                torch.save(tensors, temporary)
            rms = float((tensors["rms"].float() ** 2).mean().sqrt())
            spent = f"{time.perf_counter() - start[0]:.1f} s, {time.process_time() - start[1]:.1f} CPU-s"
            print(f"{number}/{len(examples)}  {example.name}  error {rms:.0f} HU  {spent}", flush=True)
        found[example.held_out].append(read_state(path))
    return found


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
