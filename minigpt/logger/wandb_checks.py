"""What W&B accepts, and whether it can run online. Nothing here starts a run."""

from __future__ import annotations

import http.client
import os
import ssl
import threading
import urllib.error
import urllib.request
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from minigpt.errors import UserError, first_line, require

if TYPE_CHECKING:
    import wandb

# Limits of W&B's server. A run that is beyond them is recorded offline but can never be uploaded.
MAX_LABEL, MAX_TAG = 128, 64
FORBIDDEN = "/\\#?%:"  # in projects and entities, which are parts of a URL


class Unavailable(Exception):
    """A mode of W&B is not available; the message has the reason."""


def require_label(key: str, value: str | None, forbidden: str = FORBIDDEN) -> None:
    """Raise UserError unless a project, entity or group is one that W&B accepts, or None."""
    if value is None:
        return
    require(bool(value.strip()), key, value, "empty; give a name, or leave it out")
    short, length = _shortened(value), len(value)
    why = f"has {length} characters, W&B takes at most {MAX_LABEL}; shorten it"
    require(length <= MAX_LABEL, key, short, why)
    found = " ".join(sorted(set(value) & set(forbidden)))
    require(not found, key, short, f"W&B does not take the characters {found} in it; remove them")


def require_tag(tag: str) -> None:
    """Raise UserError unless W&B accepts the tag."""
    why = f"a tag has {len(tag)} characters, W&B takes 1 to {MAX_TAG}; shorten it, or leave it out"
    require(0 < len(tag) <= MAX_TAG, "tags", f"[{_shortened(tag)}]", why)


def _shortened(text: str, length: int = 40) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


def require_settings() -> None:
    """Raise UserError if W&B rejects its environment variables or settings files."""
    try:
        settings()
    except Unavailable as error:
        why = f"W&B rejects its environment (WANDB_*) or settings file: {error}"
        raise UserError(f"logger=wandb: {why}; correct that, or use logger=none") from None


def settings() -> wandb.Settings:
    """Return W&B's settings from the environment and its files. Raises Unavailable."""
    import wandb

    os.environ["WANDB_SILENT"] = "true"
    try:
        return wandb.setup().settings
    except (wandb.Error, ValueError) as error:  # pydantic's ValidationError is a ValueError
        raise Unavailable(_reason(error)) from None


def why_not_online(timeout_seconds: float) -> str | None:
    """Return why W&B cannot run online, or None if it can."""
    try:
        require_online(settings(), timeout_seconds)
    except Unavailable as error:
        return str(error)
    return None


def require_online(settings: wandb.Settings, seconds: float) -> None:
    """Raise Unavailable unless W&B is enabled, has an API key, and its server answers in time."""
    import wandb

    if settings.mode in ("offline", "dryrun", "disabled"):
        raise Unavailable(mode_setting(settings))
    try:
        logged_in = wandb.login(prompt=False, verify=False)
    except (wandb.Error, ValueError, OSError) as error:  # such as a key of the wrong length
        raise Unavailable(_reason(error)) from None
    if not logged_in:
        raise Unavailable("no API key, run `wandb login` once")
    # In a thread, because looking up a host name has no timeout.
    answer: SimpleQueue[str | None] = SimpleQueue()
    ask = threading.Thread(target=lambda: answer.put(_probe(settings.base_url, seconds)))
    ask.daemon = True
    ask.start()
    try:
        why = answer.get(timeout=seconds)
    except Empty:
        why = f"no answer in {seconds:g} s"
    if why is not None:
        raise Unavailable(f"{settings.base_url}: {why}")


def _probe(url: str, seconds: float) -> str | None:
    """Request the health of W&B's server. Return what is wrong, or None."""
    try:
        urllib.request.urlopen(f"{url}/healthz", timeout=seconds).close()
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code}" if error.code >= 500 else None
    except urllib.error.URLError as error:
        # W&B's own client may have certificates that Python does not have.
        return None if isinstance(error.reason, ssl.SSLError) else str(error.reason)
    except (OSError, http.client.HTTPException) as error:
        return str(error)
    return None


def mode_setting(settings: wandb.Settings) -> str:
    """Return the user's setting that disables W&B or makes it offline."""
    name = "WANDB_MODE" if os.environ.get("WANDB_MODE") else "W&B's settings file: mode"
    return f"{name}={settings.mode}"


def _reason(error: Exception) -> str:
    """Return the reason of an error of W&B in one line."""
    import pydantic

    if not isinstance(error, pydantic.ValidationError):
        return first_line(error).rstrip(".")
    first = error.errors(include_url=False)[0]
    setting = ".".join(map(str, first["loc"]))
    return f"{setting}={_shortened(str(first['input']))}: {first['msg']}"
