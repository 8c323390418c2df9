"""What a search found, whichever way it was done."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nni_cssnas.config import ProxyConfig, SpaceConfig, TargetConfig
from nni_cssnas.errors import ExperimentError
from nni_cssnas.genotype import Choices, Genotype
from nni_cssnas.judge.screening import Screened
from nni_cssnas.results.best import rank
from nni_cssnas.results.records import TrialRecord
from nni_cssnas.search.front import pareto_front
from nni_cssnas.spaces.architecture import Architecture

__all__ = ["Found", "SearchResult"]


@dataclass(frozen=True)
class Found:
    """One architecture that a search has scored.

    Attributes
    ----------
    rank
        From 1, among all that were scored.
    score
        What was maximised.
    measures
        Every number of it, by name; ``params`` and ``macs`` among them where it could be run.
    choices
        As a tuner proposes them and ``sample.json`` keeps them.
    genotype
        The cells, in a space of cells; else None.
    space
        Where the choices are from.
    second_look
        What the finalists of a screening are ranked by; see :func:`~nni_cssnas.search.explore.choose`.
    trial
        NNI's number of the trial, or None.
    target
        The network of cells that the search was for, if it said so.
    """

    rank: int
    score: float
    measures: Mapping[str, float]
    choices: Choices
    genotype: Genotype | None
    space: SpaceConfig
    second_look: float | None = None
    trial: int | None = None
    target: TargetConfig | None = None

    @property
    def architecture(self) -> Architecture:
        """What is trained and exported: :meth:`~nni_cssnas.spaces.architecture.Architecture.build` makes its network."""
        if self.genotype is not None:
            return Architecture(genotype=self.genotype, target=self.target)
        return Architecture(space=self.space, choices=dict(self.choices))

    def draw(self, path: str | Path) -> list[Path]:
        """Draw the cells as ``path`` with the endings ``.svg`` and ``.png``; gives both paths.

        Raises
        ------
        ExperimentError
            If the space has no cells.
        """
        if self.genotype is None:
            raise ExperimentError(f"{self.space.name} has no cells that could be drawn; .choices tells what was chosen")
        from nni_cssnas.results.draw import draw_genotype

        return draw_genotype(self.genotype, path, title=f"score {self.score:.4f}")


@dataclass(frozen=True)
class SearchResult:
    """What a search has found, best first.

    Attributes
    ----------
    found
        Everything that was scored.
    folder
        Where its files lie, or None if none were written.
    files
        Table, best architectures and pictures, as far as they were written.
    interrupted
        Whether it was stopped by Ctrl-C (the stop button of a notebook) and holds only what was scored until then.
    """

    found: tuple[Found, ...]
    folder: Path | None = None
    files: tuple[Path, ...] = ()
    interrupted: bool = False

    @property
    def best(self) -> Found:
        """The first."""
        return self.found[0]

    @property
    def front(self) -> list[Found]:
        """Those that no other beats in score and in number of parameters together, by score from high to low."""
        values = [(item.score, -item.measures.get("params", math.nan)) for item in self.found]
        return [self.found[index] for index in pareto_front(values)]

    @property
    def table(self) -> list[dict[str, Any]]:
        """A row for each, for ``pandas.DataFrame`` for example: rank, score, then its measures and choices."""
        return [
            {
                "rank": item.rank,
                **({} if item.trial is None else {"trial": item.trial}),
                "score": item.score,
                "second_look": item.second_look,
                **item.measures,
                **item.choices,
            }
            for item in self.found
        ]

    @classmethod
    def of_screening(cls, ranked: Sequence[Screened], config: ProxyConfig, **others: Any) -> SearchResult:
        """From what was screened, in its order."""
        found = [
            Found(
                place,
                item.score,
                item.components,
                item.choices,
                item.genotype,
                config.space,
                item.second_look,
                target=config.target,
            )
            for place, item in enumerate(ranked, start=1)
        ]
        return cls(tuple(found), **others)

    @classmethod
    def of_records(cls, records: Sequence[TrialRecord], **others: Any) -> SearchResult:
        """From the records of an experiment's trials.

        Raises
        ------
        ExperimentError
            If no trial has finished.
        """
        found = [
            Found(
                place,
                record.score or 0.0,
                record.components,
                record.parameters,
                Genotype.from_dict(record.genotype) if record.genotype else None,
                SpaceConfig(**record.config.get("space", {})),
                trial=record.sequence,
                target=TargetConfig(**record.config["target"]) if record.config.get("target") else None,
            )
            for place, record in enumerate(rank(records), start=1)
        ]
        return cls(tuple(found), **others)
