#!/usr/bin/env python3
"""Are labels missed? Gradient measures of untrained networks with the contrastive loss, and with labels of the same images.

    python experiments/benchmarks/labels.py --table nasbench201.csv.gz --images cifar10.npz --sample 100

draws architectures from a table, as ``rank_correlation.py`` does, and measures of each, on the same weights and the same
views of the same images, ``gradient_flow`` and ``zico`` of two losses: NT-Xent of the two views, as this package does, and
cross-entropy of a random linear layer on the features with the images' labels, as these measures were published. Printed are
the rank correlations with the accuracy, and the difference of either pair with the interval of its paired bootstrap.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from correlation import spearman
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from tables import BENCHMARKS, adapter, draw, read_table, recognise, truths_of
from torch import Tensor

from nni_cssnas.base.modules import evaluation_mode
from nni_cssnas.config import ViewsConfig
from nni_cssnas.errors import ConfigError, CssnasError
from nni_cssnas.images import make_views
from nni_cssnas.scores.statistics import contrastive_loss, gradient_flow, zico
from nni_cssnas.scores.untrained import initialise
from nni_cssnas.spaces.backbone import Backbone

MEASURES: dict[str, Callable[[list[Tensor], list[Tensor]], float]] = {
    "gradient_flow": lambda first, second: gradient_flow([(a + b) / 2 for a, b in zip(first, second, strict=True)]),
    "zico": zico,
}
LOSSES = ("contrastive", "labels")


def labelled(path: Path, number: int, seed: int) -> tuple[Tensor, Tensor]:
    """So many images, uint8 ``(number, 3, H, W)``, and their labels, drawn with ``seed``.

    Raises
    ------
    ConfigError
        If the file has no ``images`` and ``labels``, or fewer.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels = torch.from_numpy(file["images"]), torch.from_numpy(file["labels"].astype(np.int64))
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(f"--images is {str(path)!r}: {error}; it must be an .npz with images and labels") from None
    if len(images) < number:
        raise ConfigError(f"--batch is {number}, but {path} holds {len(images)} images")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:number]
    return images[order].permute(0, 3, 1, 2).contiguous(), labels[order]


def measured(backbone: Backbone, views: Sequence[Tensor], labels: Tensor, seed: int) -> dict[str, float]:
    """``loss measure`` to value, of a network on weights drawn with ``seed``; views are ``(n, 3, size, size)`` each."""
    initialise(backbone, seed)
    weights = [parameter for parameter in backbone.parameters() if parameter.ndim > 1]
    with evaluation_mode(backbone, batch_statistics=True):
        features = [backbone(view) for view in views]
    width = features[0].shape[1]
    generator = torch.Generator().manual_seed(seed)
    head = torch.randn(int(labels.max()) + 1, width, generator=generator) / width**0.5
    half = len(labels) // 2

    def loss(name: str, part: slice) -> Tensor:
        if name == "contrastive":
            return contrastive_loss(features[0][part], features[1][part])
        return F.cross_entropy(torch.cat([f[part] for f in features]) @ head.T, labels[part].repeat(2))

    found = {}
    for name in LOSSES:
        halves = []
        for part in (slice(0, half), slice(half, 2 * half)):
            gradients = torch.autograd.grad(loss(name, part), weights, retain_graph=True, allow_unused=True)
            halves.append([torch.zeros_like(w) if g is None else g for g, w in zip(gradients, weights, strict=True)])
        for measure, function in MEASURES.items():
            found[f"{name} {measure}"] = function(*halves)
    return found


def difference(
    first: NDArray[np.float64], second: NDArray[np.float64], accuracies: NDArray[np.float64], resamples: int
) -> tuple[float, float, float]:
    """Spearman of the first score minus that of the second, and the 95 % interval of its paired bootstrap."""
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(resamples):
        index = rng.integers(len(accuracies), size=len(accuracies))
        draws.append(spearman(first[index], accuracies[index]) - spearman(second[index], accuracies[index]))
    low, high = np.percentile(draws, [2.5, 97.5])
    return spearman(first, accuracies) - spearman(second, accuracies), float(low), float(high)


def run(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure, print, and give what was printed. Raises CssnasError if table or images cannot be used."""
    torch.set_num_threads(1)
    benchmark = args.benchmark or recognise(args.table)
    if benchmark is None:
        raise ConfigError(f"{args.table} is a table of none of {', '.join(BENCHMARKS)}; name one with --benchmark")
    module = adapter(benchmark)
    truth = truths_of(args.table, benchmark)[0]
    entries = read_table(args.table, module.to_sample, truth, getattr(module, "row_arch", None))
    entries = draw(entries, min(args.sample, len(entries)), args.seed)
    images, labels = labelled(args.images, args.batch, args.seed)
    views = make_views(ViewsConfig(cj_strength=0.5, gaussian_blur=0.0), args.size)(
        images, torch.Generator().manual_seed(args.seed)
    )
    rows = [
        measured(Backbone(module.build(entry.arch), args.size), views, labels, args.seed)
        for entry in track(entries, "measuring", console=console)
    ]
    accuracies = np.array([entry.accuracy for entry in entries])
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    if args.out:
        with args.out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["arch", truth, *columns])
            for entry, row in zip(entries, rows, strict=True):
                writer.writerow([entry.arch, entry.accuracy, *(f"{value:.6g}" for value in row.values())])
    table = Table(title=f"{benchmark}, {truth}: {len(entries)} architectures, {args.batch} images (seed {args.seed})")
    for head in ("measure", "contrastive", "labels", "contrastive - labels"):
        table.add_column(head, justify="left" if head == "measure" else "right", no_wrap=True)
    result: dict[str, Any] = {}
    for measure in MEASURES:
        one, other = (columns[f"{loss} {measure}"] for loss in LOSSES)
        result[measure] = (
            spearman(one, accuracies),
            spearman(other, accuracies),
            *difference(one, other, accuracies, args.resamples),
        )
        a, b, gap, low, high = result[measure]
        table.add_row(measure, f"{a:.3f}", f"{b:.3f}", f"{gap:+.3f} [{low:+.3f}, {high:+.3f}]")
    console.print(table)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", choices=BENCHMARKS, help="space of the table (default: that of its first row)")
    parser.add_argument("--table", type=Path, required=True, help="CSV with the column arch and those of accuracies")
    parser.add_argument("--images", type=Path, required=True, help=".npz with images (n, H, W, 3) and labels (n)")
    parser.add_argument("--sample", type=int, default=100, help="architectures to draw (default: 100)")
    parser.add_argument("--batch", type=int, default=32, help="images (default: 32)")
    parser.add_argument("--size", type=int, default=16, help="edge of the views in pixels (default: 16)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw, the weights and the views (default: 0)")
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap (default: 1000)")
    parser.add_argument("--out", type=Path, help="CSV of every architecture's values")
    console = Console()
    if not console.is_terminal:
        console.width = 120
    try:
        run(parser.parse_args(arguments), console)
    except CssnasError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
