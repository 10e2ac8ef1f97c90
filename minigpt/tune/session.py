"""Start Ray or join a cluster for a search, and divide the cores among trials."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from minigpt.errors import Failure, UserError, first_line
from minigpt.sweep.run import QUIET

# Ray must not print, write event files, change the working directory or report usage.
ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_DEDUP_LOGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # minigpt's handler lets trials save first
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # failed trials have no metric
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
CONNECT_SECONDS = 5.0
OBJECT_STORE_BYTES = 100 * 2**20  # for configs and metrics; Ray's minimum is 75 MiB


@dataclass(frozen=True)
class Share:
    """Resources per trial with `jobs` concurrent trials."""

    jobs: int
    threads: int
    cpus: float  # for Ray's scheduling
    gpus: float


@contextmanager
def ray_session(address: str | None, jobs: int | None, trials: int) -> Iterator[Share]:
    """Start Ray on this machine or join a cluster, and yield the share of each trial.

    A Ray that is already initialized in this process is used and left running. Raises UserError if
    no cluster answers, and Failure if Ray fails.
    """
    os.environ.update(ENVIRONMENT)
    import ray
    from ray.exceptions import RayError

    if ray.is_initialized():
        yield _share(jobs, trials)
        return
    _require_cluster(address)
    with tempfile.TemporaryDirectory(prefix="minigpt_ray_", ignore_cleanup_errors=True) as scratch:
        try:
            local = {"object_store_memory": OBJECT_STORE_BYTES, "_temp_dir": scratch}
            ray.init(address or "local", **(QUIET if address else QUIET | local))
        except (ConnectionError, ValueError) as error:
            raise _no_cluster(address, error) from None
        except Exception as error:  # of that type, if one of its processes ends
            remedy = "try again, or look at its processes"
            raise Failure(f"Ray failed to start ({first_line(error)}); {remedy}") from error
        for name in ("ray", "ray.tune", "ray.train"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            yield _share(jobs, trials)
        except RayError as error:  # as if one of its processes was killed
            remedy = "the same command with --dir FOLDER resumes the search"
            raise Failure(f"Ray failed ({first_line(error)}); {remedy}") from error
        finally:
            ray.shutdown()


def _require_cluster(address: str | None) -> None:
    """Raise UserError if nothing listens at host:port; Ray itself would wait for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host:
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise _no_cluster(address, error) from None


def _no_cluster(address: str | None, error: Exception) -> UserError:
    return UserError(
        f"--address={address}: no Ray cluster answers there ({first_line(error)}); start one with "
        f"`ray start --head`, or leave --address out"
    )


def _share(jobs: int | None, trials: int) -> Share:
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = sum(node.get("CPU", 0) for node in nodes)
    gpus = sum(node.get("GPU", 0) for node in nodes)
    jobs = min(trials, jobs or int(gpus or cpus))
    # A trial runs on one machine, so the smallest machine limits its share.
    cpu = min(cpus / jobs, min(node["CPU"] for node in nodes if node.get("CPU")))
    gpu = 1 / -(-jobs // int(gpus)) if gpus else 0.0
    return Share(jobs, max(1, int(cpu)), cpu if cpu < 1 else float(int(cpu)), gpu)
