"""Tables of latencies: what they predict, from whom they are refused, and the folder for another machine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nni_cssnas.cli import app
from nni_cssnas.config import ConstraintsConfig, ProxyConfig, TargetConfig
from nni_cssnas.errors import ConfigError, CssnasError, ExperimentError
from nni_cssnas.genotype import Genotype
from nni_cssnas.judge.feasibility import Feasibility
from nni_cssnas.judge.latencies import device_name, random_genotypes
from nni_cssnas.results.screening_log import LOG_NAME
from nni_cssnas.scores.latency_table import LatencyTable, table_pieces
from nni_cssnas.scores.onnx_latency import WARMUP, in_turn
from nni_cssnas.spaces import CellSpace
from nni_cssnas.spaces.pieces import pieces

TARGET = TargetConfig(num_cells=6, channels=4)
OPERATIONS = ["skip_connect", "dil_conv_3x3", "max_pool_3x3"]
SETTINGS: dict[str, Any] = {
    "space": {"arguments": {"num_nodes": 4, "num_cells": 3, "channels": 4, "operations": OPERATIONS}},
    "target": {"num_cells": 6, "channels": 4},
    "images": {"source": "tiles", "num_images": 64},
    "untrained": {"batch_size": 8},
    "threads": 1,
    "device": "cpu",
}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "proxy.yml").write_text(json.dumps(SETTINGS))


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def made(*, factor: float = 1.3, device: str | None = None, runtime: str = "torch 2.0") -> LatencyTable:
    """A table of a device on which a layer of side s and c channels takes c + s microseconds above a call's cost, and a network
    ``factor`` times their sum."""
    space = CellSpace(num_nodes=4, operations=OPERATIONS)
    times = {piece: 0.01 + 1e-3 * (piece.c_in + piece.side) for piece in table_pieces(space, TARGET)}
    networks = [(one, factor * true_time(one)) for one in random_genotypes(space, 4, 0)]
    name = device_name(ProxyConfig(**SETTINGS)) if device is None else device
    return LatencyTable(name, runtime, 1, TARGET, times, 0.01, networks)


def true_time(genotype: Genotype) -> float:
    return 0.01 + sum(number * 1e-3 * (piece.c_in + piece.side) for piece, number in pieces(genotype, TARGET).items())


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"num_nodes": 4},
        {"encoding": "edge"},
        {"output_nodes": "last4"},
        {"operations": ["dil_conv_5x5", "skip_connect"]},
    ],
)
def test_a_table_has_every_layer_that_any_network_has(arguments: dict[str, Any], stem: str) -> None:
    space, target = CellSpace(**arguments), TargetConfig(num_cells=7, channels=5, stem=stem)
    known = set(table_pieces(space, target))
    seen: Counter[Any] = Counter()
    for genotype in random_genotypes(space, 40, 0):
        seen.update(pieces(genotype, target))
    assert seen.keys() <= known
    assert known - seen.keys() == set()


def test_a_prediction_is_the_sum_over_the_layers_times_what_networks_tell() -> None:
    table = made()
    space = CellSpace(num_nodes=4, operations=OPERATIONS)
    for genotype in random_genotypes(space, 5, 9):
        assert table.predict(genotype) == pytest.approx(1.3 * true_time(genotype))
    assert table.error == pytest.approx(0)
    (first, ms), *others = table.networks
    wrong = LatencyTable(
        *[getattr(table, name) for name in ("device", "runtime", "threads", "target", "times", "empty")],
        networks=[(first, 3 * ms), *others],
    )
    assert wrong.factor == pytest.approx(1.3)  # one disturbed network does not matter


def test_a_table_is_the_same_after_it_was_written(tmp_path: Path) -> None:
    table = made()
    table.save(tmp_path / "new" / "latency.json")
    assert LatencyTable.load(tmp_path / "new" / "latency.json") == table


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (None, "cannot read"),
        ("nothing", "no table of latencies|JSON|Expecting"),
        ({"kind": "other"}, "it is no table of latencies"),
        ({"pieces": [{"kind": "add"}]}, "'c_in' is missing"),
        ({"empty": {"ms": -1}}, "a time is -1"),
        ({"target": {"num_cells": 1}}, "num_cells is 1"),
    ],
)
def test_what_is_no_table_is_one_line(change: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    if change == "nothing":
        path.write_text("{")
    elif change is not None:
        made().save(path)
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ExperimentError, match=said) as caught:
        LatencyTable.load(path)
    assert "\n" not in str(caught.value)


def test_a_table_of_another_space_network_or_device_is_refused() -> None:
    def use(table: LatencyTable, **changes: Any) -> Feasibility:
        table.save(Path("t.json"))
        return Feasibility(
            ConstraintsConfig(latency=Path("t.json"), max_latency_ms=5), ProxyConfig(**SETTINGS | changes)
        )

    use(made())
    use(made(device="a telephone", runtime="onnxruntime 1.20"))
    with pytest.raises(ExperimentError, match=r"t.json was measured on 'a telephone', and this search computes on"):
        use(made(device="a telephone"))
    with pytest.raises(ExperimentError, match=r"of 6 cells of 4 channels .* this search is for 8 cells of 4 channels"):
        use(made(), target={"num_cells": 8, "channels": 4})
    with pytest.raises(ExperimentError, match=r"has no \w+ with \d+ channels at \d+ pixels: it is of another space"):
        use(made(), space={"arguments": {"num_nodes": 4}})
    with pytest.raises(ConfigError, match=r"a table of latencies is of networks of cells"):
        use(made(), space={"name": "nni.nas.hub.pytorch:NasBench201"}, target=None)


def test_all_are_run_in_turn_and_the_median_counts() -> None:
    calls: list[str] = []
    times = in_turn([lambda: calls.append("a"), lambda: calls.append("b")], 5)
    assert Counter(calls) == {"a": 5 + WARMUP, "b": 5 + WARMUP}
    pairs = [set(calls[at : at + 2]) for at in range(0, len(calls), 2)]
    assert all(pair == {"a", "b"} for pair in pairs)
    assert all(ms > 0 for ms in times)


def test_the_command_measures_and_a_search_uses_it() -> None:
    said = run("latency", "proxy.yml", "--check", "3")
    assert "3 other random networks: median error" in said
    table = LatencyTable.load(Path("latency.json"))
    assert table.target.num_cells == 6
    assert set(table.times) == set(table_pieces(CellSpace(num_nodes=4, operations=OPERATIONS), TARGET))
    with pytest.raises(ExperimentError, match=r"latency.json is there already"):
        run("latency", "proxy.yml")
    limit = max(ms for _, ms in table.networks) * 2
    run(
        "screen",
        "proxy.yml",
        "--num",
        "5",
        "--workers",
        "1",
        "--objective",
        "latency_ms",
        "--max-latency-ms",
        str(limit),
        "--latency",
        "latency.json",
    )
    rows = [json.loads(line) for line in Path("screened", LOG_NAME).read_text().splitlines()]
    assert not any("cost" in row for row in rows)  # nothing was measured
    genotype = Genotype.parse(Path("screened/front-1.json").read_text())
    line = Path("screened/front.csv").read_text().splitlines()[1].split(",")
    assert float(line[2]) == table.predict(genotype)
    with pytest.raises(ConfigError, match=r"--latency is 'latency.json', which only --max-latency-ms and"):
        run("screen", "proxy.yml", "--latency", "latency.json")


@pytest.mark.slow
def test_a_folder_for_another_machine_measures_without_this_package(tmp_path: Path) -> None:
    run("latency", "proxy.yml", "--script", "kit")
    with pytest.raises(CssnasError, match=r"kit is there already; name a new folder"):
        run("latency", "proxy.yml", "--script", "kit")
    with pytest.raises(ExperimentError, match=r"nothing is measured in it yet; run measure.py beside it"):
        LatencyTable.load(Path("kit/plan.json"))
    # Without the environment's packages path for this package: only numpy and onnxruntime are imported.
    ask = "import runpy, sys; sys.argv = ['measure.py', '--passes', '3']; sys.modules['torch'] = sys.modules['nni_cssnas'] = None"
    command = [sys.executable, "-c", f"{ask}; runpy.run_path('kit/measure.py', run_name='__main__')"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "networks on" in done.stdout, done.stderr
    table = LatencyTable.load(Path("kit/latency.json"))
    assert table.runtime.startswith("onnxruntime")
    assert table.error is not None
    run(
        "screen",
        "proxy.yml",
        "--num",
        "3",
        "--workers",
        "1",
        "--objective",
        "latency_ms",
        "--latency",
        "kit/latency.json",
    )
