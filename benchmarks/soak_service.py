# SPDX-License-Identifier: Apache-2.0
"""Clients that load the service of this machine while its workers and itself are killed; what became of every job.

    PYTHONPATH=. python benchmarks/soak_service.py [--minutes 5] [--clients 8] [--seed 0]      (`make soak-service`)

`progressive-cascade serve` with a miniature cascade (one stage of a few channels, unrefined), so that a job takes seconds. One request in
five is malformed. A worker is killed by -9 after a fifth and after three fifths of the time, the service after two fifths; it is started again.
Every accepted job must end, with the very bytes that `progressive-cascade reconstruct` writes. Writes
benchmarks/results/soak_service.json and the table of bundle/docs/RELIABILITY.md.
"""  # noqa: E501

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from tests.support.served import WORKERS, Served, make_cases, resident

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "soak_service.json"
PAGE = ROOT / "bundle" / "docs" / "RELIABILITY.md"
OPTIONS = '{"refine": 0, "report": false, "dicom": false}'


@dataclass
class Tally:
    """What the clients saw."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    accepted: dict[str, str] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def count(self, name: str) -> None:
        """One more of that name."""
        with self.lock:
            self.counts[name] += 1


def malformed(files: dict[str, bytes], draw: random.Random) -> dict[str, Any]:
    """Arguments of a request that must be refused, at once or by the job's end."""
    right = {name: (name, content) for name, content in files.items()}
    kinds: list[dict[str, Any]] = [
        {"files": {"pa": right["pa"]}},
        {"files": {**right, "pa": ("Doe_Jane", b"no radiograph")}},
        {"files": {**right, "pa": ("pa", files["pa"][: len(files["pa"]) // 2])}},
        {"files": {**right, "geometry": ("geometry", b"[" * 100_000)}},
        {"files": {"study": ("study.zip", b"PK\x03\x04" + draw.randbytes(1000))}},
        {"files": right, "data": {"options": '{"refine": 1e99}'}},
        {"content": draw.randbytes(1000), "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        {"files": {"pa": ("pa", bytes(130 << 20))}},
    ]
    return draw.choice(kinds)


def client(url: str, cases: list[tuple[dict[str, bytes], str]], tally: Tally, end: float, seed: int) -> None:
    """One client: a request, its job to the end, the next request."""
    draw, number = random.Random(seed), seed % 5
    with httpx.Client(base_url=url, timeout=60) as http:
        while time.monotonic() < end:
            files, digest = draw.choice(cases)
            number += 1
            is_wrong = number % 5 == 0
            request: dict[str, Any] = {"files": {name: (name, content) for name, content in files.items()}}
            request["data"] = {"options": OPTIONS}
            if is_wrong:
                request = malformed(files, draw)
            tally.count("malformed" if is_wrong else "sent")
            answer = post(http, request, tally, end)
            if answer is None:
                continue
            if answer.status_code == 202:
                follow(http, answer.json()["id"], None if is_wrong else digest, tally)
            elif not is_wrong or not 400 <= answer.status_code < 500 or "\n" in answer.json()["error"]:
                tally.wrong.append(f"{answer.status_code}: {answer.text[:200]}")
            else:
                tally.count("refused at once")


def post(http: httpx.Client, request: dict[str, Any], tally: Tally, end: float) -> httpx.Response | None:
    """Sends until there is an answer, with one key, so that a job is made once; None where time is over."""
    headers = {**request.pop("headers", {}), "Idempotency-Key": uuid.uuid4().hex}
    while True:
        begun = time.monotonic()
        try:
            answer = http.post("/jobs", headers=headers, **request)
        except httpx.TransportError:
            tally.count("connections lost")
            time.sleep(0.5)
        else:
            if answer.status_code != 429:
                if answer.status_code == 202:
                    tally.seconds.append(time.monotonic() - begun)
                return answer
            tally.count("429")
            time.sleep(1.0)
        if time.monotonic() > end:
            tally.count("given up at the end")
            return None


def follow(http: httpx.Client, identifier: str, digest: str | None, tally: Tally) -> None:
    """A job to its end: the right bytes, or, where the request was malformed, a line."""
    with tally.lock:
        tally.accepted[identifier] = "open"
    end = time.monotonic() + 900
    while time.monotonic() < end:
        with contextlib.suppress(httpx.TransportError):
            job = http.get(f"/jobs/{identifier}").json()
            if job.get("state") not in ("queued", "running"):
                answer = http.get(f"/jobs/{identifier}/ct.nii.gz")
                right = hashlib.sha256(answer.content).hexdigest() == digest if digest else answer.status_code == 422
                tally.accepted[identifier] = job.get("state", "lost")
                tally.count("right" if right else "not right")
                if not right:
                    tally.wrong.append(
                        f"{answer.status_code}: {answer.text[:200] if len(answer.content) < 999 else ''}"
                    )
                return
        time.sleep(0.5)


def soak(folder: Path, minutes: float, clients: int, seed: int) -> dict[str, Any]:
    """Runs it; what is measured."""
    cases, tally, memory = make_cases(folder), Tally(), []
    served = Served(folder)
    served.wait_ready()
    begun, seconds = time.monotonic(), 60 * minutes
    threads = [
        threading.Thread(target=client, args=(served.url, cases, tally, begun + seconds, seed + number))
        for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    plan = [(0.2, served.kill_worker), (0.4, served.kill), (0.6, served.kill_worker)]
    killed = []
    while any(thread.is_alive() for thread in threads):
        passed = (time.monotonic() - begun) / seconds
        if plan and passed > plan[0][0]:
            done = plan[0][1]()
            if done is not False:
                plan.pop(0)
                killed.append("worker" if done else "service")
        memory.append((passed, resident(served.process.pid), max(map(resident, served.workers()), default=0.0)))
        time.sleep(1.0)
    served.process.terminate()
    served.process.wait()
    rows = sqlite3.connect(folder / "data" / "queue.sqlite").execute("SELECT id, state FROM jobs").fetchall()
    after = [one for one in memory if one[0] > 0.6]
    half = len(after) // 2
    return {
        **{"minutes": minutes, "clients": clients, "workers": WORKERS, "killed": killed, "counts": dict(tally.counts)},
        "accepted": len(tally.accepted),
        "ended": sum(state in ("done", "failed") for state in tally.accepted.values()),
        "done": sum(state == "done" for state in tally.accepted.values()),
        "unknown_rows": len({row[0] for row in rows} ^ set(tally.accepted)),
        "acceptance_ms": {name: round(1000 * value) for name, value in quantiles(tally.seconds).items()},
        "service_mib": [round(statistics.median(one[1] for one in part)) for part in (after[:half], after[half:])],
        "worker_mib": [round(max(one[2] for one in part)) for part in (after[:half], after[half:])],
        "wrong": tally.wrong,
    }


def quantiles(values: list[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    return {name: float(np.percentile(values, int(name[1:]))) for name in ("p50", "p95")}


def is_good(found: dict[str, Any]) -> bool:
    """Whether every promise held."""
    held = found["accepted"] == found["ended"] and not found["wrong"] and found["unknown_rows"] == 0
    return held and found["killed"] == ["worker", "service", "worker"]


def write_page(found: dict[str, Any]) -> None:
    """Puts the table between its marks."""
    counts, memory = found["counts"], found["service_mib"]
    rows = {
        "requests": f"{counts['sent']} good, {counts['malformed']} malformed, by {found['clients']} clients in "
        f"{found['minutes']:g} minutes; the queue was full {counts.get('429', 0)} times (429, sent again)",
        "killed by -9": f"{', '.join(found['killed'])}; {counts.get('connections lost', 0)} connections were lost and "
        "their requests sent again with the same key",
        "malformed": f"{counts.get('refused at once', 0)} refused at once in one line; the others accepted, and failed "
        "with one",
        "accepted = ended": f"{found['accepted']} = {found['ended']}, of which {found['done']} done; in the queue's "
        f"file stand these and {found['unknown_rows']} others",
        "results equal to the command line's": f"{found['done']} of {found['done']}, byte by byte"
        if not found["wrong"]
        else f"not all: {len(found['wrong'])} answers were wrong",
        "acceptance (POST to 202)": "p50 {p50} ms, p95 {p95} ms".format(**found["acceptance_ms"]),
        "memory of the service": f"{memory[0]} MiB, then {memory[1]} MiB (medians of the two halves of the time after "
        "the last kill)",
        "memory of a worker": "{} MiB, then {} MiB (largest, likewise)".format(*found["worker_mib"]),
    }
    lines = ["| what | measured |", "|---|---|", *(f"| {name} | {told} |" for name, told in rows.items())]
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition("<!-- soak of the service -->\n")
    _, _, tail = rest.partition("<!-- end of soak of the service -->")
    middle = "\n".join(lines)
    marks = ("<!-- soak of the service -->", "<!-- end of soak of the service -->")
    PAGE.write_text(f"{head}{marks[0]}\n{middle}\n{marks[1]}{tail}", encoding="utf-8")


def main() -> int:
    """Soak, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="in which requests are sent")
    parser.add_argument("--clients", type=int, default=8, help="at once")
    parser.add_argument("--seed", type=int, default=0, help="of the requests")
    parser.add_argument("--no-page", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = soak(Path(name), arguments.minutes, arguments.clients, arguments.seed)
    print(json.dumps(found, indent=4))
    if not arguments.no_page:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        content = {"commit": commit.stdout.strip(), "cores": os.cpu_count(), **found}
        RESULTS.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
        write_page(found)
    return 0 if is_good(found) else 1


if __name__ == "__main__":
    sys.exit(main())
