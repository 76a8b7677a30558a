# SPDX-License-Identifier: Apache-2.0
"""One mutant through its command: what came of it, and whether that is allowed."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import random
import shutil
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import nibabel as nib
import numpy as np
from benchmarks.gpu_day.commands import MINIATURE
from monai.bundle import ConfigParser

from progressive_cascade.cli import main
from progressive_cascade.errors import UserError
from progressive_cascade.paths import bundle_root
from tools.fuzzing.inputs import BOUNDARY, KINDS

MAX_SECONDS, MAX_BYTES = 60, 6 << 30
"""What a mutant may take."""


@dataclass(frozen=True)
class Outcome:
    """What came of a mutant.

    Args:
        kind: its kind.
        seed: which of the kind.
        ending: ``result``, ``one line``, or what is wrong.
        detail: the line, or the last lines of a traceback.
        seconds: of processor time that it took.
    """

    kind: str
    seed: int
    ending: str
    detail: str
    seconds: float

    @property
    def is_allowed(self) -> bool:
        """A valid result, or one line."""
        return self.ending in ("result", "one line") and self.seconds <= MAX_SECONDS


def try_mutant(kind: str, seed: int, inputs: Path, folder: Path, *, only_read: bool = False) -> Outcome:
    """Damages an input and runs the command that reads it, in this process.

    Args:
        kind: of :data:`.inputs.KINDS`.
        seed: of the damage.
        inputs: the good files.
        folder: an empty folder for the mutant and what is written.
        only_read: stop where a CT would be placed or radiographs reconstructed; what gets there counts as a result.
            Films are brought into register among a few places.

    Returns:
        What came of it.
    """
    chosen = KINDS[kind]
    given = folder / "given"
    _link(inputs, given)
    mutant = given / chosen.file
    content = chosen.mutate(mutant.read_bytes(), random.Random(zlib.crc32(kind.encode()) * 1_000_003 + seed))
    mutant.unlink()
    mutant.write_bytes(content)
    started = time.process_time()
    with _stopping() if only_read else contextlib.nullcontext():
        ending, detail = _run(_COMMANDS[chosen.command], given, chosen.option, folder / "out")
    return Outcome(kind, seed, ending, detail, time.process_time() - started)


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name in ("ct.placement.prepare_case", "inference.reconstruct.reconstruct"):
            stack.enter_context(mock.patch(f"progressive_cascade.{name}", side_effect=SystemExit(0)))
        # Three moves of films instead of about thirty: the same code on the same pixels.
        few = {"_SHIFTS": (0.0, 13.0), "_ONE_BY_ONE": (), "_TOGETHER": (0.9,), "_FINER_SHIFTS": ()}
        stack.enter_context(mock.patch.multiple("progressive_cascade.inference.register", **few))
        stack.enter_context(mock.patch("progressive_cascade.inference.register.Move.resized", return_value=[]))
        yield


def _link(source: Path, target: Path) -> None:
    shutil.copytree(source, target, copy_function=lambda a, b: Path(b).symlink_to(Path(a).resolve()))


def _run(command: Callable[[Path, str, Path], int], given: Path, option: str, output: Path) -> tuple[str, str]:
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            code = command(given, option, output)
    except Exception:
        return "traceback", traceback.format_exc(limit=-3)
    lines = [line for line in errors.getvalue().splitlines() if "error: " in line]
    # A folder's pairs may fail one by one: its summary says so.
    if code == 0 or (code == 2 and (output / "summary.csv").is_file()):
        return _check_result(output), ""
    if code != 2 or len(lines) != 1:
        return f"exit code {code} with {len(lines)} lines", errors.getvalue()[-500:]
    left = [path.name for path in output.parent.rglob("*") if path.is_file() and given not in path.parents]
    return (f"left {left[:3]}" if left else "one line"), lines[0]


def _check_result(output: Path) -> str:
    """Whether everything that was written can be read."""
    for path in sorted(output.rglob("*")):
        if path.name.startswith("."):
            return f"left {path.name}"
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.name == "summary.csv":
            with open(path, newline="", encoding="utf-8") as stream:
                if not all(row["status"] == "done" or row["reason"] for row in csv.DictReader(stream)):
                    return "a pair failed without a reason"
        elif path.name.endswith(".nii.gz") and not np.isfinite(np.asanyarray(nib.load(path).dataobj)).all():  # type: ignore[attr-defined]
            return f"{path.name} is not finite"
    return "result"


def _simulate(given: Path, option: str, output: Path) -> int:
    ct = given / ("series" if option == "series" else _mutant_of(given, "ct.*") if option == "ct" else "ct.nii.gz")
    return main(["simulate", str(ct), "--geometry", str(given / "coarse.json"), "--output", str(output)])


def _reconstruct(given: Path, option: str, output: Path) -> int:
    mutants = {"pa": "pa.*", "packed": "*/pa.dcm"}
    pa = given / (_mutant_of(given, mutants.get(option, "")) or ("pa.png" if option == "sidecar" else "pa.nii.gz"))
    if option == "sidecar":
        (given / "sidecar.json").rename(given / "pa.json")
    if option != "exposure":
        (given / "exposure.json").unlink()
    lateral = given / ("lateral.nii.gz" if pa.name.endswith(".nii.gz") else "lateral.png")
    geometry = ["--geometry", str(given / "geometry.json")] if pa.name.endswith(".nii.gz") else []
    views = ["reconstruct", "--pa", str(pa), "--lateral", str(lateral), *geometry]
    weights = ["--checkpoint", str(given / "tiny.pt"), "--allow-unverified", "--refine", "0", "--no-report"]
    return main([*views, *weights, "--output", str(output / "ct.nii.gz")])


def _reconstruct_folder(given: Path, option: str, output: Path) -> int:
    weights = ["--checkpoint", str(given / "tiny.pt"), "--allow-unverified", "--refine", "0", "--no-report"]
    return main(
        [
            "reconstruct",
            "--input",
            str(given),
            "--pairs",
            str(given / f"{option}.csv"),
            *weights,
            "--output",
            str(output),
        ]
    )


def _train(given: Path, option: str, output: Path) -> int:
    """The command that trains, up to what it would start: it tries a step of one sample, on few voxels."""
    few = {**MINIATURE, "grid": 8, "batch_size": 1, "loss_weights": {"l1": 1.0}}
    settings = (part for key, value in few.items() for part in ("--set", f"{key}={value}"))
    tried = ["--dry-run", "--stages", "1", *settings]
    return main(["train", "--dataset", str(given / "dataset"), "--output", str(output), *tried])


def _check_settings(given: Path, option: str, output: Path) -> int:
    """The check that every workflow runs first, on a config with the overrides."""
    parser = ConfigParser()
    parser.read_config(str(bundle_root() / "configs" / "stage1.json"))
    parser.update(json.loads((given / f"{option}.json").read_text(encoding="utf-8")))
    parser.parse(reset=True)
    output.mkdir()
    try:
        parser.get_parsed_content("run#0")
    except (UserError, RuntimeError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__
        if cause is None:
            raise
        output.rmdir()
        print(f"error: {cause}", file=sys.stderr)
        return 2
    return 0


def _post(given: Path, option: str, output: Path) -> int:
    """A request to the service, up to a job that waits; what is refused leaves nothing of it."""
    from fastapi.testclient import TestClient

    from progressive_cascade.service import Settings, build_app

    settings = Settings(folder=given / "service", runner="none:none", hosts=None, max_upload=16 << 20)
    app = build_app(settings)
    client = TestClient(app, raise_server_exceptions=False)  # its workers are not started
    if option == "request":
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        answer = client.post("/jobs", content=(given / "request.bin").read_bytes(), headers=headers)
    elif option == "study":
        answer = client.post("/jobs", files={"study": (given / "study.zip").read_bytes()})
    else:
        files = {view: (given / f"{view}.png").read_bytes() for view in ("pa", "lateral")}
        answer = client.post("/jobs", files=files, data={"options": (given / "options.json").read_bytes()})
    app.state.service.store.close()
    jobs = list((given / "service" / "jobs").iterdir())
    if answer.status_code == 202 and len(jobs) == 1:
        return 0
    line = answer.json()["error"]
    if not 400 <= answer.status_code < 500 or jobs or not line or "\n" in line:
        raise RuntimeError(f"{answer.status_code} with {len(jobs)} jobs: {answer.text[:300]}")
    print(f"error: {line}", file=sys.stderr)
    return 2


def _mutant_of(given: Path, pattern: str) -> str:
    """The one file of such a name which is no link to a good one; none for no pattern."""
    found = sorted(given.glob(pattern)) if pattern else []
    return next((path.relative_to(given).as_posix() for path in found if not path.is_symlink()), "")


_COMMANDS: dict[str, Callable[[Path, str, Path], int]] = {
    "simulate": _simulate,
    "reconstruct": _reconstruct,
    "folder": _reconstruct_folder,
    "train": _train,
    "settings": _check_settings,
    "post": _post,
}
