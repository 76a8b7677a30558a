# SPDX-License-Identifier: Apache-2.0
"""Laws of passes: what a round holds, and what is no part of it."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from progressive_cascade.inference import passes as passes_module
from progressive_cascade.inference.frames import FRAMES


def test_a_step_that_is_taken_back_leaves_no_trace_in_the_mean(monkeypatch):
    """Its pass is forgotten and its frame comes again: a round holds every frame once."""
    rounds = []
    monkeypatch.setattr(passes_module, "average_frames", lambda _, seen: rounds.append(tuple(seen)) or torch.zeros(1))
    evidence = SimpleNamespace(
        predict=lambda _, frame: (torch.zeros(1, 1, 4, 4, 4), torch.zeros(1)),
        losses=lambda _: (torch.zeros(1), torch.zeros(1)),
        residuals=lambda _: (0.0, 0.0),
        image=torch.zeros(1),
        matrices=torch.zeros(1),
        searches=False,
        views=[],
    )
    passes = passes_module.Passes(evidence, {}, FRAMES, steps=6)  # pyright: ignore[reportArgumentType]
    whole = []
    for step in range(7):
        passes.run(step)
        if step in (3, 5):
            passes.take_back()
        whole.append(passes.is_whole)
    assert [len(seen) for seen in rounds] == [1, 1, 1, 2, 2, 3, 3]
    assert whole == [True, True, True, True, False, False, False] and not passes.is_complete
    passes.finish(6)
    assert rounds[-1] == FRAMES and passes.is_complete and passes.is_whole
