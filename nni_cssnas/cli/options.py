"""Options that several commands have, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "ARCHITECTURE",
    "COST",
    "PATHS",
    "RECIPE",
    "RECIPES",
    "Arguments",
    "Batch",
    "Cells",
    "Channels",
    "Data",
    "Device",
    "Download",
    "Epochs",
    "Experiment",
    "ForceRun",
    "Genotype",
    "GpusPerWorker",
    "Json",
    "Keep",
    "LatencyFile",
    "MaxLatency",
    "MaxMacs",
    "MaxParams",
    "Port",
    "Public",
    "Ray",
    "Recipe",
    "Root",
    "Sample",
    "Seed",
    "Settings",
    "Size",
    "Space",
    "Val",
    "Workers",
]

RECIPES = "(default: the search's target, else the recipe's)."
ARCHITECTURE, IMAGES, RECIPE, PATHS = "Architecture", "Labelled images", "Recipe", "Where and how"
PORTAL = "Portal"
COST = "What it may cost (the network that will be trained, without classifier)"

Genotype = Annotated[
    str | None,
    typer.Argument(
        help="A published name, the DARTS form, JSON, a file with it (a log, too), a folder of `best`, or an experiment's id."
    ),
]
Experiment = Annotated[
    str, typer.Argument(help="NNI's id of the experiment, or a folder that holds its records.", show_default=False)
]
Space = Annotated[
    str | None,
    typer.Option("--space", help="module:attribute of another NNI model space.", rich_help_panel=ARCHITECTURE),
]
Arguments = Annotated[
    str, typer.Option(help="Arguments of the space, as YAML: '{width: 16}'.", rich_help_panel=ARCHITECTURE)
]
Sample = Annotated[
    Path | None,
    typer.Option("--sample", help="Its choices: sample.json of `best`.", rich_help_panel=ARCHITECTURE),
]
Recipe = Annotated[
    str,
    typer.Option("--recipe", "-r", help="cifar10, imagenet, isic, folder, or a file.yml.", rich_help_panel=RECIPE),
]
Data = Annotated[
    str,
    typer.Option("--data", "-d", help="A folder of class folders, an .npz, or cifar10.", rich_help_panel=IMAGES),
]
Val = Annotated[
    str | None,
    typer.Option("--val", help="Images to validate with; by default a part is held out.", rich_help_panel=IMAGES),
]
Root = Annotated[
    Path | None,
    typer.Option("--root", help="Where CIFAR-10 lies (default: in the cache).", rich_help_panel=IMAGES),
]
Download = Annotated[
    bool, typer.Option("--download", help="Fetch CIFAR-10 if it is not there.", rich_help_panel=IMAGES)
]
Epochs = Annotated[
    int | None,
    typer.Option(min=1, help=f"Passes through the training images {RECIPES}", rich_help_panel=RECIPE),
]
Batch = Annotated[
    int | None,
    typer.Option(
        "--batch-size", min=2, help=f"Images of a step, on all devices together {RECIPES}", rich_help_panel=RECIPE
    ),
]
Channels = Annotated[
    int | None,
    typer.Option(min=1, help=f"Width of the first cells of a network of cells {RECIPES}", rich_help_panel=RECIPE),
]
Cells = Annotated[
    int | None, typer.Option(min=3, help=f"Depth of a network of cells {RECIPES}", rich_help_panel=RECIPE)
]
Size = Annotated[
    int | None, typer.Option(min=8, help=f"Edge of the images in pixels {RECIPES}", rich_help_panel=RECIPE)
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any other number of the recipe, as lr=0.1; may be repeated.", rich_help_panel=RECIPE),
]
Seed = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Of the weights, the order of the images and what is held out (default: 0).",
        rich_help_panel=RECIPE,
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda (default: cuda if there is one).", rich_help_panel=PATHS)]
MaxParams = Annotated[
    int | None, typer.Option("--max-params", min=1, help="The most parameters.", rich_help_panel=COST)
]
MaxMacs = Annotated[
    int | None, typer.Option("--max-macs", min=1, help="The most multiply-adds of one image.", rich_help_panel=COST)
]
MaxLatency = Annotated[
    float | None,
    typer.Option(
        "--max-latency-ms",
        min=0,
        help="The longest median time of a forward pass of one image on the device, in milliseconds.",
        rich_help_panel=COST,
    ),
]
LatencyFile = Annotated[
    Path | None,
    typer.Option(
        "--latency",
        help="A file of `nni-cssnas latency`, by which latencies are predicted (default: each network is measured).",
        rich_help_panel=COST,
    ),
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Processes (default: one for each core).", rich_help_panel=PATHS)
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        help="Score on a cluster of Ray: auto, or host:port of its head node. A worker is then an actor.",
        rich_help_panel=PATHS,
    ),
]
GpusPerWorker = Annotated[
    float | None,
    typer.Option(
        "--gpus-per-worker",
        help="With --ray: the part of a GPU that each worker takes (default: 1 where there are GPUs).",
        rich_help_panel=PATHS,
    ),
]
ForceRun = Annotated[bool, typer.Option("--force", help="Remove another run that lies there.", rich_help_panel=PATHS)]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print the result as JSON on stdout, and all else on stderr.", rich_help_panel=PATHS),
]
Port = Annotated[
    int | None,
    typer.Option(help="Of the portal (default: 8080 or the next free one).", rich_help_panel=PORTAL),
]
Public = Annotated[
    bool,
    typer.Option(
        "--public",
        help="Open the portal to other machines, at an address with a secret in it.",
        rich_help_panel=PORTAL,
    ),
]
Keep = Annotated[
    bool,
    typer.Option("--keep", help="Leave the manager and the portal running at the end.", rich_help_panel=PORTAL),
]
