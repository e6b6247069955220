"""Run the command line: `python -m manifold_mixup`."""

import sys

from manifold_mixup.cli import main

sys.exit(main())
