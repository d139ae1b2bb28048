"""`python -m vmas` is the same as `vmas`."""

import sys

from vmas.cli import main

if __name__ == "__main__":
    sys.exit(main())
