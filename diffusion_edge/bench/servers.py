"""Servers as processes of their own: ours, and the stock pipeline behind Ray Serve."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from diffusion_edge.errors import EdgeError
from diffusion_edge.serve.launch import own_variables

STOP_S = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(module: str, arguments: Sequence[str]) -> Iterator[str]:
    """The URL of a server that `python -m module` starts and announces by a line `ready: URL`.

    It ends with the context. Raises EdgeError, with what it said, if it does not start.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | own_variables(),  # before it imports Ray, which reads them then
        start_new_session=True,  # a Ctrl-C in the terminal is for the benchmark, which ends them
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line.startswith("ready: "):
            said = process.communicate(timeout=STOP_S)[1].strip() or "nothing"
            raise EdgeError(f"{module} did not start; it said: {said[-500:]}")
        yield line.removeprefix("ready: ").strip()
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with what it started, or that would run on
            process.communicate()
