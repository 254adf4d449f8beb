"""From a config file to a server that answers, and back to nothing.

check -> Ray -> place -> warm -> ready ... signal -> drain -> stop
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from rich.console import Console

from diffusion_edge.config import HttpOptions, ServeConfig, Settings, load_config
from diffusion_edge.errors import ConfigError
from diffusion_edge.families.card import load_card
from diffusion_edge.places import REPOSITORY, family_folder
from diffusion_edge.serve.machine import Machine, completed
from diffusion_edge.serve.names import check_names, named_card
from diffusion_edge.serve.signals import ignore_signals, raise_on_signals, signals_raise

LARGEST_MESSAGE_BYTES = 128 * 2**20
"""Twice the largest packet; a picture is smaller than that."""


def serve(
    config_path: str | Path,
    port: int | None = None,
    address: str | None = None,
    family: str | None = None,
) -> int:
    """Serves until a signal; returns the exit code. Raises EdgeError if it cannot start.

    address: of a Ray to join ("auto", host:port); None starts one of our own. family: instead of
    the config's, its folder or its name. The first signal lets running requests finish, a second
    one does not. To be called in the main thread.
    """
    path = Path(config_path)
    config = _of_family(_on_port(load_config(path), port), family)
    check_names(config.settings, named_card(config.settings, path), path)
    check_models(config.settings)
    variables = {} if address else own_variables()
    port_of = nullcontext() if address else claimed_port(config.http_options)
    # A stop is no failure. Ray turns a SIGTERM that it catches into SystemExit.
    with (
        port_of,
        signals_raise(),
        environment(variables),
        suppress(KeyboardInterrupt, SystemExit),
    ):
        _serve(config, address)
    return 0


def _serve(config: ServeConfig, address: str | None) -> None:
    # Ray reads its settings from the environment when it is imported.
    from diffusion_edge.serve.deploy import await_ready, deploy, drain
    from diffusion_edge.serve.rays import joined_ray, own_ray

    logging.disable(logging.INFO)  # Serve would tell every step
    settings, name = with_stages(config.settings), config.application.name
    ray_of = joined_ray(address, name) if address else own_ray(settings.stages.values())
    url = _url(config.http_options)
    with Console(stderr=True).status("starting Ray") as status, ray_of:
        raise_on_signals()  # Ray took SIGTERM for itself
        try:
            status.update("placing and warming the stages")
            deploy(config)
            await_ready(url)
            status.stop()
            sys.stdout.write(f"ready: {url}\n")
            sys.stdout.flush()
            threading.Event().wait()
        except KeyboardInterrupt:
            status.update("finishing running requests; a second signal stops at once")
            status.start()
            try:
                drain(name, settings.drain_timeout_s)
            except KeyboardInterrupt:
                ignore_signals()
                drain(name, 0.0)  # or a Ray that runs on would wait for its replicas
        finally:
            ignore_signals()
            status.update("stopping")


# ---------------------------------------------------------------------------- before the start


def _on_port(config: ServeConfig, port: int | None) -> ServeConfig:
    if port is None:
        return config
    if not 1 <= port <= 65535:
        raise ConfigError(f"port {port} is not between 1 and 65535", key="port")
    http = config.http_options.model_copy(update={"port": port})
    return config.model_copy(update={"http_options": http})


def _of_family(config: ServeConfig, family: str | None) -> ServeConfig:
    if family is None:
        return config
    # Workers of Ray have another working directory.
    settings = config.settings.model_copy(update={"family": str(family_folder(family))})
    application = config.application.model_copy(update={"args": settings})
    return config.model_copy(update={"applications": [application]})


def with_stages(settings: Settings) -> Settings:
    """As far as it can be told before Ray has counted what the machine has."""
    card = load_card(family_folder(settings.family))
    return completed(settings, card, Machine(cpus=os.cpu_count() or 1))


def check_models(settings: Settings) -> None:
    """ConfigError for a stage without a model on disk, where a replica would fail late."""
    card = load_card(family_folder(settings.family))
    for name, stage in with_stages(settings).stages.items():
        folder = card.folder(stage.model)
        if not (folder / "model_index.json").is_file():
            raise ConfigError(
                f"the model {stage.model!r} of the stage {name!r} is not on disk: "
                f"there is no {folder / 'model_index.json'}",
                key=f"stages.{name}.model",
            )
    for model in (card.reference, card.shared or card.reference):
        card.folder(model)  # every stage reads something of these


@contextmanager
def claimed_port(http: HttpOptions) -> Iterator[None]:
    """Makes sure that a port is free and that no other start of ours is about to take it.

    Serve's proxies share a port without complaint, and one that still starts does not listen
    yet; hence the lock.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((http.host, http.port))
        except OSError as error:
            raise _port_taken(http, error.strerror or str(error)) from None
    path = Path(tempfile.gettempdir()) / f"diffusion-edge-{os.getuid()}-{http.port}.lock"
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise _port_taken(http, "another server is starting on it") from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _port_taken(http: HttpOptions, reason: str) -> ConfigError:
    return ConfigError(
        f"port {http.port} on {http.host} cannot be used ({reason}); "
        "choose another one with --port",
        key="http_options.port",
    )


def _url(http: HttpOptions) -> str:
    host = "127.0.0.1" if http.host == "0.0.0.0" else http.host
    return f"http://{host}:{http.port}"


# ---------------------------------------------------------------------------- surroundings


def own_variables() -> dict[str, str]:
    """What the processes of our own Ray inherit.

    A token of its own keeps other users of the machine out, without a file in the home folder.
    PYTHONPATH lets workers import this package from any working directory. Ray would run workers
    at the lowest priorities; a server's should be those of whoever starts it.

    Packets of 16 MiB cross as Serve's handles are, by reference. Where the environment has them
    pass by value (RAY_SERVE_USE_GRPC_BY_DEFAULT=1), Serve's limit of 4 MiB would stop them.
    """
    path = os.environ.get("PYTHONPATH", "")
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(LARGEST_MESSAGE_BYTES),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(REPOSITORY), path))),
    }


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets variables inside; if any, also hides the address of another Ray."""
    hidden = ("RAY_ADDRESS",) if variables else ()
    before = {name: os.environ.pop(name, None) for name in (*variables, *hidden)}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
