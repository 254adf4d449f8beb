"""The card says which stage quality is relative to, by what it is judged, and whose latents fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_edge.errors import ConfigError
from diffusion_edge.families.card import StageCard, charged_shape, load_card
from diffusion_edge.families.load import load_family
from diffusion_edge.families.space import space
from diffusion_edge.places import REPOSITORY
from diffusion_edge.schedule import SOLVERS
from tests import tiny
from tests.api.fakes import settings

CARD = tiny.CARD % "ddim"


def card_of(folder: Path, text: str) -> Path:
    (folder / "family.yaml").write_text(text)
    return folder


def test_the_reference_is_cloud_or_else_the_last_stage(tmp_path: Path) -> None:
    assert load_card(card_of(tmp_path, CARD)).reference == "cloud"
    renamed = CARD.replace("  cloud: {folder: cloud, ", "  big: {folder: cloud, ")
    assert load_card(card_of(tmp_path, renamed)).reference == "big"


def test_a_metric_may_be_named(tmp_path: Path) -> None:
    assert load_card(card_of(tmp_path, CARD)).metric == "distance"
    assert load_card(card_of(tmp_path, CARD + "metric: mine:judge\n")).metric == "mine:judge"


def test_an_unknown_key_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"family\.yaml, line \d+: metrik: .*did you mean 'metric'"
    ):
        load_card(card_of(tmp_path, CARD + "metrik: mine:judge\n"))


@pytest.mark.parametrize("key", ["shared", "vae"])
def test_a_stage_that_stands_for_all_must_be_one(tmp_path: Path, key: str) -> None:
    card = load_card(card_of(tmp_path, f"{CARD}{key}: cloud\n"))
    assert getattr(card, key) == "cloud"
    with pytest.raises(ConfigError, match=f"{key}: there is no stage 'moon'"):
        load_card(card_of(tmp_path, f"{CARD}{key}: moon\n"))


def test_text_encoders_are_each_stages_own_or_the_shared_ones(tmp_path: Path) -> None:
    own = load_card(card_of(tmp_path, CARD))
    assert [own.encodes(stage) for stage in own.stages] == [True, True, True]
    shared = load_card(card_of(tmp_path, CARD + "shared: cloud\n"))
    assert [shared.encodes(stage) for stage in shared.stages] == [False, False, True]


# ---------------------------------------------------------------------------- latent spaces

CONFIG = {"_class_name": "AutoencoderKL", "latent_channels": 4, "scaling_factor": 0.18215}
RNG = np.random.default_rng(0)
TENSORS = {
    "decoder.conv_in.weight": RNG.normal(size=(4, 3)).astype(np.float32),
    "decoder.mid_block.attentions.0.to_q.weight": RNG.normal(size=(3, 3)).astype(np.float32),
    "steps": np.arange(3),
}


def vae_of(
    folder: Path,
    tensors: Mapping[str, np.ndarray] = TENSORS,
    name: str = "diffusion_pytorch_model",
    **config: object,
) -> Path:
    folder.mkdir(parents=True)
    said = {key: value for key, value in (CONFIG | config).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(said))
    save_file(dict(tensors), folder / f"{name}.safetensors")
    return folder


def test_precision_and_file_names_do_not_count(tmp_path: Path) -> None:
    half = {
        name: values.astype(np.float16) if values.dtype == np.float32 else values
        for name, values in TENSORS.items()
    }
    one = space(vae_of(tmp_path / "a"))
    other = space(vae_of(tmp_path / "b", half, name="diffusion_pytorch_model.fp16"))
    assert one.fingerprint == other.fingerprint
    assert not one.weights_unlike(other)


def test_bfloat16_is_read(tmp_path: Path) -> None:
    """Values that bfloat16 has exactly."""
    values = np.array([1.5, -0.25, 3e38, 0.0, 1e-8], np.float32)
    values = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    one = space(vae_of(tmp_path / "a", {"w": values}))
    raw = vae_of(tmp_path / "b", {"w": (values.view(np.uint32) >> 16).astype(np.uint16)})
    path = raw / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"U16"', b'"BF16"').replace(b"}} ", b"}}"))
    data = path.read_bytes()
    length = data.index(b"}}") + 2 - 8
    path.write_bytes(length.to_bytes(8, "little") + data[8:])
    assert space(raw).fingerprint == one.fingerprint


def test_old_names_of_attention_and_left_out_defaults_do_not_count(tmp_path: Path) -> None:
    old = {name.replace("to_q", "query"): values for name, values in TENSORS.items()}
    one = space(vae_of(tmp_path / "a", shift_factor=0.0))
    other = space(vae_of(tmp_path / "b", old, scaling_factor=None))
    assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize(
    ("name", "value"),
    [("scaling_factor", 0.13025), ("shift_factor", 0.0609), ("latent_channels", 16)],
)
def test_another_factor_is_another_space(tmp_path: Path, name: str, value: float) -> None:
    one = space(vae_of(tmp_path / "a"))
    other = space(vae_of(tmp_path / "b", **{name: value}))
    assert one.fingerprint != other.fingerprint
    (clause,) = other.scaled_unlike(one)
    assert clause.startswith(f"{name} is {value:g}, not ")
    assert not other.weights_unlike(one)


def test_other_weights_are_another_space(tmp_path: Path) -> None:
    one = space(vae_of(tmp_path / "a"))
    changed = {name: values + (name == "steps") for name, values in TENSORS.items()}
    shaped = TENSORS | {"steps": np.arange(3).reshape(3, 1)}
    fewer = {name: values for name, values in TENSORS.items() if name != "steps"}
    for number, tensors in enumerate((changed, shaped, fewer)):
        other = space(vae_of(tmp_path / str(number), tensors))
        assert one.fingerprint != other.fingerprint
        assert other.weights_unlike(one) == ["1 of 3 tensors differ, the first is steps"]


def test_a_vae_that_is_written_anew_is_read_anew(tmp_path: Path) -> None:
    vae = vae_of(tmp_path / "a")
    before = space(vae).fingerprint
    (vae / "config.json").write_text(json.dumps(CONFIG | {"scaling_factor": 0.5}))
    assert space(vae).fingerprint != before


def test_a_vae_that_is_not_whole_is_told(tmp_path: Path) -> None:
    vae = vae_of(tmp_path / "a")
    weights = vae / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ConfigError, match="not a whole safetensors file"):
        space(vae)
    weights.unlink()
    with pytest.raises(ConfigError, match="no safetensors weights"):
        space(vae)
    (vae / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"lacks .*config\.json"):
        space(vae)


def test_one_vae_for_all_is_one_space(tiny_family: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_family, tmp_path / "family")
    family = tmp_path / "family"
    config = family / "edge" / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scaling_factor": 0.5}))
    text = (family / "family.yaml").read_text()
    apart, one = load_card(family), load_card(card_of(family, text + "vae: cloud\n"))
    assert apart.latent_space("edge") != apart.latent_space("cloud") == apart.latent_space()
    assert one.latent_space("edge") == one.latent_space("cloud") == apart.latent_space()


# ---------------------------------------------------------------------------- noise


def noise_of(folder: Path, stage: str, **changes: object) -> None:
    config = folder / stage / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))


@pytest.fixture
def family(tmp_path: Path, tiny_family: Path) -> Path:
    return shutil.copytree(tiny_family, tmp_path / "family")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prediction_type": "epsilon"}, "prediction_type is epsilon, not v_prediction"),
        ({"beta_end": 0.012}, "beta_end is 0.012, not 0.02"),
        ({"beta_start": 0.00085}, "beta_start is 0.00085, not 0.0001"),
        ({"beta_schedule": "scaled_linear"}, "beta_schedule is scaled_linear, not linear"),
        ({"trained_betas": [0.1] * 1000}, r"trained_betas is \[0.1, 0.1.{0,60}, not None"),
        ({"num_train_timesteps": 500}, "num_train_timesteps is 500, not 1000"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr is True, not False"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "prediction_type is flow_prediction"),
        ({"prediction_type": "sample"}, "prediction type 'sample' is not supported"),
    ],
)
def test_a_stage_that_learned_another_noise_is_refused(
    family: Path, changes: dict[str, object], said: str
) -> None:
    """It would take what the others hand it for something else."""
    noise_of(family, "device", **changes)
    card = load_card(family)
    with pytest.raises(ConfigError, match=said):
        card.check_noise("device")
    with pytest.raises(ConfigError, match=said):
        load_family(card, "device")
    assert load_family(card, "edge").stage == "edge"


@pytest.mark.parametrize(
    "changes",
    [
        {"timestep_spacing": "leading", "steps_offset": 1},
        {"_class_name": "EulerDiscreteScheduler"},
        {"use_karras_sigmas": True},
        {"trained_betas": None, "rescale_betas_zero_snr": False},
    ],
)
def test_how_a_stage_would_choose_its_levels_does_not_matter(
    family: Path, changes: dict[str, object]
) -> None:
    """They are chosen once, by the family's config, and travel; the result is the family's."""
    expected = load_family(load_card(family), "device").schedule("ddim", 6, 16, 16)
    noise_of(family, "device", **changes)
    assert load_family(load_card(family), "device").schedule("ddim", 6, 16, 16) == expected


def test_flows_of_other_shifts_share_a_trajectory(tmp_path: Path) -> None:
    family = tiny.make_family(tmp_path, "flow")
    noise_of(family, "device", shift=1.0, use_dynamic_shifting=False)
    load_card(family).check_noise("device")
    noise_of(family, "device", num_train_timesteps=100)
    with pytest.raises(ConfigError, match="num_train_timesteps is 100, not 1000"):
        load_card(family).check_noise("device")


def test_what_a_config_leaves_out_is_what_diffusers_takes(family: Path) -> None:
    for stage in ("device", "cloud"):
        config = family / stage / "scheduler" / "scheduler_config.json"
        kept = {"prediction_type": "v_prediction", "beta_schedule": "linear"}
        if stage == "device":
            config.write_text(json.dumps(kept))
        load_card(family).check_noise("device")


# ---------------------------------------------------------------------------- as shipped

SHIPPED = sorted((Path(__file__).parents[2] / "stage_models").glob("*/family.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parent.name)
def test_a_shipped_card_agrees_with_itself(path: Path) -> None:
    card = load_card(path.parent)
    assert card.name == path.parent.name
    assert card.sizes.allows(card.defaults.size, card.defaults.size)
    assert card.defaults.solver in SOLVERS
    millions = [stage.parameters_millions or 0 for stage in card.stages.values()]
    assert millions == sorted(millions)
    assert all(millions)
    assert list(card.stages)[-1] == card.reference == "cloud"
    assert all(name == stage.tier for name, stage in card.stages.items())
    multiple = card.factor * {"flux": 2, "sd3": 2}.get(card.architecture, 1)
    assert not card.sizes.squares or not card.defaults.size % multiple
    assert bool(card.sizes.squares) or card.sizes.multiple_of % multiple == 0
    flow = card.architecture in ("flux", "sd3")
    assert card.defaults.solver.startswith("flow-") is flow


def test_all_families_of_the_hub_are_shipped() -> None:
    assert [path.parent.name for path in SHIPPED] == ["flux", "sd15", "sd35", "sdxl", "shapes"]


def test_halves_are_for_gpus() -> None:
    half = StageCard(tier="cloud", folder="cloud", dtype="float16")
    assert (half.dtype_on("cpu"), half.dtype_on("cuda")) == ("float32", "float16")
    assert StageCard(tier="edge", folder="edge", dtype="bfloat16").dtype_on("cpu") == "bfloat16"


@pytest.mark.parametrize(
    ("size", "shape"),
    [((64, 64), (4, 128, 128)), ((128, 128), (4, 256, 256)), ((64, 96), (4, 192, 128))],
)
def test_packets_are_charged_as_of_a_picture_in_the_same_proportion_to_the_default(
    size: tuple[int, int], shape: tuple[int, int, int]
) -> None:
    shapes = load_card(REPOSITORY / "stage_models" / "shapes")
    charged = charged_shape(shapes, settings(emulate={"packet_bytes": "sdxl"}))
    assert charged is not None
    assert charged(*size) == shape
    own = charged_shape(shapes, settings(emulate={"packet_bytes": "shapes"}))
    assert own is not None
    assert own(*size) == shapes.latent_shape(*size)
    assert charged_shape(shapes, settings()) is None
