"""`python -m scmmgan` is the command `scmmgan`."""

from __future__ import annotations

import sys

from scmmgan.cli import main

if __name__ == "__main__":
    sys.exit(main())
