"""``python -m runtime`` is ``defender``."""

import sys

from runtime.cli import main

sys.exit(main())
