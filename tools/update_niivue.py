# SPDX-License-Identifier: Apache-2.0
"""Renew the viewer of the report page from the npm registry, and check that it is the file that was reviewed.

python tools/update_niivue.py [--version 0.69.0 --sha256 HASH]
"""

from __future__ import annotations

import argparse
import hashlib
import io
import tarfile
import urllib.request
from pathlib import Path

VERSION = "0.69.0"
SHA256 = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
TARGET = Path(__file__).resolve().parents[1] / "scripts/progressive_cascade/report/assets/niivue.umd.js"


def main() -> None:
    """Download, check, write."""
    parser = argparse.ArgumentParser(description="Renew the viewer of the report page.")
    parser.add_argument("--version", default=VERSION)
    parser.add_argument("--sha256", default=SHA256, help="of dist/niivue.umd.js in the package")
    parser.add_argument("--registry", default="https://registry.npmjs.org")
    options = parser.parse_args()
    url = f"{options.registry}/@niivue/niivue/-/niivue-{options.version}.tgz"
    with urllib.request.urlopen(url) as answer, tarfile.open(fileobj=io.BytesIO(answer.read())) as archive:
        member = archive.extractfile("package/dist/niivue.umd.js")
        content = member.read() if member else b""
    found = hashlib.sha256(content).hexdigest()
    if found != options.sha256:
        raise SystemExit(f"{url} must hold dist/niivue.umd.js of sha256 {options.sha256}, got {found}")
    TARGET.write_bytes(content)
    print(f"{TARGET}: NiiVue {options.version}; set NIIVUE_VERSION in report/page.py to it")


if __name__ == "__main__":
    main()
