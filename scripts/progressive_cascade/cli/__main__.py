# SPDX-License-Identifier: Apache-2.0
"""`python -m progressive_cascade.cli`, for where the console script is not on the path."""

import sys

from progressive_cascade.cli import main

if __name__ == "__main__":
    sys.exit(main())
