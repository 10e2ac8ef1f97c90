"""How Ray is started for sweeps and searches."""

from __future__ import annotations

import logging
from typing import Any

# Options of ray.init: without a dashboard, and with nothing printed.
QUIET: dict[str, Any] = {
    "include_dashboard": False,
    "log_to_driver": False,  # jobs have logs of their own
    "configure_logging": True,
    "logging_level": logging.CRITICAL,
}
