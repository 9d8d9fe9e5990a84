"""`python -m regdist` is the command `regdist`."""

import sys

from regdist.cli import main

sys.exit(main())
