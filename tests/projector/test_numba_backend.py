# SPDX-License-Identifier: Apache-2.0
"""How the compiled backend shares its work, and that a geometry is planned once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from progressive_cascade import ConeBeam, backproject, line_integrals, volume_affine
from progressive_cascade.projector import plan

numba_backend = pytest.importorskip("progressive_cascade.projector.numba_backend")

OBLIQUE = ConeBeam(700.0, 1020.0, (48, 40), (14.0, 16.0), ("lao30_cranial15", "pa"))
AFFINE = volume_affine((24, 20, 28), 12.0)


@pytest.fixture
def two_threads(monkeypatch):
    """Every piece of work is worth a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(numba_backend, "_STEPS_WORTH_A_THREAD", 0)
    yield monkeypatch
    torch.set_num_threads(before)


def _both(backend: str = "numba") -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mu = torch.rand(1, 1, 24, 20, 28, generator=generator, dtype=torch.float64)
    values = torch.rand(1, 2, 48, 40, generator=generator, dtype=torch.float64)
    transposed = backproject(values, OBLIQUE, shape=mu.shape[2:], affine=AFFINE, backend=backend)
    return [line_integrals(mu, OBLIQUE, affine=AFFINE, backend=backend), transposed]


def test_results_do_not_depend_on_threads_or_shares(two_threads):
    """One thread, two with one share each, two with three: bit for bit the same, and plain torch's to rounding."""
    few = _both()
    two_threads.setattr(numba_backend, "_STEPS_WORTH_MORE_SHARES", 0)
    many = _both()
    torch.set_num_threads(1)
    for one, two, three, plain in zip(_both(), few, many, _both("torch"), strict=True):
        assert torch.equal(one, two) and torch.equal(one, three)
        torch.testing.assert_close(one, plain, rtol=1e-10, atol=1e-10)


def test_share_does_not_wait_for_a_thread_that_never_began(two_threads):
    """While the only helper is busy elsewhere, the caller does everything itself."""
    release = threading.Event()
    with ThreadPoolExecutor(1) as busy:
        busy.submit(release.wait, 60)
        two_threads.setattr(numba_backend, "_pool", lambda *_: busy)
        done = np.zeros(7, int)
        numba_backend._share(lambda low, high: done.__setitem__(slice(low, high), done[low:high] + 1), 7, 1)
        assert not release.is_set()
        release.set()
    np.testing.assert_array_equal(done, 1)


def test_share_passes_on_what_a_helper_raises(two_threads):
    """An error in a share reaches the caller, whoever ran into it."""

    def fail_elsewhere(low: int, high: int) -> None:
        threading.Event().wait(0.05)
        if threading.current_thread() is not threading.main_thread():
            raise ArithmeticError("share")

    with pytest.raises(ArithmeticError, match="share"):
        numba_backend._share(fail_elsewhere, 2, 1)


def test_a_geometry_is_planned_once(monkeypatch):
    """A solver's steps ask for the same plan again and again; another geometry gets its own."""
    asked = []
    original = plan.plan_view
    monkeypatch.setattr(plan, "plan_view", lambda *given, **named: asked.append(1) or original(*given, **named))
    plan.recall_plan.cache_clear()
    first = _both()
    assert len(asked) == 2
    assert all(torch.equal(a, b) for a, b in zip(first, _both(), strict=True))
    assert len(asked) == 2
    line_integrals(torch.rand(1, 1, 24, 20, 28), OBLIQUE, affine=volume_affine((24, 20, 28), 11.0))
    assert len(asked) == 4


@pytest.mark.parametrize("view", ["lao45", "lao30_cranial15", "rao20_caudal30", "lao3"])
@pytest.mark.parametrize("detector", [(48, 40), (25, 44)])
def test_read_spans_hold_what_the_detector_reads_and_little_more(view, detector):
    """In a volume that every ray meets, spans are what the transpose of reading lights up, to three pixels a side."""
    beam = ConeBeam(700.0, 1020.0, detector, (14.0, 16.0), (view,))
    made = plan.plan_view(
        beam.projection_matrices()[0], volume_affine((24, 20, 28), 30.0), shape=(24, 20, 28), detector_shape=detector
    )
    assert made is not None and made.homography is not None
    read = numba_backend.resample_transpose(torch.ones(detector, dtype=torch.float64), made).numpy() != 0
    for spans, lines in zip(made.read_spans, (read, read.T), strict=True):
        place = np.arange(lines.shape[1])
        spanned = (spans[:, :1] <= place) & (place < spans[:, 1:])
        assert spans.shape == (len(lines), 2)
        assert (spanned | ~lines).all()
        for line, (first, last) in zip(lines, spans, strict=True):
            if line.any():
                assert np.flatnonzero(line)[0] - first <= 3 and last - np.flatnonzero(line)[-1] <= 4


def test_virtual_pixels_are_no_wider_than_voxels_where_that_costs_little():
    """Compiled distance-driven weights take a footprint of one voxel at most; a coarse detector stays coarse."""
    affine, shape = volume_affine((32, 32, 32), 11.2), (32, 32, 32)
    for pitch, count, fits in ((11.2, 64, True), (24.0, 30, False)):
        beam = ConeBeam(700.0, 1020.0, (count, count), (pitch, pitch), ("lao45",))
        made = plan.plan_view(beam.projection_matrices()[0], affine, shape=shape, detector_shape=(count, count))
        assert made is not None and made.homography is not None
        assert (max(np.abs(line.scale).max() for line in (made.row, made.col)) <= 1.0) == fits


@pytest.mark.parametrize("shape", [(5, 6, 7), (4, 9, 3), (1, 2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lines_that_do_not_fill_a_group_are_taken_as_they_are(shape, dtype):
    """Volumes whose sides are no multiples of four, in any order of memory, equal plain torch."""
    beam, affine = ConeBeam(700.0, 1020.0, (30, 26), (6.0, 7.0), ("lao30_cranial15", "pa")), volume_affine(shape, 20.0)
    generator = torch.Generator().manual_seed(1)
    mu = torch.rand(1, 1, *shape, generator=generator, dtype=dtype)
    values = torch.rand(1, 2, 30, 26, generator=generator, dtype=dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for given in (mu, mu.permute(0, 1, 4, 2, 3).contiguous().permute(0, 1, 3, 4, 2)):
        ours, plain = (line_integrals(given, beam, affine=affine, backend=name) for name in ("numba", "torch"))
        torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance * float(plain.max()))
    ours, plain = (backproject(values, beam, shape=shape, affine=affine, backend=name) for name in ("numba", "torch"))
    torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance * float(plain.max()))
