"""The Ray that serves: one of our own for this machine, or one that runs already."""

from __future__ import annotations

import logging
import math
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve

from diffusion_edge.config import StageConfig
from diffusion_edge.errors import ConfigError, EdgeError
from diffusion_edge.serve.processes import adopt_orphans, descendants, end_descendants
from diffusion_edge.serve.signals import ignore_signals

OBJECT_STORE_BYTES = 128 * 2**20
# A unix socket's path may have 107 characters; Ray adds about 70 to its folder.
_LONGEST_PARENT = 24


@contextmanager
def own_ray(stages: Collection[StageConfig]) -> Iterator[None]:
    """A Ray of one node that carries every stage's label and resource.

    It shares nothing with another Ray on the machine: own folder, own ports, and the token of
    `launch.own_variables`. All its processes end and its folder goes when the context does.
    """
    adopt_orphans()
    others = descendants()
    parent = tempfile.gettempdir()
    folder = tempfile.mkdtemp(prefix="de-", dir=parent if len(parent) < _LONGEST_PARENT else "/tmp")
    try:
        _connect(
            address="local",
            num_cpus=max(os.cpu_count() or 1, math.ceil(sum(s.num_cpus for s in stages))),
            resources={s.resource: 1.0 for s in stages if s.resource},
            labels={s.label: "true" for s in stages if s.label},
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",
            _temp_dir=folder,
        )
        yield
    finally:
        ignore_signals()
        ray.shutdown()
        end_descendants(spare=others)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def joined_ray(address: str, app_name: str) -> Iterator[None]:
    """A Ray that runs already. At the end our application goes, and Serve if we started it."""
    _connect(address=address)
    try:
        before = serve.status()
        if app_name in before.applications:
            raise ConfigError(
                f"the Ray at {address} has an application {app_name!r} already; "
                "give this one another name",
                key="applications[0].name",
            )
        served = bool(before.proxies or before.applications)
        try:
            yield
        finally:
            if served:
                serve.delete(app_name)
            else:
                serve.shutdown()
    finally:
        ray.shutdown()


def _connect(**options: Any) -> None:
    try:
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # a node that starts too slowly is a bare Exception
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        what = "could not be started" if options["address"] == "local" else "could not be joined"
        raise EdgeError(f"Ray ({options['address']}) {what}: {reason}") from error
