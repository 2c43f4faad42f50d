"""`python -m cbdc` is the command `cbdc`."""

import sys

from .cli import main

sys.exit(main())
