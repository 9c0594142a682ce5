"""``python -m proxflow.cli``, which torchrun starts."""

import sys

from proxflow.cli.main import main

sys.exit(main())
