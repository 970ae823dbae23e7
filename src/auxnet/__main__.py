"""`python -m auxnet` is `auxnet`."""

import sys

from auxnet.cli import main

sys.exit(main())
