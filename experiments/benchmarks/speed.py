#!/usr/bin/env python3
"""How fast is the search, and how far from what the hardware allows?

    python experiments/benchmarks/speed.py

runs both sides of each comparison in turn, in one process, several rounds, and prints the medians, the ratio of every
round's two times (median, and lowest to highest), and what was aimed at. ``--out`` gets ``speed.json``.

views       augmented pairs: ours, a batch at once, against torchvision's v2 image by image, kornia, and lightly's transform image by image
epoch       a training epoch: ours against forward, backward and optimiser step on ready tensors (the limit), and
            against lightly's documented SimCLR recipe (its transform, a DataLoader, its loss)
loss        NT-Xent in one matrix product against a loop over images with drawn negatives, and against lightly's
start       an isolated trial from ``python`` to its first step, against importing torch, torchvision and nni; a trial of a
            tiny network from ``python`` to its end, forked as NNI's trials are, against an isolated one
memory      a trial's peak against that of a process that only runs the network's training step, plus the images
screening   a default untrained score against forward and backward of its two views on a ready network (the limit), and
            architectures per second
growth      how an epoch and screening grow with images, batch, channels and cells
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from view_peers import kornia_views, torchvision_views

from nni_cssnas.base.device import resolve_device
from nni_cssnas.base.modules import evaluation_mode
from nni_cssnas.config import ProxyConfig, ViewsConfig
from nni_cssnas.images.sources import load_images
from nni_cssnas.images.views import make_views
from nni_cssnas.judge.screening import Screener
from nni_cssnas.scores.contrastive import train_contrastive
from nni_cssnas.scores.losses import nt_xent
from nni_cssnas.search.explore import explore
from nni_cssnas.spaces.backbone import Backbone
from nni_cssnas.spaces.encoding import decode, random_choices
from nni_cssnas.spaces.factory import make_space

PARTS = ("views", "epoch", "loss", "start", "memory", "screening", "growth")


@dataclass(frozen=True)
class Sizes:
    """How much is timed.

    Parameters
    ----------
    views
        Edge of an image in pixels, and how many make a batch.
    architectures
        That ``epoch`` trains with and without an option.
    epochs
        Of a training that is timed.
    screened, screened_together
        Architectures, in one process and with a process for each core.
    images, cases
        Of ``growth``.
    space
        Arguments of the space that differ from the preset.
    training
        Keys of ``contrastive`` that differ from the preset.
    warm_up
        Whether each side runs once before the clock does.
    """

    views: Mapping[int, int]
    architectures: int
    epochs: int
    screened: int
    screened_together: int
    images: int
    cases: int
    space: Mapping[str, Any]
    training: Mapping[str, Any]
    warm_up: bool


FULL = Sizes(
    {32: 256, 96: 64, 224: 16},
    architectures=5,
    epochs=3,
    screened=12,
    screened_together=100,
    images=576,
    cases=6,
    space={},
    training={},
    warm_up=True,
)
SHORT = Sizes(
    {32: 4},
    architectures=1,
    epochs=1,
    screened=4,
    screened_together=4,
    images=64,
    cases=2,
    space={"num_cells": 3, "channels": 4},
    training={"batch_size": 16},
    warm_up=False,
)
"""Shows that every part runs and does what it times. Its numbers mean nothing."""


class Bench:
    """Times two sides in turn and keeps what came out."""

    def __init__(self, rounds: int, device: torch.device, console: Console, sizes: Sizes = FULL) -> None:
        self.rounds = rounds
        self.sizes = sizes
        self.device = device
        self.console = console
        self.lines: list[dict[str, Any]] = []

    def clock(self, work: Callable[[], Any]) -> float:
        """Seconds of one call, the device's work included."""
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def compare(
        self,
        part: str,
        what: str,
        ours: Callable[[], float],
        other: Callable[[], float],
        *,
        target: str,
        slowdown: bool = False,
        rounds: int | None = None,
    ) -> None:
        """Both sides give seconds. The ratio is other / ours (times faster), or ours / other for a ``slowdown``."""
        if self.sizes.warm_up:
            ours(), other()
        pairs = [(ours(), other()) for _ in range(rounds or self.rounds)]
        ratios = [a / b if slowdown else b / a for a, b in pairs]
        self.note(
            part,
            what,
            ours=statistics.median(a for a, _ in pairs),
            other=statistics.median(b for _, b in pairs),
            ratio=statistics.median(ratios),
            low=min(ratios),
            high=max(ratios),
            target=target,
        )

    def note(self, part: str, what: str, **values: Any) -> None:
        line = {"part": part, "what": what, **values}
        self.lines.append(line)
        self.console.print(f"{part}: {what}: " + ", ".join(f"{k} {_short(v)}" for k, v in values.items()))

    def table(self, title: str) -> Table:
        table = Table(title=title)
        for head in ("part", "what", "ours", "other", "ratio", "lowest to highest", "target"):
            table.add_column(head, justify="left" if head in ("part", "what", "target") else "right", no_wrap=True)
        for line in self.lines:
            spread = f"{_short(line['low'])} to {_short(line['high'])}" if "low" in line else ""
            cells = [_short(line.get(name, "")) for name in ("ours", "other", "ratio")]
            table.add_row(line["part"], line["what"], *cells, spread, str(line.get("target", "")))
        return table


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


# ---- what is timed ------------------------------------------------------------------------------------


def networks(config: ProxyConfig, number: int, seed: int = 0) -> Iterator[tuple[dict[str, Any], nn.Module]]:
    """Random architectures of the configured space: choices and network."""
    space = make_space(config.scored_space)
    rng = np.random.default_rng(seed)
    for index in range(number):
        parameters = random_choices(space, rng)
        torch.manual_seed(index)
        yield parameters, space.freeze(decode(space, parameters))


def preset(**values: Any) -> ProxyConfig:
    """The ``cpu`` preset, or ``gpu`` on a GPU, for a contrastive training."""
    return ProxyConfig(**({"preset": "gpu" if torch.cuda.is_available() else "cpu", "score": "contrastive"} | values))


def draw(bench: Bench, make: Callable[..., tuple[Tensor, Tensor]], images: Tensor, generator: torch.Generator) -> float:
    """Seconds in which two views of every image are made."""
    made: list[Tensor] = []
    seconds = bench.clock(lambda: made.extend(make(images, generator)))
    if [len(view) for view in made] != [len(images)] * 2:
        raise RuntimeError(f"{len(images)} images gave {[len(view) for view in made]} views")
    return seconds


def views(bench: Bench, args: argparse.Namespace) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    everything: dict[str, Any] = {"rr_prob": 0.5, "rr_degrees": 30.0, "vf_prob": 0.5}
    targets = {32: "at least 12", 96: "at least 4", 224: "at least 1"}
    for size, count in bench.sizes.views.items():
        images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, device=bench.device)
        generator = torch.Generator(bench.device).manual_seed(0)
        config = ViewsConfig(**everything)
        batched = make_views(config, size)
        others: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
            "lightly": make_views(ViewsConfig(backend="lightly", **everything), size),
            "torchvision's v2, image by image": torchvision_views(config, size),
            "kornia": kornia_views(config, size),
        }
        for name, other in others.items():
            bench.compare(
                "views",
                f"{count} pairs at {size} px, all operations, against {name}",
                lambda: draw(bench, batched, images, generator),  # noqa: B023
                lambda: draw(bench, other, images, generator),  # noqa: B023
                target=targets[size] if name == "lightly" else "none",
            )
    torch.set_num_threads(threads)


class Pictures(torch.utils.data.Dataset[Any]):
    """Decoded images for lightly's recipe, which sets the transform."""

    transform: Callable[[Any], Any]

    def __init__(self, pictures: Sequence[Any]) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.pictures[index]), 0


class Training:
    """One network trained three ways on the same images; each gives the seconds of an epoch."""

    def __init__(self, bench: Bench, config: ProxyConfig, epochs: int) -> None:
        self.bench = bench
        self.epochs = epochs
        self.config = config
        self.settings = config.contrastive.model_copy(update={"held_out": 0.0, "epochs": epochs + 1, "steps": None})
        self.size = config.views.input_size or config.images.size
        self.images = load_images(config.images)
        assert isinstance(self.images, Tensor)
        _, network = next(networks(config, 1))
        self.take(network)

    def take(self, network: nn.Module) -> None:
        """Train this network from now on, always from the weights that it has now."""
        self.network = network
        self.state = {name: value.clone() for name, value in network.state_dict().items()}

    def backbone(self) -> nn.Module:
        self.network.load_state_dict(self.state)
        return Backbone(self.network, self.size).to(self.bench.device)

    def ours(self, view_pool: str, **values: Any) -> float:
        times: list[float] = []
        train_contrastive(
            self.backbone(),
            self.images,
            self.settings.model_copy(update={"view_pool": view_pool, **values}),
            views=make_views(self.config.views, self.size),
            seed=0,
            device=self.bench.device,
            on_epoch=lambda epoch, loss: times.append(time.perf_counter()),
        )
        return self.seconds(times)

    def seconds(self, times: Sequence[float]) -> float:
        """Of an epoch: from the end of the first, which warms up, to that of the last."""
        if len(times) != self.epochs + 1:
            raise RuntimeError(f"{len(times)} epochs were trained, not {self.epochs + 1}")
        return (times[-1] - times[0]) / self.epochs

    def limit(self) -> float:
        """Forward, backward and step on tensors that are there; losses are not even looked at."""
        from lightly.models.modules.heads import SimCLRProjectionHead

        settings, device = self.settings, self.bench.device
        backbone = self.backbone().train()
        format_ = torch.channels_last if settings.channels_last else torch.contiguous_format
        backbone = backbone.to(memory_format=format_)
        batch = torch.randn(2 * settings.batch_size, 3, self.size, self.size, device=device).contiguous(
            memory_format=format_
        )
        with torch.no_grad():
            width = backbone(batch[:2]).shape[1]
        head = SimCLRProjectionHead(width, settings.projection_hidden, settings.projection_dim).to(device)
        network = nn.Sequential(backbone, head)
        optimizer = torch.optim.SGD(
            network.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
        dtype = torch.float16 if settings.amp == "fp16" else torch.bfloat16

        def step() -> None:
            with torch.autocast(device.type, dtype=dtype, enabled=settings.amp != "off"):
                embeddings = network(batch)
            loss = nt_xent(*embeddings.float().chunk(2), settings.temperature)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

        steps = len(self.images) // settings.batch_size
        step()
        return self.bench.clock(lambda: [step() for _ in range(steps * self.epochs)]) / self.epochs

    def lightly(self) -> float:
        """https://docs.lightly.ai/self-supervised-learning/examples/simclr.html, with workers that stay."""
        from lightly.data import LightlyDataset
        from lightly.loss import NTXentLoss
        from lightly.models.modules.heads import SimCLRProjectionHead
        from lightly.transforms import SimCLRTransform
        from PIL import Image

        settings, device = self.settings, self.bench.device
        values = self.config.views.model_dump(exclude={"backend", "input_size"})
        pictures = [Image.fromarray(image) for image in self.images.permute(0, 2, 3, 1).numpy()]
        dataset = LightlyDataset.from_torch_dataset(
            Pictures(pictures), transform=SimCLRTransform(input_size=self.size, **values)
        )
        loader = torch.utils.data.DataLoader(
            dataset,
            batch_size=settings.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=os.cpu_count() or 1,
            persistent_workers=True,
        )
        backbone = self.backbone().train()
        with torch.no_grad():
            width = backbone(torch.zeros(2, 3, self.size, self.size, device=device)).shape[1]
        network = nn.Sequential(
            backbone, SimCLRProjectionHead(width, settings.projection_hidden, settings.projection_dim)
        ).to(device)
        criterion = NTXentLoss(temperature=settings.temperature)
        optimizer = torch.optim.SGD(
            network.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
        times = []
        for _ in range(self.epochs + 1):
            for batch in loader:
                x0, x1 = batch[0]
                loss = criterion(network(x0.to(device)), network(x1.to(device)))
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            self.bench.wait()
            times.append(time.perf_counter())
        return self.seconds(times)


def epoch(bench: Bench, args: argparse.Namespace) -> None:
    config = preset(
        images={"num_images": args.images},
        contrastive=bench.sizes.training,
        space={"arguments": bench.sizes.space},
    )
    training = Training(bench, config, bench.sizes.epochs)
    what = f"epoch of {args.images} images"
    for view_pool, target in (("fixed", "at most 1.05"), ("fresh", "at most 1.15")):
        bench.compare(
            "epoch",
            f"{what}, {view_pool} views, times the limit",
            lambda: training.ours(view_pool),  # noqa: B023
            training.limit,
            target=target,
            slowdown=True,
        )
    bench.compare(
        "epoch",
        f"{what}, fresh views, against lightly's recipe",
        lambda: training.ours("fresh"),
        training.lightly,
        target="at least 2.5",
        rounds=min(3, bench.rounds),
    )
    for name, ours, other, rounds, number in (
        (
            "channels_last against contiguous",
            {"channels_last": True},
            {"channels_last": False},
            bench.rounds,
            bench.sizes.architectures,
        ),
        ("bfloat16 against float32", {"amp": "bf16"}, {"amp": "off"}, 1, 1),  # minutes each where it is emulated
    ):
        ratios = []
        for _, network in networks(training.config, number, seed=1):
            training.take(network)
            pairs = [(training.ours("fixed", **ours), training.ours("fixed", **other)) for _ in range(rounds)]
            ratios.append(statistics.median(b / a for a, b in pairs))
        bench.note(
            "epoch",
            f"{what}, {name}, {number} architecture{'s' * (number > 1)}",
            ratio=statistics.median(ratios),
            low=min(ratios),
            high=max(ratios),
        )


def loop_loss(u: Tensor, v: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """The reference implementation's way: image by image, each with negatives drawn for it."""
    u, v = F.normalize(u, dim=1), F.normalize(v, dim=1)
    count = len(u)
    both = torch.cat([u, v])
    total = u.new_zeros(())
    for index in range(count):
        drawn = torch.randint(2 * count, (2 * (count - 1),), generator=generator, device=generator.device)
        negatives = both[drawn[(drawn != index) & (drawn != index + count)]]
        logits = torch.cat([(u[index] @ v[index])[None], negatives @ u[index]]) / temperature
        total = total - torch.log_softmax(logits, 0)[0]
    return total / count


def loss(bench: Bench, args: argparse.Namespace) -> None:
    from lightly.loss import NTXentLoss

    u, v = torch.randn(2, 256, 128, device=bench.device)
    u.requires_grad_(), v.requires_grad_()
    generator = torch.Generator(bench.device).manual_seed(0)
    theirs = NTXentLoss(temperature=0.5)

    def ours() -> float:
        return bench.clock(lambda: [nt_xent(u, v, 0.5).backward() for _ in range(20)]) / 20

    bench.compare(
        "loss",
        "batch 256, width 128, against a loop over images",
        ours,
        lambda: bench.clock(lambda: loop_loss(u, v, 0.5, generator).backward()),
        target="at least 30",
    )
    bench.compare(
        "loss",
        "batch 256, width 128, against lightly's",
        ours,
        lambda: bench.clock(lambda: [theirs(u, v).backward() for _ in range(20)]) / 20,
        target="",
    )


FIRST_STEP = """
import os, sys
import nni_cssnas.trial as trial
def leave(*args, **kwargs):
    os._exit(0)
if sys.argv[2] == "untrained":
    import nni_cssnas.judge.proxy as proxy
    proxy.Proxy._untrained = leave
else:
    import nni_cssnas.scores.contrastive as contrastive
    contrastive._Trainer.step = leave
trial.main([sys.argv[1]])
os._exit(1)
"""

PEAK = """
import sys
import nni_cssnas.trial as trial
if sys.argv[2] == "trial":
    assert trial.main([sys.argv[1]]) == 0
else:
    import torch
    sys.path.insert(0, sys.argv[3])
    import speed
    from nni_cssnas.config import ProxyConfig
    from rich.console import Console
    bench = speed.Bench(1, torch.device("cpu"), Console(quiet=True))
    training = speed.Training(bench, ProxyConfig.load(sys.argv[1]), epochs=1)
    import lightly.models.modules.heads
    if sys.argv[2] == "step":
        training.limit()
# Not getrusage: its maximum is inherited from the process that started this one.
with open("/proc/self/status") as status:
    print("peak", 1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1]))
"""


def start(bench: Bench, args: argparse.Namespace) -> None:
    def run(*command: str) -> float:
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-W", "ignore", *command], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - begin

    forked_start(bench)
    for score in ("untrained", "contrastive"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "proxy.yml"
            path.write_text(f"preset: cpu\nscore: {score}\n", encoding="utf-8")
            bench.compare(
                "start",
                f"{score} trial to its first step, times importing torch, torchvision, nni",
                lambda: run("-c", FIRST_STEP, str(path), score),  # noqa: B023
                lambda: run("-c", "import torch, torchvision, nni"),
                target="at most 1.3",
                slowdown=True,
                rounds=min(3, bench.rounds),
            )


TINY = """
preset: cpu
threads: 1
space: {arguments: {num_nodes: 4, num_cells: 3, channels: 4}}
images: {source: tiles, num_images: 96}
views: {input_size: 16}
untrained: {batch_size: 8}
"""


def forked_start(bench: Bench) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "proxy.yml").write_text(TINY, encoding="utf-8")
        # NNI's name for trials without a manager, to which it gives no choices.
        environ = {**os.environ, "NNI_PLATFORM": "unittest"}

        def run(*options: str) -> float:
            command = [sys.executable, "-W", "ignore", "-m", "nni_cssnas.trial", *options]
            begin = time.perf_counter()
            subprocess.run(command, check=True, cwd=folder, env=environ, stdout=subprocess.DEVNULL)
            return time.perf_counter() - begin

        bench.compare(
            "start",
            "a whole trial of a tiny network, forked, against isolated",
            run,
            lambda: run("--isolated"),
            target="at least 5",
            rounds=min(3, bench.rounds),
        )


def memory(bench: Bench, args: argparse.Namespace) -> None:
    def peak(path: Path, side: str) -> float:
        here = str(Path(__file__).resolve().parent)
        command = [sys.executable, "-W", "ignore", "-c", PEAK, str(path), side, here]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return float(done.stdout.split("peak")[-1])

    number = bench.sizes.images
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "proxy.yml"
        training = {"epochs": 2, "view_pool": "fresh", **bench.sizes.training}
        settings = {
            "preset": "cpu",
            "score": "contrastive",
            "images": {"num_images": number},
            "contrastive": training,
            "space": {"arguments": bench.sizes.space},
        }
        path.write_text(json.dumps(settings), encoding="utf-8")
        size = number * 3 * 32 * 32
        triples = [(peak(path, "trial"), peak(path, "step"), peak(path, "idle")) for _ in range(min(3, bench.rounds))]
    # The libraries are most of it; without what they take the ratio says more.
    for what, idle in (("", 0.0), (", without the libraries", 1.0)):
        pairs = [(a - idle * c, b - idle * c + size) for a, b, c in triples]
        ratios = [a / b for a, b in pairs]
        bench.note(
            "memory",
            f"peak of a trial, times that of its training step plus the images (MB){what}",
            ours=statistics.median(a for a, _ in pairs) / 1e6,
            other=statistics.median(b for _, b in pairs) / 1e6,
            ratio=statistics.median(ratios),
            low=min(ratios),
            high=max(ratios),
            target="at most 1.2",
        )


def screener(**values: Any) -> Screener:
    """Of the default score."""
    return Screener(preset(**{"images": {"num_images": 256}, **values, "score": "untrained"}))


def screen(found: Screener, number: int, seed: int, workers: int = 1) -> float:
    """Architectures per second from the first result to the last, as ``nni-cssnas screen`` draws and scores them.

    The start of the processes is left out.
    """
    stamps, scored = [], []
    with found.spread(workers) as spread:
        for item in explore(found, spread, number, seed=seed):
            stamps.append(time.perf_counter())
            scored.append(item)
    done = sum(bool(item.components) and math.isfinite(item.score) for item in scored)
    if done != number:
        raise RuntimeError(f"{done} architectures of {number} have a score: nothing was measured")
    return (number - 1) / (stamps[-1] - stamps[0])


def screening(bench: Bench, args: argparse.Namespace) -> None:
    found = screener(space={"arguments": bench.sizes.space})
    config, size = found.config, found.proxy.size
    drawn = [choices for choices, _ in networks(config, bench.sizes.architectures)]
    ready = [Backbone(network, size).to(bench.device) for _, network in networks(config, bench.sizes.architectures)]
    views = [torch.randn(config.untrained.batch_size, 3, size, size, device=bench.device) for _ in range(2)]

    def there_and_back(backbone: Backbone) -> None:
        with evaluation_mode(backbone, batch_statistics=True):
            for view in views:
                images = view.detach().requires_grad_()
                torch.autograd.grad(backbone(images).sum(), images)

    bench.compare(
        "screening",
        f"a score, times forward and backward of its two views on a ready network, {len(drawn)} architectures",
        lambda: bench.clock(lambda: [found.screen(choices) for choices in drawn]) / len(drawn),
        lambda: bench.clock(lambda: [there_and_back(backbone) for backbone in ready]) / len(ready),
        target="at most 1.25",
        slowdown=True,
    )
    alone = [screen(found, bench.sizes.screened, seed) for seed in range(bench.rounds)]
    bench.note(
        "screening",
        f"architectures per second, default score, {config.preset} preset, one process",
        ours=statistics.median(alone),
        low=min(alone),
        high=max(alone),
    )
    workers = os.cpu_count() or 1
    bench.note(
        "screening",
        f"the same, a process for each of {workers} cores, as nni-cssnas screen",
        ours=screen(found, bench.sizes.screened_together, 0, workers),
        target="at least 1.9 times one process",
    )


def growth(bench: Bench, args: argparse.Namespace) -> None:
    base = {"num_nodes": 4, "num_cells": 5, "channels": 8, **bench.sizes.space}
    cases: Sequence[tuple[str, Mapping[str, Any]]] = (
        ("5 cells of 8 channels", {}),
        ("twice the images", {"images": {"num_images": 2 * bench.sizes.images}}),
        ("twice the batch", {"contrastive": {"batch_size": 256}, "untrained": {"batch_size": 64}}),
        ("twice the channels", {"space": {"arguments": base | {"channels": 16}}}),
        ("8 cells for 5", {"space": {"arguments": base | {"num_cells": 8}}}),
        ("twice the edge", {"views": {"input_size": 32}}),
    )
    first: tuple[float, float] | None = None
    for name, values in cases[: bench.sizes.cases]:
        values = {"space": {"arguments": base}, **values}
        config = preset(**{"images": {"num_images": bench.sizes.images}, "contrastive": bench.sizes.training, **values})
        training = Training(bench, config, epochs=max(1, bench.sizes.epochs - 1))
        seconds = min(training.ours("fresh") for _ in range(2))
        found = screener(**values)
        per_second = statistics.median(screen(found, bench.sizes.screened // 2, seed) for seed in range(bench.rounds))
        first = first or (seconds, per_second)
        bench.note(
            "growth",
            f"{name}: epoch {seconds:.2f} s ({seconds / first[0]:.2f} times), screening {per_second:.2f} per second",
            ratio=seconds / first[0],
        )


# ---- the command --------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to run (default: all)")
    parser.add_argument("--rounds", type=int, help="rounds of each comparison (default: 5; with --short 1)")
    parser.add_argument("--images", type=int, help="images of an epoch (default: 512; with --short 32)")
    parser.add_argument("--short", action="store_true", help="only show that the parts run; the numbers mean nothing")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=0, help="torch threads (default: torch's own)")
    parser.add_argument("--out", type=Path, default=Path("runs/speed"), help="folder of speed.json")
    args = parser.parse_args(arguments)
    args.rounds = args.rounds or (1 if args.short else 5)
    args.images = args.images or (32 if args.short else 512)
    if args.threads:
        torch.set_num_threads(args.threads)
    console = Console()
    if not console.is_terminal:
        console.width = 170
    bench = Bench(args.rounds, resolve_device(args.device), console, SHORT if args.short else FULL)
    for part in args.parts:
        globals()[part](bench, args)
    device = torch.cuda.get_device_name() if bench.device.type == "cuda" else platform.machine()
    title = f"{device}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"
    console.print(
        bench.table(
            f"{title}; seconds, medians of {args.rounds} rounds{', SHORT: no measurement' if args.short else ''}"
        )
    )
    args.out.mkdir(parents=True, exist_ok=True)
    about = {"device": device, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    (args.out / "speed.json").write_text(
        json.dumps(about | {"rounds": args.rounds, "short": args.short, "lines": bench.lines}, indent=1)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
