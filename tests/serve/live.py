"""A real server in its own process, for tests; the family is the tiny one."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil

from diffusion_edge.places import REPOSITORY

EMULATED = REPOSITORY / "tests" / "emulated.yaml"
"""Three emulated stages."""
SHIPPED = REPOSITORY / "serve_configs"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def config_file(
    folder: Path, family: Path, *edits: tuple[str, str], source: Path = EMULATED
) -> Path:
    """A config with the tiny family, and with every pair's first text as its second.

    Emulated stages run eagerly: to prepare another way takes longer than all that they do here.
    """
    text = source.read_text()
    if source == EMULATED:
        edits = (*edits, ("          model: ", "          execution: eager\n          model: "))
    for old, new in (("stage_models/shapes", str(family)), *edits):
        assert old in text
        text = text.replace(old, new)
    path = folder / source.name
    path.write_text(text)
    return path


class Server:
    """`diffusion-edge serve CONFIG`, as a user starts it, in a process group of its own."""

    def __init__(self, config: Path, port: int, *options: str, **env: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "diffusion_edge", "serve", str(config)]
        self.process = subprocess.Popen(
            [*command, "--port", str(port), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=config.parent,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | env,
            start_new_session=True,
        )
        self._seen: dict[int, psutil.Process] = {}
        self.http = httpx.Client(base_url=self.url, timeout=60.0, trust_env=False)

    def await_ready(self, timeout_s: float = 150.0) -> Server:
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            assert selector.select(timeout_s), "no word within the time allowed"
        line = self.process.stdout.readline()
        assert line, f"it ended: {self.process.communicate(timeout=60)[1]}"
        assert line == f"ready: {self.url}\n"
        self.remember()
        return self

    def remember(self) -> list[psutil.Process]:
        """All processes of this server that live now; they are what must be gone in the end."""
        try:
            root = psutil.Process(self.process.pid)
            alive = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []
        self._seen |= {process.pid: process for process in alive}
        return alive

    def replica(self, stage: str) -> psutil.Process:
        """The process of a stage's replica."""
        title = f"ray::ServeReplica:diffusion-edge:{stage}"
        (found,) = [p for p in self.remember() if title in " ".join(p.cmdline())]
        return found

    def generate(self, plan: str, **fields: Any) -> httpx.Response:
        ours: Mapping[str, Any] = {"plan": plan} | fields.pop("diffusion_edge", {})
        body = {"prompt": "a red circle", "seed": 7, "diffusion_edge": ours} | fields
        return self.http.post("/v1/images/generations", json=body)

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 60.0) -> int:
        """The exit code after a signal, once the process has ended by itself."""
        self.remember()
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.output = self.process.communicate(timeout=timeout_s)
        self.http.close()
        return self.process.returncode

    def left_behind(self) -> list[str]:
        """Processes of this server that still live, zombies not counted."""
        _, alive = psutil.wait_procs(list(self._seen.values()), timeout=5.0)
        return [" ".join(p.cmdline()) for p in alive if p.status() != psutil.STATUS_ZOMBIE]

    def end(self) -> None:
        """For fixtures: whatever state it is in, nothing stays."""
        if self.process.poll() is None:
            self.stop()
        for process in self._seen.values():
            if process.is_running():
                process.kill()
