from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from nni_cssnas.config import SpaceConfig
from nni_cssnas.errors import GenotypeError, SpaceError
from nni_cssnas.genotype import NAMED_GENOTYPES, Genotype
from nni_cssnas.spaces import make_space, search_space
from nni_cssnas.spaces.architecture import Architecture, read_architecture, set_classifier

NB201 = SpaceConfig(
    name="nni.nas.hub.pytorch:NasBench201", arguments={"stem_out_channels": 8, "num_modules_per_stack": 1}
)


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    choices = search_space(make_space(NB201))
    path = tmp_path / "sample.json"
    path.write_text(json.dumps({label: choice["_value"][3] for label, choice in choices.items()}))
    return path


@pytest.mark.parametrize("form", ["name", "darts", "json", "json file", "darts file", "folder", "experiment"])
def test_every_form_of_a_genotype(form: str, tmp_path: Path) -> None:
    genotype = NAMED_GENOTYPES["CNAS_ISIC_s4"]
    (tmp_path / "best").mkdir()
    for path in (tmp_path / "a.json", tmp_path / "best" / "genotype.json"):
        path.write_text(json.dumps(genotype.to_dict(), indent=1))
    (tmp_path / "a.txt").write_text(genotype.to_darts() + "\n")
    text = {
        "name": "CNAS_ISIC_s4",
        "darts": genotype.to_darts(),
        "json": genotype.to_json(),
        "json file": str(tmp_path / "a.json"),
        "darts file": str(tmp_path / "a.txt"),
        "folder": str(tmp_path / "best"),
        "experiment": str(tmp_path),
    }[form]
    assert read_architecture(text) == Architecture(genotype)


@pytest.mark.parametrize(
    ("name", "millions"), [("DARTS_V2", 3.35), ("PC-DARTS", 3.63)]
)  # as their authors count them, without the auxiliary head
def test_published_parameters(name: str, millions: float) -> None:
    network = read_architecture(name).build(10, num_cells=20, channels=36)
    assert sum(weight.numel() for weight in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.parametrize("num_classes", [0, 7, 10])
def test_a_sample_of_another_space_gets_the_right_classifier(sample: Path, num_classes: int) -> None:
    architecture = read_architecture(space=NB201, sample=sample)
    network = architecture.build(num_classes)
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, num_classes or 32)


def test_a_convolution_as_classifier() -> None:
    network = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU()), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 5, 1), nn.Flatten()
    )
    set_classifier(network, 3, 32, "2")
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 3)


def test_no_classifier(sample: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(SpaceError, match="name it as classifier"):
        set_classifier(network, 3, 32)


def test_wrong_input_is_named(sample: Path, tmp_path: Path) -> None:
    with pytest.raises(GenotypeError, match="--space module:attribute with --sample"):
        read_architecture()
    with pytest.raises(GenotypeError, match="--space module:attribute with --sample"):
        read_architecture("DARTS_V2", space=NB201, sample=sample)
    with pytest.raises(GenotypeError, match="choices of another space, give: --space"):
        read_architecture(str(sample))
    (tmp_path / "empty").mkdir()
    with pytest.raises(GenotypeError, match=r"holds no genotype\.json"):
        read_architecture(str(tmp_path / "empty"))
    with pytest.raises(GenotypeError, match=r"known: .*DARTS_V2"):
        read_architecture("DARTS_V9")
    with pytest.raises(GenotypeError, match=r"cannot read .*absent"):
        read_architecture(space=NB201, sample=tmp_path / "absent.json")
    genotype = tmp_path / "genotype.json"
    genotype.write_text(Genotype.parse("DARTS_V2").to_json())
    with pytest.raises(GenotypeError, match="leave --space and --sample out"):
        read_architecture(space=NB201, sample=genotype)
    with pytest.raises(SpaceError, match="no choice 'cell/0_1'"):
        read_architecture(space="nni_cssnas.spaces:CellSpace", sample=sample)
