"""lan.yaml over three Ray nodes on this machine, each with the label and resource of one tier."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from diffusion_edge.config import load_config
from diffusion_edge.places import REPOSITORY
from tests.serve.live import SHIPPED, Server, config_file, free_port

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
# Settled before Ray reads them: no token, and workers that find this package.
SURROUNDINGS = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "PYTHONPATH": str(REPOSITORY),
}


@pytest.fixture(scope="module")
def nodes() -> Iterator[dict[str, Any]]:
    """One node per stage of lan.yaml, by stage; the last is the head; "" is the cluster."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SURROUNDINGS.items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        stages = load_config(REPOSITORY / "serve_configs" / "lan.yaml").settings.stages
        arguments = {
            name: {
                "num_cpus": 1,
                "resources": {stage.resource: 1},
                "labels": {stage.label: "true"},
                "object_store_memory": 80 * 2**20,
                "include_log_monitor": False,
            }
            for name, stage in stages.items()
        }
        head, head_arguments = arguments.popitem()
        cluster = Cluster(initialize_head=True, head_node_args=head_arguments)
        try:
            added = {name: cluster.add_node(**given) for name, given in arguments.items()}
            yield {"": cluster, head: cluster.head_node} | added
        finally:
            cluster.shutdown()


def replicas_by_node(nodes: dict[str, Any]) -> dict[str, psutil.Process]:
    """The process of each stage's replica, looked for only on the stage's own node."""
    found = {}
    for stage in ("device", "edge", "cloud"):
        raylet = nodes[stage].all_processes["raylet"][0].process.pid
        for process in psutil.Process(raylet).children(recursive=True):
            if f"ServeReplica:diffusion-edge:{stage}" in " ".join(process.cmdline()):
                found[stage] = process
    return found


def test_each_stage_lands_on_its_node_and_a_request_crosses_them(
    nodes: dict[str, Any], tiny_family: Path, tmp_path: Path
) -> None:
    config = config_file(
        tmp_path, tiny_family, ("host: 0.0.0.0", "host: 127.0.0.1"), source=SHIPPED / "lan.yaml"
    )
    server = Server(config, free_port(), "--address", nodes[""].address, **SURROUNDINGS)
    try:
        server.await_ready()
        replicas = replicas_by_node(nodes)
        assert set(replicas) == {"device", "edge", "cloud"}
        response = server.generate("cloud:3,edge:3,device:4")
        assert response.status_code == 200, response.text
        told = response.json()["diffusion_edge"]
        (image,) = told["images"]
        assert [span["stage"] for span in image["spans"]] == ["cloud", "edge", "device"]
        assert all(span["emulated_s"] == 0 for span in image["spans"])
        assert not told["emulated"]["stages"]
        links = server.http.post("/v1/plan", json={"prompt": "a red circle"}).json()["links"]
        known = {(link["source"], link["target"]): link["known"] for link in links}
        assert len(known) == 6  # the file states none
        assert known["cloud", "edge"] == known["edge", "device"] == "measured"
        assert server.stop() == 0
        psutil.wait_procs(list(replicas.values()), timeout=10)
        assert not any(process.is_running() for process in replicas.values())
    finally:
        server.end()
    assert all(node.remaining_processes_alive() for name, node in nodes.items() if name)


def test_a_stage_that_no_node_can_hold_is_named(
    nodes: dict[str, Any], tiny_family: Path, tmp_path: Path
) -> None:
    config = config_file(
        tmp_path,
        tiny_family,
        ("host: 0.0.0.0", "host: 127.0.0.1"),
        ("label: diffusion-edge.io/cloud", "label: diffusion-edge.io/orbit"),
        ("placement_timeout_s: 60.0", "placement_timeout_s: 2.0"),
        source=SHIPPED / "lan.yaml",
    )
    server = Server(config, free_port(), "--address", nodes[""].address, **SURROUNDINGS)
    try:
        _, errors = server.process.communicate(timeout=60)
        assert server.process.returncode == 1
        assert "the stage 'cloud' lacks the label diffusion-edge.io/orbit=true" in errors
        assert "Traceback" not in errors
    finally:
        server.end()
