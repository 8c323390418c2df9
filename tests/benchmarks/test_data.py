"""The files of the benchmarks are made from what their authors publish; small ones of the same form are made here."""

from __future__ import annotations

import gzip
import hashlib
import json
import pickle
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "benchmarks"))

import data
from tables import default_table, nasbench201, nasbench_macro, read_table

from nni_cssnas.errors import ConfigError

ARCHS = [
    "|nor_conv_3x3~0|+|nor_conv_1x1~0|none~1|+|skip_connect~0|avg_pool_3x3~1|nor_conv_3x3~2|",
    "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|",
]


@pytest.fixture
def nni_file(tmp_path: Path) -> Path:
    """What NNI's ``nasbench201/db_gen.py`` writes, of two architectures; the first was trained with two seeds."""
    path = tmp_path / "nb201.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute(
            "CREATE TABLE nb201trialconfig (id INTEGER PRIMARY KEY, arch TEXT, num_epochs INTEGER, num_channels INTEGER, "
            "num_cells INTEGER, dataset TEXT)"
        )
        database.execute(
            "CREATE TABLE nb201trialstats (id INTEGER PRIMARY KEY, config_id INTEGER, seed INTEGER, ori_test_acc REAL, "
            "test_acc REAL, parameters REAL)"
        )
        number = 0
        for arch in ARCHS:
            edges = {label.removeprefix("cell/"): choice for label, choice in nasbench201.to_sample(arch).items()}
            for epochs in (12, 200):
                for index, name in enumerate(("cifar10-valid", "cifar10", "cifar100", "imagenet16-120")):
                    number += 1
                    text = json.dumps(edges, sort_keys=True)
                    row = (number, text, epochs, 16, 5, name)
                    database.execute("INSERT INTO nb201trialconfig VALUES (?, ?, ?, ?, ?, ?)", row)
                    for seed in (777, 888) if arch == ARCHS[0] else (777,):
                        accuracy = epochs / 4 + 10 * (3 - index) + (seed == 888)
                        stats = (number, seed, accuracy, 0.0, 0.0001 * (7 + len(arch)))
                        database.execute(
                            "INSERT INTO nb201trialstats (config_id, seed, ori_test_acc, test_acc, parameters) "
                            "VALUES (?, ?, ?, ?, ?)",
                            stats,
                        )
        database.commit()
    return path


@pytest.fixture
def macro_file(tmp_path: Path) -> Path:
    path = tmp_path / "nas-bench-macro_cifar10.json"
    entry = {"test_acc": [90.0, 91.0, 92.0], "mean_acc": 91.0, "std": 1.0, "params": 1234, "flops": 56789}
    path.write_text(json.dumps({"01201201": entry, "00000000": entry | {"mean_acc": 80.5}}))
    return path


@pytest.fixture
def cifar_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10's own files, of 30 images each; torchvision's check of their sums is told the sums of these."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "root" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [f"data_batch_{index}" for index in range(1, 6)]
    for name in [*names, "test_batch"]:
        content = {"data": rng.integers(0, 256, (30, 3072), dtype=np.uint8), "labels": [n % 10 for n in range(30)]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {n}" for n in range(10)]}))

    def sums(names: list[str]) -> list[list[str]]:
        return [[name, hashlib.md5((folder / name).read_bytes()).hexdigest()] for name in names]

    monkeypatch.setattr(CIFAR10, "train_list", sums(names))
    monkeypatch.setattr(CIFAR10, "test_list", sums(["test_batch"]))
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": sums(["batches.meta"])[0][1]})
    monkeypatch.setattr(data, "CIFAR10_PER_CLASS", {"cifar10_train": 4, "cifar10_test": 2})
    return tmp_path / "root"


def command(tmp_path: Path, *more: object) -> list[str]:
    return [*map(str, more), "--out", str(tmp_path / "out")]


def test_nnis_strings_are_the_tables() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        arch = nasbench201.random_arch(rng)
        edges = {label.removeprefix("cell/"): choice for label, choice in nasbench201.to_sample(arch).items()}
        assert data.arch_of(edges) == arch


def test_the_table_of_nasbench201(tmp_path: Path, nni_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert data.main(command(tmp_path, "nasbench201", "--nasbench201", nni_file)) == 0
    path = tmp_path / "out" / "nasbench201.csv.gz"
    # 200 epochs on cifar10: 200 / 4 + 10 * (3 - 1), and half a percent more where a second seed had one more.
    entries = {entry.arch: entry.accuracy for entry in read_table(path, nasbench201.to_sample)}
    assert entries == {ARCHS[0]: 70.5, ARCHS[1]: 70.0}
    hundred = {entry.arch: entry.accuracy for entry in read_table(path, nasbench201.to_sample, "cifar100_test")}
    assert hundred == {ARCHS[0]: 60.5, ARCHS[1]: 60.0}
    rows = gzip.decompress(path.read_bytes()).decode().splitlines()
    assert rows[0].split(",")[-1] == "params"
    assert {row.rsplit(",", 1)[1] for row in rows[1:]} == {str(100 * (7 + len(arch))) for arch in ARCHS}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    note = json.loads((tmp_path / "out" / "files.json").read_text())
    assert note == {"nasbench201.csv.gz": {"rows": 2, "sha256": digest, "source": "nb201.db"}}
    assert digest in capsys.readouterr().out

    # It is not written again, not even from another file, and its source is not forgotten.
    assert data.main(command(tmp_path, "nasbench201", "--nasbench201", tmp_path / "elsewhere")) == 0
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    assert json.loads((tmp_path / "out" / "files.json").read_text()) == note
    # The same file anywhere gives the same bytes.
    assert data.main(["nasbench201", "--nasbench201", str(nni_file), "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "nasbench201.csv.gz").read_bytes() == path.read_bytes()


def test_the_table_of_macro(tmp_path: Path, macro_file: Path) -> None:
    assert data.main(command(tmp_path, "nasbench_macro", "--macro", macro_file)) == 0
    path = tmp_path / "out" / "nasbench_macro.csv.gz"
    entries = read_table(path, nasbench_macro.to_sample)
    assert [(entry.arch, entry.accuracy) for entry in entries] == [("00000000", 80.5), ("01201201", 91.0)]
    assert gzip.decompress(path.read_bytes()).decode().splitlines()[1] == "00000000,80.5000,1234,56789"


def test_cifar10_has_as_many_images_of_every_class(tmp_path: Path, cifar_root: Path) -> None:
    assert data.main(command(tmp_path, "cifar10", "--root", cifar_root)) == 0
    for name, each in (("cifar10_train", 4), ("cifar10_test", 2)):
        with np.load(tmp_path / "out" / f"{name}.npz") as arrays:
            assert arrays["images"].shape == (10 * each, 32, 32, 3)
            assert np.bincount(arrays["labels"]).tolist() == [each] * 10
            assert arrays["classes"].tolist() == [f"class {n}" for n in range(10)]
    with np.load(tmp_path / "out" / "cifar10_test.npz") as arrays:
        content = pickle.loads((cifar_root / "cifar-10-batches-py" / "test_batch").read_bytes())
        # The file's rows are channel, row, column.
        assert np.array_equal(arrays["images"][0][5, 7], content["data"][0].reshape(3, 32, 32)[:, 5, 7])
    from nni_cssnas.config import ImagesConfig
    from nni_cssnas.images import load_images

    assert len(load_images(ImagesConfig(source=str(tmp_path / "out" / "cifar10_train.npz"), size=32))) == 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nasbench101"], "NAME is 'nasbench101'; it must be one of nasbench201, nasbench_macro, cifar10"),
        (["nasbench201", "--nasbench201", "no.db"], "--nasbench201 is 'no.db', which is no file"),
        (["nasbench201", "--nasbench201", __file__], "is not NNI's file of NAS-Bench-201"),
        (["nasbench201"], "use --download, or name the file with --nasbench201"),
        (["nasbench_macro"], "name it with --macro"),
        (["nasbench_macro", "--macro", __file__], "is not nas-bench-macro_cifar10.json"),
        (["cifar10", "--root", "nowhere"], "use --download, or name another folder with --root"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setenv("NASBENCHMARK_DIR", str(tmp_path / "nni"))
    monkeypatch.chdir(tmp_path)
    assert data.main(command(tmp_path, *arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert len(error.splitlines()) == 1
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_a_damaged_download_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NASBENCHMARK_DIR", str(tmp_path))
    (tmp_path / data.NASBENCH201_FILE).write_bytes(b"half of it")
    assert data.main(command(tmp_path, "nasbench201")) == 2
    error = capsys.readouterr().err
    assert "Invalid hash value" in error
    assert len(error.splitlines()) == 1


def test_a_damaged_table_is_not_taken_for_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "nasbench201.csv.gz").write_bytes(b"half of it")
    assert data.main(command(tmp_path, "nasbench201")) == 2
    assert "delete it and run this again" in capsys.readouterr().err


def test_tables_are_found_only_where_the_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CSSNAS_DATA", raising=False)
    with pytest.raises(ConfigError, match=r"write it with experiments/benchmarks/data\.py, and name it with --table"):
        default_table("nasbench201")
    monkeypatch.setenv("CSSNAS_DATA", str(tmp_path))
    with pytest.raises(ConfigError, match=r"holds neither nasbench201_dev\.csv\.gz nor nasbench201\.csv\.gz"):
        default_table("nasbench201")
    (tmp_path / "nasbench201.csv.gz").touch()
    assert default_table("nasbench201") == tmp_path / "nasbench201.csv.gz"
    (tmp_path / "nasbench201_dev.csv.gz").touch()
    assert default_table("nasbench201") == tmp_path / "nasbench201_dev.csv.gz"


def test_no_file_names_the_folder_beside_the_checkout() -> None:
    root = Path(__file__).resolve().parents[2]
    name = "shared" + "/data"
    texts: list[Any] = [path for part in ("nni_cssnas", "experiments", "tests") for path in (root / part).rglob("*.py")]
    texts += [
        *root.glob("*.md"),
        *root.glob("experiments/*/*.md"),
        *root.glob("experiments/*/*.yml"),
        root / "Makefile",
    ]
    assert len(texts) > 50
    assert [path for path in texts if name in path.read_text(encoding="utf-8")] == []
