"""Life cycle of the strategies: what NNI's own keep, with spaces of every kind of choice and an engine in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import nni
import pytest
from nni.mutable import Categorical, ExpressionConstraint, MutableList, Numerical
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.space import BaseModelSpace, SimplifiedModelSpace, current_model, model_context

from nni_cssnas.bridge.strategies import TPE, TunerStrategy
from nni_cssnas.tuners.hyperopt import Hyperopt

MAKERS: dict[str, Callable[[], TunerStrategy]] = {
    "TPE": lambda: TPE(seed=0),
    "Hyperopt": lambda: TunerStrategy(Hyperopt(seed=0, unique=True)),
}


@nni.trace
class Numbers(BaseModelSpace):  # type: ignore[misc]
    """A space whose architectures are sums of the numbers that were chosen."""

    def __init__(self, leaves: list[Any]) -> None:
        self.leaves = MutableList(leaves)
        arch = current_model()
        self.chosen = None if arch is None else {str(label): arch[label] for label in arch}

    def leaf_mutables(self, is_leaf: Any) -> Any:
        yield from self.leaves.leaf_mutables(is_leaf)

    def check_contains(self, sample: Any) -> Any:
        return next(filter(None, (leaf.check_contains(sample) for leaf in self.leaves)), None)

    def freeze(self, sample: Any) -> Any:
        with model_context(sample):
            return Numbers(self.leaves)


def total(model: Any) -> None:
    nni.report_final_result(float(model.chosen["a"] + model.chosen["b"]))


def leaves(kind: str) -> list[Any]:
    if kind == "numbers":  # 1.5, 2.25, 3 and 1 (0.75 cut); 4 to 7
        return [Numerical(1, 3, quantize=0.75, label="a"), Numerical(4, 7, quantize=1, label="b")]
    a, b = Categorical([1, 2, 3], label="a"), Categorical([4, 5, 6, 7], label="b")
    return [a, b, ExpressionConstraint((a + b) % 2 == 1, label="odd")] if kind == "constraint" else [a, b]


SIZES = {"choices": 12, "constraint": 6, "numbers": 16}


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_all_is_found_and_a_loaded_state_repeats_nothing(make: Callable[[], TunerStrategy], kind: str) -> None:
    space = SimplifiedModelSpace.from_model(Numbers(leaves(kind)), FunctionalEvaluator(total))
    engine = SequentialExecutionEngine(max_model_count=30)
    first = make()
    first(space, engine)
    models = list(engine.list_models())
    assert len(models) == SIZES[kind]
    assert next(first.list_models()).metric == (9.0 if kind == "constraint" else 10.0)
    state = json.loads(json.dumps(first.state_dict()))
    second = make()
    second.load_state_dict(state)  # before it knows the space, as NNI's strategies allow
    # A constraint's rejections are in the first one's history as failures; a state has them too.
    assert second.state_dict() == {"history": [tuple(item) for item in state["history"] if item[1]]}
    second(space, engine)
    assert len(list(engine.list_models())) == SIZES[kind]


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_state_may_be_loaded_before_or_after_initialize(make: Callable[[], TunerStrategy]) -> None:
    space = SimplifiedModelSpace.from_model(Numbers(leaves("choices")), FunctionalEvaluator(total))
    first = make()
    first(space, SequentialExecutionEngine(max_model_count=5))
    state = first.state_dict()
    found = []
    for early in (True, False):
        strategy, engine = make(), SequentialExecutionEngine(max_model_count=4)
        if early:
            strategy.load_state_dict(state)
        strategy.initialize(space, engine)
        if not early:
            strategy.load_state_dict(state)
        strategy.run()
        found.append([model.sample for model in engine.list_models()])
    assert found[0] == found[1]
    assert len(found[0]) == 4
    known = [item[0] for item in state["history"]]
    assert not [sample for sample in found[0] if dict(sample) in known]
