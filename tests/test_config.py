"""The Serve config file: strict, and still a file that Ray takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise, permutations
from pathlib import Path

import pytest
import yaml

from diffusion_edge.config import Settings, load_config, read_settings
from diffusion_edge.emulation import EmulatePackets, emulated_links, followed
from diffusion_edge.errors import ConfigError
from diffusion_edge.families.card import load_card
from diffusion_edge.places import REPOSITORY, trace_file
from diffusion_edge.traces import read_rates
from diffusion_edge.view import Link

CONFIGS = REPOSITORY / "serve_configs"
EMULATED = REPOSITORY / "tests" / "emulated.yaml"
SHIPPED = sorted(path.name for path in CONFIGS.glob("*.yaml"))
BLOCKS = {"device": 1 / 16, "edge": 4 / 16, "cloud": 1.0}
"""Parameters of the blocks of the family's denoisers, relative to the cloud's."""
Edit = Callable[[str, str], Path]


@pytest.fixture
def edited(tmp_path: Path) -> Edit:
    """A file that emulates three stages, with one piece of text replaced."""

    def edit(old: str, new: str) -> Path:
        text = EMULATED.read_text()
        assert old in text
        path = tmp_path / "edited.yaml"
        path.write_text(text.replace(old, new, 1))
        return path

    return edit


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_are_accepted_by_us_and_by_ray(name: str) -> None:
    schema = pytest.importorskip("ray.serve.schema")
    settings = load_config(CONFIGS / name).settings
    assert list(settings.stages) == ([] if name == "machine.yaml" else ["device", "edge", "cloud"])
    accepted = schema.ServeDeploySchema.model_validate(yaml.safe_load((CONFIGS / name).read_text()))
    assert read_settings(accepted.applications[0].args) == settings


def test_only_the_local_file_emulates() -> None:
    assert [n for n in SHIPPED if load_config(CONFIGS / n).settings.emulates] == ["local.yaml"]


def test_what_the_local_file_states_keeps_to_published_ratios() -> None:
    """Of one and the same model, cloud to edge to device: 1 : 2 to 3 : 7 to 20; twice as many
    pictures a second in the cloud's best batch."""
    settings = load_config(CONFIGS / "local.yaml").settings
    stated = {name: stage.emulate for name, stage in settings.stages.items()}
    curves = {name: emulate.curve for name, emulate in stated.items() if emulate}
    same = {name: curves[name][1] / share for name, share in BLOCKS.items()}
    assert 1.8 <= same["edge"] / same["cloud"] <= 3
    assert 7 <= same["device"] / same["cloud"] <= 20.5
    assert [name for name, curve in curves.items() if len(curve) > 1] == ["cloud"]
    assert 8 * curves["cloud"][1] / curves["cloud"][8] == pytest.approx(2.0)
    for link in settings.links:
        if link.trace is not None:
            recorded = read_rates(trace_file(link.trace)).mean
            assert link.bytes_per_s == pytest.approx(recorded, rel=0.01)
    assert {pair for link in settings.links if link.trace for pair in link.between} == set(stated)


@pytest.mark.parametrize(
    ("old", "new", "key", "right"),
    [
        ("capacity: 32", "capcity: 32", "applications[0].args.stages.phone.capcity", "'capacity'"),
        ("step_s: 0.12", "steps: 0.12", "stages.phone.emulate.steps", "'step_s'"),
        ("port: 8000", "prot: 8000", "http_options.prot", "'port'"),
        ("proxy_location:", "proxy_locaton:", "proxy_locaton", "'proxy_location'"),
        ("delay_s: 0.005", "delays: 0.005", "links[0].delays", "'delay_s'"),
        ("policy: elastic", "zzzz: elastic", "args.zzzz", "known are defaults, drain_timeout_s"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_right_one(
    edited: Edit, old: str, new: str, key: str, right: str
) -> None:
    path = edited(old, new)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert caught.value.file == str(path)
    assert caught.value.key.endswith(key)
    assert str(path) in caught.value.message
    assert "unknown key" in caught.value.message
    assert right in caught.value.message


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("step_s: 0.12", "step_s: -1", "line 27: applications[0].args.stages.phone.emulate"),
        ("6250000.0", "6.25e6", "YAML reads this as text, write 6250000.0"),
        ("tier: edge", "tier: egde", "did you mean 'edge'?"),
        ("[phone, tower]", "[phone, towr]", "there is no stage 'towr'; did you mean 'tower'?"),
        ("[phone, tower]", "[tower, tower]", "a link joins two different stages"),
        ("[phone, hall]", "[hall, tower]", "these two stages have a link already"),
        ("        tower:\n", "        phone:\n", "this key stands twice"),
        ("device: 0.0, ", "", "no price for 'device', the tier of the stage 'phone'"),
        ("        tower:\n", "        Tower one:\n", "should match pattern"),
        ("policy: elastic", "plan: hall", "args.plan: 'hall' in plan 'hall' is not stage:steps"),
        ("policy: elastic", "plan: hal:4", "no stage 'hal'; did you mean 'hall'?"),
        ("app:build", "app:bild", "not one of diffusion_edge.serve.app:build"),
        ("placement_timeout_s: 60.0", "placement_timeout_s: 90.0", "less than or equal to 60"),
        ("port: 8000", "port: eight", "not 'eight'"),
        ("model: edge\n", "model: edge\n          dtype: fp16\n", "bfloat16, float16"),
        (
            "model: edge\n",
            "model: edge\n          execution: openvio\n",
            "'openvio' is not one of auto, eager",
        ),
        (
            "model: edge\n",
            "model: edge\n          precision: rough\n",
            "'rough' is not one of exact",
        ),
        (
            "model: edge\n",
            "model: edge\n          execution: openvino\n          precision: exact\n",
            "'openvino' rounds otherwise; precision: exact is for eager",
        ),
        (
            "model: edge\n",
            "model: edge\n          dtype: bfloat16\n          precision: exact\n",
            "precision: exact is for float32, and dtype is bfloat16",
        ),
        ("model: edge\n", "model: edge\n          device: gpu\n", "should match pattern"),
        ("model: edge\n", "model: edge\n          device: cuda\n", "'cuda' needs a share"),
        ("model: edge\n", "model: edge\n          offload: true\n", "offload needs a share"),
        ("model: edge\n", "model: edge\n          num_gpus: -1.0\n", "greater than or equal to 0"),
        (
            "model: edge\n",
            "model: edge\n          num_gpus: 1.5\n",
            "tower.num_gpus: 1.5 is neither",
        ),
        ("      stages:\n", "      stages: {}\n      stage:\n", "did you mean 'stages'"),
        ("route_prefix: /", "route_prefix: [/", "not YAML"),
        ("      family: stage_models/shapes\n", "", "args.family: this key is missing"),
    ],
)
def test_a_wrong_value_says_where_and_what_would_be_right(
    edited: Edit, old: str, new: str, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(edited(old, new))
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("stated", "key", "said"),
    [
        ("{1: 0.1, 4: -0.2}", "step_s[4]", "seconds should be 0 or more and finite, not -0.2"),
        ("{1: 0.1, 4: .inf}", "step_s[4]", "finite, not inf"),
        ("{1: 0.1, 4: true}", "step_s[4]", "a number of seconds, not True"),
        ("{1: 0.1, 4: 1e3}", "step_s[4]", "YAML reads this as text, write 1000.0"),
        ("{1: 0.1, 0: 0.1}", "step_s[0]", "whole numbers from 1 to 1024, not 0"),
        ("{1: 0.1, 2.5: 0.1}", "step_s.2.5", "whole numbers from 1 to 1024, not 2.5"),
        ("{1: 0.1, two: 0.1}", "step_s.two", "whole numbers from 1 to 1024, not 'two'"),
        ("{1: 0.1, 9999: 0.1}", "step_s[9999]", "from 1 to 1024"),
        ("{1: 0.1, 4: 0.3, 8: 0.2}", "step_s[8]", "cannot take less than 4, which take 0.3 s"),
        ("{}", "step_s", "the seconds of 1 row are missing"),
        ("{2: 0.1}", "step_s", "right is a number, or seconds by rows such as {1: 0.08"),
        ("[0.1]", "step_s", "a number of seconds, not [0.1]"),
        ("true", "step_s", "a number of seconds, not True"),
    ],
)
def test_seconds_by_rows_are_checked(edited: Edit, stated: str, key: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(edited("step_s: 0.12", f"step_s: {stated}"))
    assert caught.value.key.endswith(f"stages.phone.emulate.{key}")
    assert said in caught.value.message


def test_seconds_of_a_step_are_a_number_or_by_rows_also_as_json_has_them(edited: Edit) -> None:
    """`serve deploy` sends the file as JSON, in which rows are text."""
    path = edited("step_s: 0.12", "step_s: {4: 0.2, 1: 0.1, 8: 0.2}")
    settings = load_config(path).settings
    by_rows, number = settings.stages["phone"].emulate, settings.stages["tower"].emulate
    assert by_rows is not None
    assert number is not None
    assert by_rows.curve == {1: 0.1, 4: 0.2, 8: 0.2}
    assert number.curve == {1: number.step_s}
    args = yaml.safe_load(path.read_text())["applications"][0]["args"]
    assert read_settings(json.loads(json.dumps(args))) == settings
    assert read_settings(settings.model_dump(exclude_unset=True)) == settings


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "missing.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "keys with values are to stand here: applications, http_options, "),
        ("- 1", "are to stand here: applications, http_options, logging_config, proxy_location; "),
        ("http_options: 8000", "line 1: http_options: keys with values are to stand here: host, "),
        ("a: 1\nb: [", "line 2: not YAML: while parsing a flow node: expected the node content"),
    ],
    ids=["nothing", "a list", "a number where keys belong", "half a list"],
)
def test_a_file_of_another_kind(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert caught.value.message.startswith(str(path))
    assert said in caught.value.message


def test_how_a_model_is_held(edited: Edit) -> None:
    held = ("dtype: bfloat16", "device: cuda:1", "offload: true", "num_gpus: 0.5", "kernels: off")
    lines = "".join(f"          {item}\n" for item in held)
    stage = load_config(edited("model: edge\n", f"model: edge\n{lines}")).settings.stages["tower"]
    assert (stage.dtype, stage.device, stage.offload) == ("bfloat16", "cuda:1", True)
    assert stage.kernels == "off"
    assert stage.num_gpus == 0.5


def test_stages_may_be_left_out_but_not_for_links(edited: Edit) -> None:
    text = EMULATED.read_text()
    start, stop = text.index("      stages:\n"), text.index("      links:\n")
    settings = load_config(edited(text[start:], "")).settings
    assert settings.stages == {}
    with pytest.raises(ConfigError, match=r"args\.links: links join stages of this file"):
        load_config(edited(text[start:stop], ""))


def test_links_hold_in_both_directions() -> None:
    settings = load_config(EMULATED).settings
    links = settings.link_map()
    assert links[("phone", "hall")] == links[("hall", "phone")] == Link(2500000.0, 0.025)
    assert set(emulated_links(settings.links, "tower")) == {"phone", "hall"}
    assert emulated_links(load_config(CONFIGS / "lan.yaml").settings.links, "edge") == {}


def test_without_links_any_two_stages_have_one_of_which_nothing_is_stated(edited: Edit) -> None:
    text = EMULATED.read_text()
    settings = load_config(edited(text[text.index("      links:\n") :], "")).settings
    pairs = permutations(("phone", "tower", "hall"), 2)
    assert settings.first_guesses() == dict.fromkeys(pairs)
    shipped = permutations(("device", "edge", "cloud"), 2)
    assert load_config(CONFIGS / "lan.yaml").settings.first_guesses() == dict.fromkeys(shipped)


def test_of_stated_links_only_those_are_there(edited: Edit) -> None:
    (third,) = [line for line in EMULATED.read_text().splitlines() if "[phone, hall]" in line]
    settings = load_config(edited(third, "")).settings
    assert set(settings.first_guesses()) == {
        ("phone", "tower"),
        ("tower", "phone"),
        ("tower", "hall"),
        ("hall", "tower"),
    }
    assert settings.first_guesses() == settings.link_map()


@pytest.mark.parametrize(
    ("more", "key", "said"),
    [
        ("emulate: {packet_bytes: sdxl}", "emulate", "none is emulated"),
        ("measure_links: false", "measure_links", "all are measured"),
    ],
)
def test_what_needs_links_is_refused_without(edited: Edit, more: str, key: str, said: str) -> None:
    text = EMULATED.read_text()
    load_config(edited("      links:\n", f"      {more}\n      links:\n"))
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(edited(text[text.index("      links:\n") :], f"      {more}\n"))
    assert caught.value.key.endswith(f"args.{key}")


@pytest.mark.parametrize(
    ("stage", "link", "told"),
    [(False, False, False), (True, False, True), (False, True, True), (True, True, True)],
)
def test_one_stated_figure_of_a_stage_or_a_link_makes_it_an_emulation(
    stage: bool, link: bool, told: bool
) -> None:
    cloud = {"tier": "cloud", "model": "cloud"}
    stated = cloud | ({"emulate": {"step_s": 0.1}} if stage else {})
    settings = Settings.model_validate(
        {
            "family": "shapes",
            "stages": {"one": cloud, "other": stated},
            "links": [{"between": ["one", "other"], "bytes_per_s": 1e6, "emulate": link}],
        }
    )
    assert settings.emulates is told


def test_an_emulated_link_may_follow_a_trace(edited: Edit) -> None:
    of_a_link = "delay_s: 0.005, emulate: true"
    settings = load_config(edited(of_a_link, f"{of_a_link}, trace: some.csv")).settings
    assert followed(settings.links, "phone") == {"tower": ("some.csv", False)}
    assert followed(settings.links, "tower") == {"phone": ("some.csv", True)}
    assert followed(settings.links, "hall") == {}
    with pytest.raises(ConfigError, match="only an emulated link can follow a trace") as caught:
        load_config(edited(of_a_link, "delay_s: 0.005, trace: some.csv"))
    assert caught.value.key.endswith("links[0].trace")


def test_packets_are_counted_in_anothers_bytes_only_where_every_link_is_emulated(
    edited: Edit,
) -> None:
    stated = "policy: elastic\n      emulate: {packet_bytes: sdxl}"
    settings = load_config(edited("policy: elastic", stated)).settings
    assert settings.emulate is not None
    assert settings.emulate.packet_bytes == "sdxl"
    path = edited("policy: elastic", stated)
    path.write_text(path.read_text().replace("delay_s: 0.02, emulate: true", "delay_s: 0.02"))
    with pytest.raises(ConfigError, match=r"links\[1\] is not; give it `emulate: true`") as caught:
        load_config(path)
    assert caught.value.key.endswith("args.emulate.packet_bytes")
    text = path.read_text()
    path.write_text(text[: text.index("      stages:\n")])
    with pytest.raises(ConfigError, match=r"args\.emulate: without stages"):
        load_config(path)


def test_bytes_that_are_stated_make_it_an_emulation() -> None:
    stages = {"one": {"tier": "cloud", "model": "cloud"}}
    made = Settings.model_validate({"family": "shapes", "stages": stages})
    assert not made.emulates
    assert made.model_copy(update={"emulate": EmulatePackets(packet_bytes="sdxl")}).emulates


@pytest.mark.parametrize(
    ("plan", "told"), [("hall:8,towr:4", "did you mean 'tower'"), ("hall", "is not stage:steps")]
)
def test_a_fixed_plan_names_stages_of_this_file(edited: Edit, plan: str, told: str) -> None:
    right = edited("policy: elastic", "policy: fixed\n      plan: hall:8,tower:12")
    assert load_config(right).settings.plan == "hall:8,tower:12"
    wrong = edited("policy: elastic", f"policy: fixed\n      plan: {plan}")
    with pytest.raises(ConfigError, match=told) as caught:
        load_config(wrong)
    assert caught.value.key.endswith("plan")


ODD = {
    "an alias within itself": "a: &a [*a]",
    "a mapping within itself": "&a {applications: *a}",
    "a merge of itself": "&a\n<<: *a\n",
    "aliases of aliases": "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghij")),
    "lists in lists": "[" * 5000 + "]" * 5000,
    "a date that is none": "a: 2020-99-99",
    "a number of 5000 digits": "a: " + "9" * 5000,
    "a number that is none": "a: !!float abc",
    "a list as a key": "? [a]\n: 1",
    "a call": "a: !!python/object/apply:os.system [ls]",
    "a megabyte": f"a: '{'x' * 1_000_000}'",
    "two documents": "a: 1\n---\nb: 2",
    "bytes that are no text": "\xff",
}


@pytest.mark.parametrize("name", ODD)
def test_odd_yaml_is_told_in_a_sentence(tmp_path: Path, name: str) -> None:
    """In a config and in a family's card, and at once."""
    (tmp_path / "family.yaml").write_bytes(ODD[name].encode("latin-1"))
    for load, path in ((load_config, tmp_path / "family.yaml"), (load_card, tmp_path)):
        with pytest.raises(ConfigError) as told:
            load(path)
        assert "family.yaml" in told.value.message
        assert len(told.value.message) < 1000


def test_aliases_may_be_used(edited: Edit) -> None:
    path = edited("tier: device", "tier: &tier device")
    path.write_text(path.read_text().replace("model: device", "model: *tier", 1))
    assert load_config(path).settings == load_config(EMULATED).settings


def test_a_value_is_shown_as_far_as_it_helps(edited: Edit) -> None:
    with pytest.raises(ConfigError) as told:
        load_config(edited("step_s: 0.12", f"step_s: [{'0, ' * 10_000}]"))
    assert len(told.value.message) < 600
