"""`python -m simulators VERB`: the same as `adloop VERB`."""

from __future__ import annotations

import sys

from simulators.cli import main

if __name__ == "__main__":
    sys.exit(main())
