"""The theorem for every way that can run here, and every architecture: split = unsplit bit for bit,
and both are the stock pipeline's within rounding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffusion_edge.engine.run import begin, run_last_span, run_steps, step
from diffusion_edge.execution import openvino
from diffusion_edge.execution.check import relative
from diffusion_edge.execution.compiled import COMPILED
from diffusion_edge.execution.openvino import OPENVINO
from diffusion_edge.execution.way import Way, running
from diffusion_edge.families.base import Loaded
from diffusion_edge.families.card import load_card
from diffusion_edge.families.load import load_family
from diffusion_edge.schedule import resolved_steps
from tests import theorem
from tests.architectures import TINY, stock
from tests.families.test_architectures import (
    ASKED,
    OTHER,
    PROMPT,
    SEED,
    Model,
    a_packet,
    carried_out,
    mistakes,
)
from tests.long import LONG
from tests.theorem import BOUND, CONTROL, Case, examine
from tests.tiny import make_family

SIZE = 32
NAMES = [name for name in TINY if LONG or name != "flux-schnell"]
EACH = [(OPENVINO, name) for name in NAMES] + [(COMPILED, name) for name in TINY if LONG]
"""Compilers take minutes: in `make test-long`."""


def solvers(model: Model) -> tuple[str, ...]:
    """One that keeps a history; of long runs all."""
    return model.tiny.solvers if LONG else model.tiny.solvers[1:2]


def by(way: Way, family: Loaded, size: int) -> Loaded:
    """Skips, with its reason, where the way cannot run."""
    reason = way.refuses(family, [size], 1)
    if reason is not None:
        pytest.skip(f"{way.name}: {reason}")
    return running(family, way, [size], 1)


@pytest.fixture(scope="module", params=EACH, ids=lambda each: f"{each[0].name}-{each[1]}")
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Its cloud runs by the way, its device is the same model, eagerly."""
    torch.set_num_threads(1)
    way, name = request.param
    tiny = TINY[name]
    root = tiny.save(tmp_path_factory.mktemp(name))
    eager = load_family(load_card(root), "device")
    return Model(tiny, root, tiny.pipeline(1, 0), eager, by(way, eager, SIZE))


def test_it_is_the_stock_pipelines_and_another_way(model: Model) -> None:
    assert model.cloud.execution != model.device.execution == "eager"
    for solver in solvers(model):
        for guidance in model.tiny.guidance[0 if LONG else -1 :]:
            packet = a_packet(model, solver, guidance=guidance)
            asked = (solver, ASKED, [PROMPT], [""], [SEED], guidance, SIZE, SIZE)
            own = run_last_span(model.cloud, packet)[0]
            error = relative(own, stock(model.tiny, model.pipeline, *asked))
            print(f"{solver} guidance {guidance}: {error:.1e}")
            assert error <= BOUND
            assert not torch.equal(own, run_last_span(model.device, packet)[0])


def test_split_at_every_step_it_has_the_bits_of_the_unsplit_one(model: Model) -> None:
    for solver in solvers(model):
        steps = resolved_steps(solver, ASKED)
        whole, _ = carried_out(model, a_packet(model, solver))
        for cut in range(1, steps):
            plan = f"cloud:{cut},cloud:{steps - cut}"
            assert torch.equal(carried_out(model, a_packet(model, solver, plan))[0], whole)


def test_what_must_be_seen_is_seen(model: Model) -> None:
    found = mistakes(model)
    print({k: f"{error:.1e}" for k, error in found.items()})
    assert min(found.values()) > CONTROL


def test_a_sample_does_not_depend_on_its_company(model: Model) -> None:
    """Bit for bit at a fixed number of rows; another number rounds otherwise."""
    solver = model.tiny.solvers[0]
    own = begin(model.cloud, a_packet(model, solver))
    others = [begin(model.cloud, a_packet(model, solver, seed=n, prompt=OTHER)) for n in range(4)]
    first, *_ = step(model.cloud, [own, *others[:2]])
    *_, last = step(model.cloud, [others[3], others[0], own])
    assert torch.equal(first.latent, last.latent)
    assert relative(run_steps(model.cloud, own, 1).latent, first.latent) <= BOUND


def test_the_vae_makes_the_images_of_the_eager_one(model: Model) -> None:
    if model.cloud.execution != OPENVINO.name:
        pytest.skip("the VAE is left as it is")
    images = openvino.images(model.device, [SIZE], 1)
    for size, rows in ((SIZE, 1), (SIZE, 5), (48, 2)):
        latent = torch.randn(rows, *model.device.latent_shape(size, size))
        own, eager = images(latent), model.device.images(latent)
        assert own.shape == eager.shape
        assert relative(own, eager) <= BOUND
        assert torch.equal(own, eager) == (size != SIZE)


def test_the_text_encoders_make_the_conditioning_of_the_eager_ones(model: Model) -> None:
    if model.cloud.execution != OPENVINO.name:
        pytest.skip("the text encoders are left as they are")
    encode = openvino.encode(model.device, [], 1)
    for prompts in ([PROMPT], [PROMPT, "", OTHER, "a ring", PROMPT]):
        words = model.device.words(prompts)
        own, eager = encode(words).tensors, model.device.encode(words).tensors
        assert list(own) == sorted(eager)
        for name, expected in eager.items():
            assert own[name].dtype == expected.dtype
            assert own[name].shape == expected.shape
            assert relative(own[name].float(), expected.float()) <= BOUND


def test_another_size_is_run_eagerly(model: Model) -> None:
    packet = a_packet(model, model.tiny.solvers[0], width=48)
    own, eager = (run_last_span(family, packet)[0] for family in (model.cloud, model.device))
    assert torch.equal(own, eager)


def test_the_theorem(tmp_path: Path) -> None:
    """With two cuts, and everything else that `tests.theorem` looks at."""
    torch.set_num_threads(1)
    eager = theorem.Model.load(make_family(tmp_path))
    family = load_family(load_card(tmp_path), theorem.STAGE)
    found = examine(replace(eager, family=by(OPENVINO, family, 16)), Case("unipc", 8), apart=3)
    print(found)
    assert found.unequal == 0
    assert found.error <= BOUND
    assert min(found.controls.values()) > CONTROL
