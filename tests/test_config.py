from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nni_cssnas.config import (
    PRESETS,
    CellSpaceConfig,
    ConstraintsConfig,
    ContrastiveConfig,
    ImagesConfig,
    ProxyConfig,
    ScreenConfig,
    ViewsConfig,
)
from nni_cssnas.errors import ConfigError, ImagesError
from nni_cssnas.images.sources import load_images


def test_presets_are_valid_and_fill_only_what_is_left_out() -> None:
    for name in PRESETS:
        ProxyConfig(preset=name)
    config = ProxyConfig(preset="paper", contrastive={"epochs": 1})
    assert config.contrastive.epochs == 1
    assert config.contrastive.temperature == 0.07
    assert config.contrastive.loss == "pirl"


def test_paper_preset_holds_the_reference_values() -> None:
    config = ProxyConfig(preset="paper")
    training = config.contrastive
    assert (training.lr, training.momentum, training.batch_size) == (1e-3, 0.9, 256)
    assert (training.temperature, training.pirl_momentum, training.pirl_weight) == (0.07, 0.5, 0.5)
    assert (training.projection_hidden, training.projection_dim) == (512, 256)
    assert config.scored_space.arguments["channels"] == 32
    assert config.scored_space.arguments["num_cells"] == 8


def test_views_default_to_lightly() -> None:
    import inspect

    from lightly.transforms import SimCLRTransform

    own = ViewsConfig().model_dump(exclude={"backend", "input_size"})
    signature = inspect.signature(SimCLRTransform).parameters
    others = ("input_size", "normalize", "kernel_size")  # kernel_size: deprecated, and gone in lightly 1.6
    theirs = {name: item.default for name, item in signature.items() if name not in others}
    assert own == theirs


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"preset": "cpuu"}, "preset is 'cpuu'; did you mean 'cpu'"),
        ({"sed": 1}, "unknown key 'sed'; did you mean 'seed'"),
        ({"contrastive": {"epocs": 1}}, "unknown key 'epocs'; did you mean 'epochs'"),
        ({"contrastive": {"criterion": "los"}}, "did you mean 'loss'"),
        ({"contrastive": {"temperature": 0}}, "temperature is 0"),
        ({"contrastive": {"batch_size": 1}}, "batch_size is 1"),
        ({"contrastive": {"lr": float("nan")}}, "lr is nan"),
        ({"contrastive": {"criterion": "held_out", "held_out": 0}}, "held_out is 0"),
        ({"contrastive": {"criterion": "drop", "epochs": 1}}, "at least 2 epochs"),
        ({"space": {"arguments": {"encoding": "two_input"}}}, "did you mean 'two-input'"),
        ({"space": {"arguments": {"operations": ["sep_conv_3x4"]}}}, "did you mean 'sep_conv_3x3'"),
        ({"space": {"arguments": {"chanels": 8}}}, "did you mean 'channels'"),
        ({"space": {"arguments": {"operations": ["none", "skip_connect"]}}}, "use encoding 'edge'"),
        ({"space": {"name": "CellSpace"}}, "module:attribute"),
        ({"views": {"backend": "lightli"}}, "did you mean 'lightly'"),
        ({"views": {"sigmas": [2.0, 0.1]}}, "sigmas"),
        ({"images": {"num_images": 10, "fraction": 0.5}}, "keep one of them"),
        ({"images": {"num_images": 10, "max_images": 5}}, "num_images is 10 but max_images is 5"),
        ({"device": "gpu"}, "device is 'gpu'"),
        ({"space": {"name": "../../x:y"}}, r"name '../../x:y' is not of the form 'module:attribute'"),
        ({"space": {"name": "a:b:c"}}, "is not of the form"),
        ({"space": {"name": "a..b:c"}}, "is not of the form"),
        ({"space": {"name": "a\0b:c"}}, r"'a\\x00b:c' is not of the form"),
        ({"images": {"source": "a\0b"}}, "images: source: it holds characters that no name of a file has"),
        ({"images": {"root": "a\0b"}}, "images: root: it holds characters"),
        ({"self": 1}, "unknown key 'self'"),
        ({"space": {"arguments": {"self": 1}}}, "unknown key 'self'"),
        ({"seed": 10**5000}, "seed is a int of very many digits|seed is "),
    ],
)
def test_wrong_settings_name_field_value_and_remedy(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ProxyConfig(**values)


@pytest.mark.parametrize(
    ("key", "sane", "slip"),
    [
        ("seed", 2**63 - 1, 10**26),
        ("threads", 256, 10**9),
        ("space.arguments.num_cells", 60, 10**6),
        ("space.arguments.channels", 1024, 10**8),
        ("space.arguments.params", 10**9, 10**15),
        ("space.arguments.num_classes", 22_000, 10**9),
        ("images.size", 1024, 100_000),
        ("images.num_images", 10**7, 10**15),
        ("images.max_images", 10**7, 10**15),
        ("images.seed", 2**40, 10**26),
        ("images.resident_gb", 2000, 1e300),
        ("views.input_size", 1024, 100_000),
        ("views.cj_strength", 1.5, 1e9),
        ("views.cj_bright", 2, 1e9),
        ("views.cj_contrast", 2, 1e9),
        ("views.cj_sat", 2, 1e9),
        ("views.rr_degrees", 180, 1e9),
        ("views.rr_degrees", [-90, 90], [0, 1e9]),
        ("views.sigmas", [0.1, 10], [0.1, 1e9]),
        ("untrained.batch_size", 4096, 10**9),
        ("untrained.criterion_weight", 100, 1e300),
        ("untrained.weights", {"naswot": 100}, {"naswot": 1e300}),
        ("contrastive.epochs", 1000, 10**9),
        ("contrastive.steps", 10**6, 10**15),
        ("contrastive.batch_size", 8192, 10**9),
        ("contrastive.weight_decay", 1, 1e9),
        ("contrastive.warmup_epochs", 100, 1e9),
        ("contrastive.temperature", 10, 1e300),
        ("contrastive.memory_bank_size", 2**20, 10**12),
        ("contrastive.projection_hidden", 8192, 10**9),
        ("contrastive.projection_dim", 8192, 10**9),
    ],
)
def test_a_slip_of_the_size_is_refused_and_a_large_value_is_not(key: str, sane: Any, slip: Any) -> None:
    def nested(value: Any) -> dict[str, Any]:
        for part in reversed(key.split(".")):
            value = {part: value}
        return value

    ProxyConfig(**nested(sane))
    with pytest.raises(ConfigError, match=key.split(".")[-1]) as error:
        ProxyConfig(**nested(slip))
    assert "\n" not in str(error.value)


def test_every_number_has_bounds() -> None:
    def numbers(schema: Any, where: str) -> Iterator[str]:
        if isinstance(schema, dict):
            bounded = "enum" in schema or "maximum" in schema or "exclusiveMaximum" in schema
            if schema.get("type") in ("integer", "number") and not bounded:
                yield where
            for key, value in schema.items():
                # ViewsConfig itself checks sigmas, and a loss that diverges is said.
                if key not in ("sigmas", "lr"):
                    yield from numbers(value, f"{where}.{key}")
        elif isinstance(schema, list):
            for value in schema:
                yield from numbers(value, where)

    for section in (ProxyConfig, CellSpaceConfig, ScreenConfig, ConstraintsConfig):
        assert not list(numbers(section.model_json_schema(), section.__name__))


def test_a_preset_gives_a_cap_and_the_user_the_number() -> None:
    assert ProxyConfig().images.max_images == 576
    for own in ({"fraction": 0.2}, {"num_images": 1000}, {"num_images": None}):
        for images in (own, ImagesConfig(**own)):
            found = ProxyConfig(preset="cpu", images=images).images
            assert (found.max_images, found.num_images) == (None, own.get("num_images"))
            assert found.fraction == own.get("fraction")
    assert ProxyConfig(images={"source": "photos", "size": 64}).images.max_images == 576
    assert ProxyConfig(images={"max_images": None}).images.max_images is None
    assert ProxyConfig(images={"max_images": 9, "fraction": 0.5}).images.max_images == 9
    assert PRESETS["cpu"]["images"] == {"max_images": 576}


def test_every_proxy_of_the_examples_and_the_readme_is_valid(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    examples = sorted(root.glob("experiments/*/proxy.yml"))
    assert len(examples) >= 5
    for path in examples:
        ProxyConfig.load(path)
    blocks = re.findall(r"```yaml\n(.*?)```", (root / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    proxies = [block for block in blocks if re.search(r"^(preset|score):", block, re.MULTILINE)]
    assert proxies
    for block in proxies:
        (tmp_path / "proxy.yml").write_text(block, encoding="utf-8")
        ProxyConfig.load(tmp_path / "proxy.yml")


def test_many_mistakes_and_long_values_stay_one_line() -> None:
    deep: Any = []
    for _ in range(50):
        deep = [deep, deep]  # as YAML's aliases give it: 2 ** 50 brackets if it were written out
    for values in (
        {f"key{n}": n for n in range(100)},
        {"seed": deep},
        {"preset": "x" * 10**6},
        {"seed": "a\nb" * 1000},
    ):
        with pytest.raises(ConfigError) as error:
            ProxyConfig(**values)
        assert len(str(error.value)) < 2000
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("budget", [float("nan"), float("inf"), 0, 2.5, "3", 10**9, None])
def test_a_budget_that_is_no_number_of_epochs(budget: Any) -> None:
    with pytest.raises(ConfigError):
        ProxyConfig(score="contrastive").with_epochs(budget)


KEYS = sorted(
    {*ProxyConfig.model_fields, *ImagesConfig.model_fields, *ContrastiveConfig.model_fields, "arguments", "name"}
)
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**30), max_value=10**30)
    | st.floats()
    | st.text(max_size=20)
    | st.dates()
    | st.binary(max_size=5)
    | st.sampled_from(["cpu", "gpu", "paper", "tiles", "nni_cssnas.spaces:CellSpace", "untrained", "drop"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5) | st.integers(), inner, max_size=4)
    ),
    max_leaves=10,
)
MAPPINGS = st.dictionaries(
    st.sampled_from(sorted(ProxyConfig.model_fields)) | st.text(max_size=5),
    ANYTHING | st.dictionaries(st.sampled_from(KEYS), ANYTHING, max_size=4),
    max_size=5,
)


@contextmanager
def one_line_or_none() -> Iterator[list[str]]:
    """Lets ConfigErrors of one line through, and nothing else; gives their messages."""
    refused: list[str] = []
    try:
        yield refused
    except ConfigError as error:
        refused.append(str(error))
    assert all(len(message.splitlines()) == 1 for message in refused)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(MAPPINGS)
def test_any_mapping_is_a_config_or_one_line(values: dict[str, Any]) -> None:
    with one_line_or_none() as refused:
        config = ProxyConfig(**values)
    if not refused:
        # What was accepted is accepted again as it is shown.
        assert ProxyConfig(**config.model_dump()) == config


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(MAPPINGS | st.text(max_size=60) | st.binary(max_size=60))
def test_any_file_is_a_config_or_one_line(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any-proxy.yml"
    if isinstance(content, dict):
        content = yaml.safe_dump(content, allow_unicode=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    with one_line_or_none() as refused:
        ProxyConfig.load(path)
    assert all("any-proxy.yml" in message for message in refused)


def test_file_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere\.yml"):
        ProxyConfig.load(tmp_path / "nowhere.yml")
    path = tmp_path / "proxy.yml"
    path.write_text("a: [")
    with pytest.raises(ConfigError, match="is not YAML"):
        ProxyConfig.load(path)
    path.write_text("- 1")
    with pytest.raises(ConfigError, match="must be a mapping"):
        ProxyConfig.load(path)
    for source in (r'"a\0b"', "~nobody-of-this-name/x", "loop/x", "x" * 5000):
        path.write_text(f"images: {{source: {source}}}")
        (tmp_path / "loop").unlink(missing_ok=True)
        (tmp_path / "loop").symlink_to("loop")
        try:
            config = ProxyConfig.load(path)
        except ConfigError as error:
            assert "images.source" in str(error)  # noqa: PT017
        else:
            with pytest.raises(ImagesError, match="no such folder or file"):
                load_images(config.images)
    path.write_text("sed: 1")
    with pytest.raises(ConfigError, match=r"proxy\.yml: unknown key 'sed'"):
        ProxyConfig.load(path)


def test_relative_image_folder_is_taken_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "proxy.yml"
    path.write_text("images: {source: photos}")
    assert ProxyConfig.load(path).images.source == str(tmp_path / "photos")
    path.write_text("images: {source: tiles}")
    assert ProxyConfig.load(path).images.source == "tiles"


def test_sections_are_frozen() -> None:
    config = ContrastiveConfig(held_out=0.2)
    with pytest.raises(Exception, match="frozen"):
        config.epochs = 3  # type: ignore[misc]


def test_another_space_does_not_get_the_cell_spaces_arguments() -> None:
    config = ProxyConfig(space={"name": "nni.nas.hub.pytorch:NasBench201"})
    assert config.space.arguments == {}


def test_yaml_reads_off_as_false(tmp_path: Path) -> None:
    (tmp_path / "proxy.yml").write_text("contrastive: {amp: off}\n")
    assert ProxyConfig.load(tmp_path / "proxy.yml").contrastive.amp == "off"
    with pytest.raises(ConfigError, match="amp is True"):
        ProxyConfig(contrastive={"amp": True})


def depth(**values: Any) -> object:
    return ProxyConfig(**values).scored_space.arguments["num_cells"]


def test_the_untrained_score_sees_the_depth_of_what_will_be_trained() -> None:
    assert depth() == 20  # DARTS's, for CIFAR-10
    assert depth(target={"num_cells": 14}) == 14
    assert depth(target={"num_cells": 14}, preset="gpu") == 14
    # What is trained in the search is shallower, as the preset says.
    assert depth(target={"num_cells": 14}, score="contrastive") == 5
    assert depth(score="combined", preset="gpu") == 8
    assert depth(score="contrastive", stand_in={"num_cells": 6}) == 6
    # Who names a depth gets it.
    named = {"arguments": {"num_cells": 4}}
    assert depth(space=named, target={"num_cells": 14}) == depth(space=named, score="contrastive") == 4
    # The rest of the space stays, and the setting says no more than its file.
    config = ProxyConfig(space={"arguments": {"num_nodes": 5}}, target={"num_cells": 14})
    assert config.scored_space.arguments == {"num_nodes": 5, "channels": 6, "num_cells": 14}
    trained = ProxyConfig(score="contrastive", untrained={"channels": 4})
    assert trained.scored_space.arguments == {"num_nodes": 4, "channels": 8, "num_cells": 5}
    assert ProxyConfig(untrained={"channels": 4}).scored_space.arguments["channels"] == 4
    sized = ProxyConfig(space={"arguments": {"params": 10**5}}).scored_space.arguments
    assert sized == {"num_nodes": 4, "num_cells": 20, "params": 10**5}
    assert "num_cells" not in config.space.arguments
    again = ProxyConfig(**config.model_dump(exclude_unset=True) | {"score": "contrastive"})
    assert again.scored_space.arguments["num_cells"] == 5


def test_another_space_is_its_own_target() -> None:
    config = ProxyConfig(space={"name": "my_spaces:MySpace", "arguments": {"width": 8}})
    assert config.scored_space == config.space
    for section in ("target", "stand_in"):
        with pytest.raises(ConfigError, match=f"{section} is about networks of cells.*my_spaces:MySpace.*leave it out"):
            ProxyConfig(space={"name": "my_spaces:MySpace"}, **{section: {"num_cells": 8}})


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ({"num_cells": 2}, "target: num_cells is 2"),
        ({"num_cells": 10**6}, "target: num_cells is 1000000"),
        ({"chanels": 3}, "target: unknown key 'chanels'; did you mean 'channels'"),
        ({"stem": "imagenet", "size": 16}, "target.*size is 16, which stem 'imagenet'.*at least 32"),
        ([20], "target is "),
    ],
)
def test_a_target_that_cannot_be_built(target: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ProxyConfig(target=target)
