"""Lets ``python -m adaptok`` do what the ``adaptok`` command does."""

import sys

from adaptok.cli import main

if __name__ == "__main__":
    sys.exit(main())
