"""``python -m proxflow.cli``, which torchrun starts."""

import sys

from proxflow.cli import main

sys.exit(main())
