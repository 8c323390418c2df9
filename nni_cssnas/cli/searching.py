"""Search without an experiment."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Annotated

import typer

from nni_cssnas.cli.app import Steps, answer, app, console, show_front
from nni_cssnas.cli.options import (
    COST,
    PATHS,
    Device,
    GpusPerWorker,
    Json,
    LatencyFile,
    MaxLatency,
    MaxMacs,
    MaxParams,
    Ray,
    Workers,
)

JUDGE = "How it is judged"


@app.command()
def screen(
    config: Annotated[Path | None, typer.Argument(help="A proxy.yml; the options below replace what it says.")] = None,
    space: Annotated[
        str | None, typer.Option("--space", help="module:attribute of an NNI model space.", rich_help_panel=JUDGE)
    ] = None,
    images: Annotated[
        str | None, typer.Option("--images", help="A folder, an .npz, cifar10 or tiles.", rich_help_panel=JUDGE)
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(
            "--score",
            help="untrained (a second or two each), contrastive or combined.",
            rich_help_panel=JUDGE,
        ),
    ] = None,
    params: Annotated[
        int | None,
        typer.Option(
            "--params",
            help="Give every network of cells the width with so many parameters.",
            rich_help_panel=JUDGE,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            help="What the best cells will be trained by, whose depth is scored: cifar10, imagenet, isic, folder or a file.yml "
            "(default: as proxy.yml says, else folder for a folder of images).",
            rich_help_panel=JUDGE,
        ),
    ] = None,
    num: Annotated[
        int, typer.Option("--num", "-n", min=1, help="How many random architectures, or mutations with --from.")
    ] = 1000,
    guided: Annotated[
        int, typer.Option("--guided", min=0, help="Then so many that are proposed from what was learned.")
    ] = 0,
    cascade: Annotated[
        int,
        typer.Option(
            "--cascade", min=1, help="With 4, score only the quarter of them that has the most multiply-adds."
        ),
    ] = 1,
    minutes: Annotated[float | None, typer.Option("--minutes", help="Stop after this time.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the draw, and of all that is scored.")] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            "--objective",
            help="What shall be small beside a large score: params, macs, latency_ms or a measure; may be repeated.",
            rich_help_panel=COST,
        ),
    ] = None,
    max_params: MaxParams = None,
    max_macs: MaxMacs = None,
    max_latency_ms: MaxLatency = None,
    latency: LatencyFile = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="GENOTYPE",
            help="Search around this architecture: a published name, a file, or a folder of results.",
        ),
    ] = None,
    workers: Workers = None,
    ray: Ray = None,
    gpus_per_worker: GpusPerWorker = None,
    top: Annotated[
        int, typer.Option("--top", "-k", min=1, help="How many of the best to write and draw.", rich_help_panel=PATHS)
    ] = 1,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the results.", rich_help_panel=PATHS)
    ] = Path("screened"),
    force: Annotated[
        bool, typer.Option("--force", help="Replace results that lie there.", rich_help_panel=PATHS)
    ] = False,
    as_json: Json = False,
) -> None:
    """Search without an experiment: random architectures, and those that are proposed from what was learned."""
    import nni_cssnas
    from nni_cssnas.results.screening_log import LOG_NAME
    from nni_cssnas.search.screen import Step

    log = output / LOG_NAME
    with answer(as_json) as give:
        with Steps() as show:

            def told(step: Step) -> None:
                show(step)
                if step.stage == "recalled":
                    console.print(
                        f"{log} holds {step.done} architectures of this search; it goes on from there", soft_wrap=True
                    )
                elif step.stage == "interrupted":
                    console.print(
                        f"\ninterrupted; {step.done} screened architectures are kept in {log}, "
                        "and the same command goes on",
                        soft_wrap=True,
                    )

            try:
                result = nni_cssnas.screen(
                    images,
                    space=space,
                    config=config,
                    score=score,
                    params=params,
                    recipe=recipe,
                    num=num,
                    guided=guided,
                    cascade=cascade,
                    minutes=minutes,
                    seed=seed,
                    workers=workers,
                    ray=ray,
                    gpus_per_worker=gpus_per_worker,
                    output=output,
                    top=top,
                    force=force,
                    objectives=objective or (),
                    max_params=max_params,
                    max_macs=max_macs,
                    max_latency_ms=max_latency_ms,
                    latency=latency,
                    start=start,
                    on_step=told,
                )
            except KeyboardInterrupt:
                raise typer.Exit(130) from None
        found, best = result.found, result.best
        looked = sum(item.second_look is not None for item in found)
        place = 1 + sum(item.score > best.score for item in found)
        by = (
            f"place {place} by score, and first of the {looked} best that were looked at once more"
            if looked
            else "by score alone"
        )
        console.print(
            f"best of {len(found)} architectures: score {best.score:.4f} ({by})", highlight=False, soft_wrap=True
        )
        front = show_front(result) if objective else []
        for path in result.files:
            console.print(f"  {path}", soft_wrap=True, highlight=False)
        give(
            {
                "best": result.table[:top],
                **({"front": front} if objective else {}),
                "files": result.files,
                "interrupted": result.interrupted,
            }
        )
    if result.interrupted:
        raise typer.Exit(130)


@app.command()
def latency(
    config: Annotated[
        Path | None, typer.Argument(help="The proxy.yml of the search (default: cells for networks of 20 of them).")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", "-r", help="What the cells will be trained by, in place of the target of proxy.yml."),
    ] = None,
    device: Device = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of the CPU (default: all).")] = None,
    check: Annotated[
        int,
        typer.Option("--check", min=0, help="Measure so many random networks too, and tell the table's error on them."),
    ] = 0,
    script: Annotated[
        Path | None,
        typer.Option(
            "--script", help="For another machine: write what ONNX runtime needs to measure there into this new folder."
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file.", rich_help_panel=PATHS)] = Path(
        "latency.json"
    ),
    force: Annotated[
        bool, typer.Option("--force", help="Replace a file that lies there.", rich_help_panel=PATHS)
    ] = False,
) -> None:
    """Measure the layers of a space on a device, so that the latency of every network can be told without building it."""
    import torch

    from nni_cssnas.config import ProxyConfig
    from nni_cssnas.errors import ExperimentError
    from nni_cssnas.training.config import target_of

    settings = ProxyConfig() if config is None else ProxyConfig.load(config)
    values = settings.model_dump(exclude_unset=True) | ({} if device is None else {"device": device})
    if recipe is not None and (target := target_of(recipe, settings.images.source, settings.space.name)):
        values["target"] = target.model_dump()
    settings = ProxyConfig(**values)
    if script is not None:
        from nni_cssnas.formats.latency_kit import write_kit

        with console.status("writing layers and networks"):
            path = write_kit(settings, script)
        console.print(
            f"{path}: copy this folder to the other machine, run it there with: python measure.py, and carry "
            "latency.json back",
            soft_wrap=True,
            highlight=False,
        )
        return
    if output.exists() and not force:
        raise ExperimentError(f"{output} is there already; name another file with -o, or use --force")
    from nni_cssnas.judge.latencies import measure_table

    if threads is not None:
        torch.set_num_threads(threads)
    with console.status("measuring layers and networks"):
        table, errors = measure_table(settings, held_out=check)
    table.save(output)
    error = "" if table.error is None else f", error {table.error:.1%} on {len(table.networks)} networks"
    console.print(
        f"{output}: {len(table.times)} layers on {table.device} ({table.threads} threads){error}",
        soft_wrap=True,
        highlight=False,
    )
    if errors:
        off = sorted(abs(one) for one in errors)
        console.print(
            f"{check} other random networks: median error {statistics.median(off):.1%}, largest {off[-1]:.1%}",
            soft_wrap=True,
            highlight=False,
        )
