"""What a search found, whichever way it was done."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nni_cssnas.base.pareto import hypervolume_history, pareto_front, reference_point
from nni_cssnas.config import ProxyConfig, SpaceConfig, TargetConfig
from nni_cssnas.errors import ExperimentError
from nni_cssnas.genotype import Choices, Genotype
from nni_cssnas.judge.costs import record_costs
from nni_cssnas.judge.screening import Screened
from nni_cssnas.results.best import rank
from nni_cssnas.results.front import Front
from nni_cssnas.results.records import TrialRecord
from nni_cssnas.scores.combine import DEAD
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
        Every number of it, by name; ``params`` and ``macs`` of the network that was scored among them where it could be run.
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
    costs
        What shall be small: ``params`` and ``macs`` of the network that will be trained (the ``target``), without classifier,
        and every objective; nothing where it could not be run.
    name
        That of the file in a search's folder, where it is on the front.
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
    costs: Mapping[str, float] = field(default_factory=dict)
    name: str | None = None

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
    objectives
        What shall be small on the front, of :attr:`Found.costs`.
    order
        The ranks of all that was scored, in the order in which it was.
    """

    found: tuple[Found, ...]
    folder: Path | None = None
    files: tuple[Path, ...] = ()
    interrupted: bool = False
    objectives: tuple[str, ...] = ("params",)
    order: tuple[int, ...] = ()

    @property
    def best(self) -> Found:
        """The first."""
        return self.found[0]

    @property
    def front(self) -> list[Found]:
        """Those that no other beats in score and all :attr:`objectives` together, by score from high to low, with names."""
        members = [self.found[index] for index in pareto_front([self._values(item) for item in self.found])]
        return [replace(item, name=f"front-{number}") for number, item in enumerate(members, start=1)]

    @property
    def hypervolume(self) -> list[float]:
        """How much the front covered after each architecture that was scored, in their order.

        It is measured from a point a tenth of the range below the worst of this search, so that only numbers of one search can
        be compared.
        """
        by_rank = {item.rank: item for item in self.found}
        values = [self._values(by_rank[rank]) for rank in self.order or sorted(by_rank)]
        return hypervolume_history(values, reference_point(values)) if values else []

    def front_view(self) -> Front:
        """The front as it is shown and written."""
        first = self.objectives[0]
        target = next((item.target for item in self.found if item.target is not None), None)
        return Front(
            self.front,
            self.objectives,
            [(item.costs[first], item.score) for item in self.found if first in item.costs],
            self.hypervolume,
            None if target is None else target.model_dump(mode="json"),
        )

    def _values(self, item: Found) -> tuple[float, ...]:
        return (item.score, *(-item.costs.get(name, math.nan) for name in self.objectives))

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
    def of_screening(
        cls,
        ranked: Sequence[Screened],
        config: ProxyConfig,
        costs: Sequence[Mapping[str, float]] | None = None,
        **others: Any,
    ) -> SearchResult:
        """From what was screened, best first, with what each costs."""
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
                costs={} if costs is None else costs[place - 1],
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
        ranked = rank(records)
        found = [_of_record(place, record) for place, record in enumerate(ranked, start=1)]
        order = tuple(sorted(range(1, len(ranked) + 1), key=lambda place: ranked[place - 1].sequence))
        return cls(tuple(found), order=order, **others)


def _of_record(place: int, record: TrialRecord) -> Found:
    genotype = Genotype.from_dict(record.genotype) if record.genotype else None
    target = TargetConfig(**record.config["target"]) if record.config.get("target") else None
    return Found(
        place,
        record.score or 0.0,
        record.components,
        record.parameters,
        genotype,
        SpaceConfig(**record.config.get("space", {})),
        trial=record.sequence,
        target=target,
        costs={}
        if (record.score or 0.0) <= DEAD
        else {**record.components, **record_costs(genotype, target, record.components)},
    )
