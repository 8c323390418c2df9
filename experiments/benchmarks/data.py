#!/usr/bin/env python3
"""Make the files that the benchmarks need: tables of known accuracies, and CIFAR-10 as ``.npz``.

    python experiments/benchmarks/data.py --download --macro nas-bench-macro_cifar10.json

writes into ``--out`` (default: ``$CSSNAS_DATA``, or the folder ``data``)

nasbench201     ``nasbench201.csv.gz`` from NNI's copy of NAS-Bench-201, which ``--download`` fetches as
                ``nni.nas.benchmark.download_benchmark`` does (1.5 GB), or from the file that ``--nasbench201`` names
nasbench_macro  ``nasbench_macro.csv.gz`` from the ``nas-bench-macro_cifar10.json`` of github.com/xiusu/NAS-Bench-Macro
cifar10         ``cifar10_train.npz`` and ``cifar10_test.npz``: the first 1,000 and 200 images of every class of torchvision's
                CIFAR-10, which ``--download`` fetches into ``--root`` (170 MB)

and ``files.json``, which says of every file how many rows or images it has, its sha256 and what it was made of. A file that
is there already is kept.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import io
import json
import os
import sqlite3
import sys
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from nni.common.blob_utils import NNI_BLOB, load_or_download_file, nni_cache_home

from nni_cssnas.base.files import replacing, write_atomically
from nni_cssnas.errors import ConfigError, CssnasError

NASBENCH201_FILE = "nasbench201-b2b60732.db"
"""NNI's name of its copy; the end of the name is the start of its sha256, which NNI checks."""

NASBENCH201_ROWS = """
    SELECT c.arch, AVG(s.ori_test_acc) AS accuracy, s.parameters
    FROM nb201trialconfig AS c JOIN nb201trialstats AS s ON s.config_id = c.id
    WHERE c.num_epochs = 200 AND c.dataset = ? GROUP BY c.id
"""
"""Test accuracy after 200 epochs, the mean over seeds (``nni.nas.benchmark.nasbench201.schema``)."""

NASBENCH201_COLUMNS = {
    "cifar10_test": "cifar10",
    "cifar100_test": "cifar100",
    "imagenet16_test": "imagenet16-120",
}
"""Columns of the table, and the file's names of the data sets."""

CIFAR10_PER_CLASS = {"cifar10_train": 1000, "cifar10_test": 200}


# ---- NAS-Bench-201 --------------------------------------------------------------------------------------


def nasbench201_rows(path: Path) -> list[dict[str, object]]:
    """A row for each architecture of NNI's SQLite file: accuracies in percent, and parameters.

    Raises
    ------
    ConfigError
        If it is no such file.
    """
    rows: dict[str, dict[str, object]] = {}
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            for column, name in NASBENCH201_COLUMNS.items():
                for arch, accuracy, millions in database.execute(NASBENCH201_ROWS, (name,)):
                    row = rows.setdefault(arch, {"arch": arch_of(json.loads(arch))})
                    row[column] = f"{accuracy:.4f}"
                    if column == "cifar10_test":  # the file counts the classifier of each data set
                        row["params"] = round(1e6 * millions)
    except (sqlite3.Error, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not NNI's file of NAS-Bench-201: {error}; name one with --nasbench201") from None
    fields = ("arch", *NASBENCH201_COLUMNS, "params")
    whole = [{name: row[name] for name in fields} for row in rows.values() if len(row) == len(fields)]
    return sorted(whole, key=lambda row: str(row["arch"]))


def arch_of(edges: Mapping[str, str]) -> str:
    """NNI's ``{"0_1": "conv_3x3", ...}`` as ``|nor_conv_3x3~0|+...``."""
    nodes = []
    for target in (1, 2, 3):
        names = [(edges[f"{source}_{target}"], source) for source in range(target)]
        nodes.append("|" + "|".join(f"{'nor_' if name[:4] == 'conv' else ''}{name}~{s}" for name, s in names) + "|")
    return "+".join(nodes)


def find_nasbench201(args: argparse.Namespace) -> Path:
    """The file that was named, or NNI's, downloaded if that was asked for."""
    if args.nasbench201 is not None:
        return readable(args.nasbench201, "--nasbench201")
    home = Path(os.environ.get("NASBENCHMARK_DIR", Path(nni_cache_home()) / "nasbenchmark"))
    path = home / NASBENCH201_FILE
    try:
        load_or_download_file(str(path), f"{NNI_BLOB}/nasbenchmark/{NASBENCH201_FILE}", args.download)
    except FileNotFoundError:
        raise ConfigError(
            f"nasbench201: {path} is not there; use --download, or name the file with --nasbench201"
        ) from None
    except (OSError, RuntimeError, AssertionError) as error:
        problem = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"nasbench201: NNI's copy cannot be used: {problem}; name the file with --nasbench201"
        ) from None
    return path


# ---- NAS-Bench-Macro ------------------------------------------------------------------------------------


def nasbench_macro_rows(path: Path) -> list[dict[str, object]]:
    """A row for each architecture: the mean accuracy of its three trainings in percent, parameters and multiply-adds.

    Raises
    ------
    ConfigError
        If it is no such file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [
            {
                "arch": arch,
                "cifar10_test": f"{entry['mean_acc']:.4f}",
                "params": entry["params"],
                "macs": entry["flops"],
            }
            for arch, entry in sorted(content.items())
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is not nas-bench-macro_cifar10.json ({error!r}); name it with --macro") from None


# ---- CIFAR-10 -------------------------------------------------------------------------------------------


def cifar10(root: Path, name: str, download: bool) -> dict[str, Any]:
    """The arrays of ``cifar10_train`` or ``cifar10_test``: ``images`` (N, 32, 32, 3) uint8, ``labels``, ``classes``.

    Raises
    ------
    ConfigError
        If CIFAR-10 is not in ``root``.
    """
    from torchvision.datasets import CIFAR10

    try:
        data = CIFAR10(str(root), train=name.endswith("train"), download=download)
    except (OSError, RuntimeError) as error:
        problem = " ".join(str(error).split())
        raise ConfigError(f"cifar10: {root}: {problem}; use --download, or name another folder with --root") from None
    labels = np.array(data.targets)
    first = [np.flatnonzero(labels == label)[: CIFAR10_PER_CLASS[name]] for label in range(len(data.classes))]
    chosen = np.sort(np.concatenate(first))
    return {"images": data.data[chosen], "labels": labels[chosen], "classes": np.array(data.classes)}


# ---- files ----------------------------------------------------------------------------------------------


def readable(path: Path | None, option: str) -> Path:
    if path is None:
        raise ConfigError(f"a file is needed that cannot be downloaded by this script; name it with {option}")
    if not path.is_file():
        raise ConfigError(f"{option} is {str(path)!r}, which is no file; name the one that holds the benchmark")
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_table(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """A CSV file; the same rows give the same bytes."""
    if not rows:
        raise ConfigError(f"no architecture was found for {path.name}; the file that it is made of is empty")
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, gzip.compress(text.getvalue().encode(), mtime=0))


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def count(path: Path) -> int:
    """Rows of a table or images of an ``.npz``.

    Raises
    ------
    ConfigError
        If the file is neither.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                return len(arrays["labels"])
        with gzip.open(path, "rt", newline="") as file:
            return sum(1 for _ in csv.DictReader(file))
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path} is there, but cannot be read ({error}); delete it and run this again") from None


def read_note(path: Path) -> dict[str, dict[str, object]]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is not what this script writes ({error}); delete it and run this again") from None


def make(name: str, args: argparse.Namespace) -> Iterable[tuple[Path, str]]:
    """Write the files of ``name`` that are not there; gives them and what they are made of."""
    if name == "cifar10":
        for part in CIFAR10_PER_CLASS:
            path = args.out / f"{part}.npz"
            if not path.exists():
                write_arrays(path, cifar10(args.root, part, args.download))
            yield path, "torchvision.datasets.CIFAR10"
        return
    path = args.out / f"{name}.csv.gz"
    if path.exists():
        yield path, "was there"
    elif name == "nasbench201":
        source = find_nasbench201(args)
        write_table(path, nasbench201_rows(source))
        yield path, source.name
    else:
        source = readable(args.macro, "--macro")
        write_table(path, nasbench_macro_rows(source))
        yield path, source.name


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="nasbench201, nasbench_macro, cifar10 (default: all)")
    parser.add_argument(
        "--out", type=Path, default=Path(os.environ.get("CSSNAS_DATA", "data")), help="folder of the files"
    )
    parser.add_argument("--download", action="store_true", help="fetch what is not on this machine")
    parser.add_argument("--nasbench201", type=Path, metavar="FILE", help=f"NNI's {NASBENCH201_FILE}")
    parser.add_argument("--macro", type=Path, metavar="FILE", help="nas-bench-macro_cifar10.json")
    parser.add_argument("--root", type=Path, default=Path("data"), help="torchvision's folder of CIFAR-10")
    args = parser.parse_args(arguments)
    known = ("nasbench201", "nasbench_macro", "cifar10")
    files: dict[str, dict[str, object]] = {}
    note = args.out / "files.json"
    try:
        for name in args.names:
            if name not in known:
                raise ConfigError(f"NAME is {name!r}; it must be one of {', '.join(known)}")
        args.out.mkdir(parents=True, exist_ok=True)
        if note.exists():
            files = read_note(note)
        for name in args.names or known:
            for path, source in make(name, args):
                entry = {"rows": count(path), "sha256": sha256(path), "source": source}
                before = files.get(path.name, {})
                if before.get("sha256") == entry["sha256"]:
                    entry = before
                files[path.name] = entry
                write_atomically(note, json.dumps(files, indent=1) + "\n")
                print(f"{path}: {entry['rows']} rows, sha256 {entry['sha256']}, from {entry['source']}")
    except (CssnasError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
