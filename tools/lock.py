# SPDX-License-Identifier: Apache-2.0
"""``python -m tools.lock``: writes requirements.lock, what the image installs, with hashes of this platform's files.

pip resolves by itself, constrained by constraints.txt, and installs nothing. torch is left out: its build, and so its
hash, is the processor's; so are the libraries that only its CUDA build brings along.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
_LEFT_OUT = ("torch", "triton", "progressive-cascade")
_HEAD = "# Written by `make lock` for {platform}: all but torch, with hashes, for `pip install --no-deps`.\n"


def resolve() -> dict[str, Any]:
    """pip's report on what it would install."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    command += ["--constraint", "constraints.txt", "--only-binary", "torch", ".[service,cluster]"]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)


def to_lock(report: dict[str, Any]) -> str:
    """The lock of a report, by name."""
    lines = []
    for item in report["install"]:
        name, version = item["metadata"]["name"].lower().replace("_", "-"), item["metadata"]["version"]
        if name in _LEFT_OUT or name.startswith(("nvidia-", "cuda-")):
            continue
        (digest,) = (item["download_info"]["archive_info"]["hashes"]["sha256"],)
        lines.append(f"{name}=={version} --hash=sha256:{digest}\n")
    about = report["environment"]
    platform = f"{about['platform_system']} {about['platform_machine']}, Python {about['python_version']}"
    return _HEAD.format(platform=platform) + "".join(sorted(lines))


if __name__ == "__main__":
    LOCK.write_text(to_lock(resolve()), encoding="utf-8")
    print(LOCK)
