"""The stock pipeline behind Ray Serve, as its documentation serves Stable Diffusion: an ingress
that writes the PNG, and replicas that each hold a pipeline and make one image at a time.

    python -m diffusion_edge.bench.stock_server FAMILY STAGE --port 9000 --replicas 2 --threads 1
"""

from __future__ import annotations

import argparse
import io
import logging
import sys
import threading
from contextlib import suppress
from typing import Any

import torch
from fastapi import FastAPI, Response
from PIL.Image import Image
from ray import serve

from diffusion_edge.bench.stock import StockPipeline
from diffusion_edge.bench.workload import Asked
from diffusion_edge.families.card import load_card
from diffusion_edge.families.pipeline import Loading
from diffusion_edge.places import family_folder
from diffusion_edge.serve.rays import own_ray
from diffusion_edge.serve.signals import raise_on_signals, signals_raise

api = FastAPI()


class Replica:
    def __init__(self, family: str, stage: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._pipeline = StockPipeline(
            load_card(family_folder(family)), stage, Loading().torch_device()
        )

    def generate(self, asked: Asked) -> Image:
        (image,) = self._pipeline.one_by_one([asked])
        found: Image = image
        return found


@serve.deployment
@serve.ingress(api)
class Front:
    def __init__(self, replicas: Any) -> None:
        self._replicas = replicas

    @api.get("/imagine", response_class=Response)
    async def imagine(
        self, prompt: str, seed: int, solver: str, steps: int, guidance: float
    ) -> Response:
        """A PNG."""
        asked = Asked(prompt, seed, solver, steps, guidance)
        image = await self._replicas.generate.remote(asked)
        file = io.BytesIO()
        image.save(file, "PNG")
        return Response(content=file.getvalue(), media_type="image/png")


def application(family: str, stage: str, replicas: int, threads: int) -> serve.Application:
    gpus = 1 / replicas if torch.cuda.is_available() else 0.0
    pipelines = serve.deployment(Replica).options(
        num_replicas=replicas,
        max_ongoing_requests=1,  # the rest waits in one line, for whichever replica is free
        ray_actor_options={"num_cpus": 0.1, "num_gpus": gpus},
    )
    return Front.options(max_ongoing_requests=100_000).bind(  # type: ignore[attr-defined]  # a deployment
        pipelines.bind(family, stage, threads)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="The stock pipeline behind Ray Serve.")
    parser.add_argument("family")
    parser.add_argument("stage")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    logging.disable(logging.INFO)
    with signals_raise(), suppress(KeyboardInterrupt, SystemExit), own_ray(()):
        raise_on_signals()  # Ray took SIGTERM for itself
        serve.start(
            http_options={"host": "127.0.0.1", "port": args.port},
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
        serve.run(application(args.family, args.stage, args.replicas, args.threads))
        sys.stdout.write(f"ready: http://127.0.0.1:{args.port}\n")
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    main()
