from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nni_cssnas.config import PRESETS, ContrastiveConfig, ProxyConfig, ViewsConfig
from nni_cssnas.errors import ConfigError


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
    assert config.space.arguments["channels"] == 32
    assert config.space.arguments["num_cells"] == 8


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
        ({"device": "gpu"}, "device is 'gpu'"),
    ],
)
def test_wrong_settings_name_field_value_and_remedy(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ProxyConfig(**values)


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
