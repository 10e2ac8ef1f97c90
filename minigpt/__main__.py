"""`python -m minigpt`, for programs that start Python modules, such as torchrun."""

import sys

from minigpt.cli import main

sys.exit(main())
