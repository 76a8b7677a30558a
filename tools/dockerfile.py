# SPDX-License-Identifier: Apache-2.0
"""The Dockerfile without Docker: what it says, and its RUN lines in a clean virtual environment.

python -m tools.dockerfile [--torch-index URL]      (`make image-check`: minutes, gigabytes)
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_PREFIX, _START = "/opt/cascade", 180


@dataclass(frozen=True)
class Instruction:
    """One instruction, its lines joined."""

    name: str
    rest: str


def read_instructions(text: str) -> list[Instruction]:
    """The instructions of a Dockerfile, in their order, without comments."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def defaults(instructions: list[Instruction]) -> dict[str, str]:
    """Build arguments and what they are where nobody says otherwise."""
    pairs = [one.rest.partition("=") for one in instructions if one.name == "ARG"]
    return {name: value for name, _, value in pairs}


def copied(instructions: list[Instruction]) -> list[str]:
    """Files and folders of this project that go into the image."""
    sources = [one.rest.split()[:-1] for one in instructions if one.name == "COPY" and "--from" not in one.rest]
    return [name for names in sources for name in names]


def run_build(instructions: list[Instruction], folder: Path, changes: dict[str, str]) -> Path:
    """Runs the RUN lines of the first stage that call Python, in a folder in place of the image.

    Args:
        instructions: of the Dockerfile.
        folder: empty.
        changes: build arguments.

    Returns:
        The virtual environment that was built.
    """
    environment, prefix, build = folder / "cascade", str(folder / "cascade"), folder / "build"
    build.mkdir()
    variables = {**os.environ, **defaults(instructions), **changes}
    variables.pop("PYTHONPATH", None)
    stages = [number for number, one in enumerate(instructions) if one.name == "FROM"]
    for one in instructions[stages[0] : stages[1]]:
        if one.name == "ENV":
            for name, value in re.findall(r"(\w+)=(\S+)", one.rest.replace(_PREFIX, prefix)):
                variables[name] = value.replace("$PATH", variables["PATH"])
        elif one.name == "COPY":
            for name in one.rest.split()[:-1]:
                _copy(ROOT / name, build / name)
        elif one.name == "RUN":
            print(f"RUN {one.rest}", flush=True)
            subprocess.run(one.rest.replace(_PREFIX, prefix), shell=True, cwd=build, env=variables, check=True)
    return environment


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "stage*_best.pt"))
    else:
        shutil.copy(source, target)


def check_command(environment: Path, folder: Path, command: list[str]) -> None:
    """Starts the image's command, at the loopback, and asks for its health."""
    program = environment / "bin" / command[0]
    subprocess.run([program, "--version"], check=True)
    options = ["serve", "--port", "8765", "--data", str(folder / "data")]
    process = subprocess.Popen([program, *options], env={**os.environ, "PYTHONPATH": "", "HOME": str(folder)})
    end, answer = time_left(_START), None
    while answer is None and process.poll() is None and end():
        try:
            answer = urllib.request.urlopen("http://127.0.0.1:8765/ready", timeout=5).status
        except OSError:
            continue
    process.terminate()
    process.wait()
    if answer != 200:
        raise SystemExit(f"the service was not ready within {_START} s")
    print("the service is ready")


def time_left(seconds: float):
    """A function that says whether so many seconds have not passed yet; each call takes a moment."""
    import time

    end = time.monotonic() + seconds

    def is_left() -> bool:
        time.sleep(0.5)
        return time.monotonic() < end

    return is_left


def main() -> int:
    """Builds and starts, in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-index", help="in place of TORCH_INDEX")
    options = parser.parse_args()
    instructions = read_instructions((ROOT / "Dockerfile").read_text(encoding="utf-8"))
    changes = {"TORCH_INDEX": options.torch_index} if options.torch_index else {}
    entry = next(json.loads(one.rest) for one in instructions if one.name == "ENTRYPOINT")
    with tempfile.TemporaryDirectory() as name:
        check_command(run_build(instructions, Path(name), changes), Path(name), entry)
    return 0


if __name__ == "__main__":
    sys.exit(main())
