"""Joins a Ray cluster, or starts a Ray of this machine; needs the extra `ray`."""

from __future__ import annotations

import os

from ..errors import BackboneError

LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}  # no cluster, and no reports
STORE_BYTES = 256 * 2**20  # of Ray's shared memory: pictures are small


def start_ray(cpus: int | None = None, quiet: bool = False) -> None:
    """Join the cluster of RAY_ADDRESS, or start a Ray of this machine, which only this machine reaches.

    Args:
        cpus: That Ray counts on this machine; None is all.
        quiet: Do not print what the workers print.

    Raises:
        BackboneError: no cluster at RAY_ADDRESS.
    """
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        for name, value in LOOPBACK.items():  # which Ray reads when it is imported
            os.environ.setdefault(name, value)
    import ray

    if address:
        try:
            ray.init(log_to_driver=not quiet)
        except (ConnectionError, RuntimeError, ValueError) as e:
            raise BackboneError(
                f"RAY_ADDRESS: expected the address of a Ray cluster, got {address}: {e}. Unset it to start a Ray of "
                f"this machine."
            ) from e
        return
    ray.init("local", num_cpus=cpus, object_store_memory=STORE_BYTES, include_dashboard=False, log_to_driver=not quiet)
