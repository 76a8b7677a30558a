# SPDX-License-Identifier: Apache-2.0
"""Laws of benchmarks/gpu.py: every part runs on a few voxels, no job stops the next one, the table has no gaps."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import gpu
from gpu_day.jobs import FULL, TINY, Job, list_jobs, run_job
from gpu_day.machine import describe, slug
from gpu_day.tables import markdown
from published.speed import UNMEASURED, speed_table


def _job(script: str, *, limit: float = 60.0) -> Job:
    return Job("commands", "job", [sys.executable, "-c", script], limit)


def test_a_job_tells_its_rows_and_how_it_ended():
    """Rows count however the process ends; what it said last is kept where it failed."""
    say = "print('ROW {\"a\": 1}', flush=True);"
    (row, done), (kept, failed) = (run_job(_job(say + end), 60) for end in ("", "raise SystemExit('no such card')"))
    assert row == kept == {"part": "commands", "job": "job", "a": 1}
    assert (done["state"], failed["state"]) == ("done", "failed")
    assert failed["end"] == ["no such card"] and "end" not in done


def test_a_job_that_takes_too_long_is_ended_with_its_children():
    """Neither its own limit nor the whole budget is overrun; what came before counts."""
    script = (
        "import subprocess, sys, time;"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        "print('ROW {\"child\": %d}' % child.pid, flush=True); child.wait()"
    )
    row, ending = run_job(_job(script, limit=6.0), 60)
    assert row["part"] == "commands" and ending["state"] == "too long" and ending["seconds"] < 30
    assert sys.platform != "linux" or not _runs(row["child"])
    assert run_job(_job("print(1)"), 3.0) == [
        {"part": "commands", "job": "job", "state": "no time left", "seconds": 0.0}
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")
def test_a_job_of_torchrun_ends_with_its_ranks(tmp_path, monkeypatch):
    """Ranks have sessions of their own, which no signal to the job's group reaches."""
    rank, pid = tmp_path / "rank.py", tmp_path / "pid"
    rank.write_text(
        "import os, pathlib, time\n"
        f"part = pathlib.Path({str(pid)!r} + '.part')\n"
        "part.write_text(str(os.getpid()))\n"
        f"part.rename({str(pid)!r})\n"
        "time.sleep(600)"
    )

    class Hurried(subprocess.Popen):
        """Its time is up as soon as the rank is there, however long torchrun takes to start it."""

        def wait(self, timeout=None):
            while timeout == 60.0 and not pid.exists() and self.poll() is None:
                time.sleep(0.05)
            return super().wait(0.1 if timeout == 60.0 else timeout)

    monkeypatch.setattr(subprocess, "Popen", Hurried)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1", str(rank)]
    ending = run_job(Job("commands", "torchrun", torchrun, 60.0), 60)[-1]
    assert ending["state"] == "too long" and not _runs(int(pid.read_text()))


def _runs(pid: int) -> bool:
    """Whether a process goes on living; one that waits for its parent to read its end does not."""
    for _ in range(50):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                time.sleep(0.1)
                continue
        return False
    return True


def test_the_report_is_whole_after_every_job(tmp_path):
    """A failing job leaves its line, and the next one runs."""
    report = {"machine": describe(), "rows": [], "jobs": []}
    output = tmp_path / "gpu_x.json"
    gpu.run_all([_job("raise SystemExit('broken')"), _job("print('fine')")], report, output, budget=60)
    assert [job["state"] for job in json.loads(output.read_text())["jobs"]] == ["failed", "done"]
    assert "| commands | job | failed |" in (text := output.with_suffix(".md").read_text()) and "broken" in text
    assert not [path for path in tmp_path.iterdir() if path.stem != "gpu_x"]


def test_all_parts_fit_into_the_budget(tmp_path):
    """Every part has jobs, and each has a limit of its own; the budget leaves a margin to eight minutes."""
    jobs = list_jobs(FULL, "cuda", 2, tmp_path)
    assert {job.part for job in jobs} == set(gpu.PARTS)
    assert max(job.limit for job in jobs) < gpu.BUDGET_S < 480
    names = [job.name for job in jobs if job.part == "commands"]
    assert names[:4] == [*(f"training, stage {stage}" for stage in (1, 2, 3)), "training, stage 1, torchrun with 2"]


@pytest.mark.parametrize("name", ["ours", "batch", "stage 3", "float32, window 32"])
def test_measuring_jobs_work_on_a_few_voxels(name, tmp_path, monkeypatch):
    """Each measures what the tables show; times are positive, shares lie in [0, 1]."""
    monkeypatch.chdir(tmp_path)
    (job,) = (job for job in list_jobs(TINY, "cpu", 1, tmp_path) if job.name == name)
    rows = list(gpu.measure(json.loads(job.command[-1])))
    assert rows and all(value > 0 for row in rows for key, value in row.items() if key.endswith(("_s", "_ms")))
    assert all(0 < row.get("simulation_share", 0.5) < 1 for row in rows)
    report = {"machine": describe(), "rows": [{"part": job.part, **row} for row in rows], "jobs": []}
    assert markdown(report).count("Not measured.") == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys, tmp_path):
    """Exit code 2, and nothing is written."""
    assert gpu.main(["--results", str(tmp_path)]) == 2
    assert "sees no CUDA device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_table_of_speed_says_what_was_never_measured():
    """Without a card every row of it says so; with one, what failed there."""
    reports = {"projector": None, "inference": {"rows": [{"seconds": 17.0}, {"seconds": 21.0}]}, "cards": []}
    lines = speed_table(reports)
    assert sum(UNMEASURED in line for line in lines) == sum(line.startswith("| ") for line in lines) - 1
    assert "| reconstruction of 256³, s | 17 |" in "\n".join(lines)
    row = {"part": "projector", "projector": "ours", "case": "aligned", "grid": 256}
    card = {
        "machine": {"card": "Card", "driver": "1.2", "versions": {"torch": "2.11"}},
        "rows": [{**row, "forward_s": 0.0012, "forward_backward_s": 0.0043}],
    }
    lines = speed_table({**reports, "cards": [card]})
    assert "| DRR aligned, ours | not measured | 1.2 / 4.3 |" in lines
    assert "| DRR oblique, ours | not measured | not measured |" in lines
    assert lines[-1] == "Card: driver 1.2, torch 2.11, triton –."
    assert slug("NVIDIA H100 80GB HBM3") == "nvidia_h100_80gb_hbm3"
