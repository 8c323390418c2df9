from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from nni.tools.package_utils.config_manager import get_all_algo_meta

from nni_cssnas.bridge import experiment_file
from nni_cssnas.bridge.experiment_file import check_experiment, count_gpus
from nni_cssnas.cli import experiments, watching
from nni_cssnas.errors import ConfigError
from nni_cssnas.judge.proxy import Proxy

GOOD: dict[str, Any] = {
    "searchSpaceFile": "search_space.json",
    "trialCommand": "python -m nni_cssnas.trial proxy.yml",
    "trialCodeDirectory": ".",
    "trialConcurrency": 2,
    "maxTrialNumber": 16,
    "tuner": {"className": "nni_cssnas.tuners.tpe.Tpe", "codeDirectory": ".", "classArgs": {"seed": 0}},
    "trainingService": {"platform": "local"},
}
CHOICES = {"op": {"_type": "choice", "_value": ["a", "b"]}, "width": {"_type": "choice", "_value": [8, 16]}}

Check = Callable[..., "int | None"]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Writes an experiment with the given settings in place of the good ones, and checks it."""

    def run(choices: Any = CHOICES, proxy: str = "score: contrastive", **settings: Any) -> int | None:
        merged = {key: value for key, value in {**GOOD, **settings}.items() if value is not None}
        (tmp_path / "experiment.yml").write_text(yaml.safe_dump(merged))
        (tmp_path / "search_space.json").write_text(choices if isinstance(choices, str) else json.dumps(choices))
        (tmp_path / "proxy.yml").write_text(proxy)
        return check_experiment(tmp_path / "experiment.yml").trials

    return run


@pytest.mark.parametrize(
    "command",
    [
        "python -m nni_cssnas.trial proxy.yml 2>&1 | tee log",
        "python -m nni_cssnas.trial && echo done",
        "python -m nni_cssnas.trial proxy.yml; echo done",
        "python -m nni_cssnas.trial 2> log",
        "python -m nni_cssnas.trial --isolated",
        "python -m nni_cssnas.trial --isolated proxy.yml",
        "python -mnni_cssnas.trial 'proxy.yml' # a note",
        "(cd . && python -m nni_cssnas.trial proxy.yml)",
        "bash -c 'python -m nni_cssnas.trial proxy.yml'",
    ],
)
def test_the_proxy_of_a_shells_command(command: str, check: Check, tmp_path: Path) -> None:
    check(trialCommand=command)
    proxy = check_experiment(tmp_path / "experiment.yml").proxy
    assert proxy is not None
    assert proxy.score == "contrastive"


def test_a_good_experiment_is_accepted(check: Check) -> None:
    assert check() == 16
    assert check(maxTrialNumber=None) is None
    assert check(tuner={"class_name": "nni_cssnas.tuners.tpe.Tpe", "code_directory": "."}) == 16


MAXIMIZE = r"optimize_mode of tuner {} is {}.* write classArgs: {{optimize_mode: maximize}}"
# What NNI's own do as they come, and with optimize_mode: maximize. None: accepted.
NNIS: dict[str, tuple[str | None, str | None]] = {
    "PPO": ("knows only the layer_choice", "knows only the layer_choice"),
    "SMAC": ("cannot be imported: No module named 'smac'; pip install 'nni.SMAC.'", "cannot be imported"),
    "TPE": (MAXIMIZE.format("TPE", "'minimize' by default"), None),
    "TPE_legacy": (MAXIMIZE.format("TPE_legacy", "'minimize' by default"), None),
    "Random": (None, None),
    "Anneal": (MAXIMIZE.format("Anneal", "'minimize' by default"), None),
    "Evolution": (None, None),
    "Batch": (None, "unknown key 'optimize_mode' in classArgs of tuner Batch; it takes none"),
    "GridSearch": (None, None),
    "NetworkMorphism": ("proposes networks of its own", "proposes networks of its own"),
    "Metis": ("tuner Metis searches only among numbers, but choice op has the value 'a'", "only among numbers"),
    "GP": ("tuner GP searches only among numbers", "only among numbers"),
    "PBT": ("changes settings of one training", "changes settings of one training"),
    "RegularizedEvolutionTuner": ("knows only the layer_choice", "knows only the layer_choice"),
    "DNGO": ("cannot be imported: No module named 'pybnn'", "cannot be imported"),
    "Hyperband": ("NNI's own Hyperband ends at the first metric", "NNI's own Hyperband ends"),
    "BOHB": ("NNI's own BOHB ends at the first metric", "NNI's own BOHB ends"),
    "Medianstop": (None, None),
    "Curvefitting": (None, "unknown key 'optimize_mode' in classArgs of assessor Curvefitting"),
}


def test_the_table_has_all_that_nni_has() -> None:
    assert {meta.name for meta in get_all_algo_meta() if meta.is_builtin} == set(NNIS)


@pytest.mark.parametrize("mode", [None, "maximize", "minimize"])
@pytest.mark.parametrize("name", NNIS)
def test_what_nnis_own_algorithms_do(name: str, mode: str | None, check: Check) -> None:
    arguments = {} if mode is None else {"optimize_mode": mode}
    section = "assessor" if name in ("Medianstop", "Curvefitting") else "tuner"
    given = {"name": name, "classArgs": {**arguments, **({"epoch_num": 8} if name == "Curvefitting" else {})}}
    expected = NNIS[name][mode is not None]
    if mode == "minimize" and (name in ("Metis", "GP") or (expected is None and name not in ("Random", "GridSearch"))):
        expected = f"optimize_mode of {section} {name} is 'minimize', .* write classArgs: {{optimize_mode: maximize}}"
    if expected is None:
        assert check(**{section: given}) == 16
        return
    with pytest.raises(ConfigError, match=expected) as caught:
        check(**{section: given})
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["Metis", "GP"])
def test_tuners_of_numbers_may_search_among_numbers(name: str, check: Check) -> None:
    assert check(tuner={"name": name}, choices={"width": CHOICES["width"]}) == 16


def test_another_trial_may_be_minimised(check: Check) -> None:
    assert check(tuner={"name": "TPE"}, trialCommand="python mine.py") == 16


@pytest.mark.parametrize(
    ("section", "given", "message"),
    [
        ("tuner", {"name": "TPEE"}, "name of the tuner is 'TPEE', which NNI does not know; did you mean 'TPE'"),
        ("tuner", {"name": "Medianstop"}, "name of the tuner is 'Medianstop', which NNI does not know; known: 'Anneal'"),
        ("tuner", {}, "name of the tuner is 'None'"),
        ("tuner", "TPE", "tuner is 'TPE'; write tuner: {className"),
        ("tuner", {"name": "TPE", "classArgs": ["x"]}, r"classArgs of the tuner is \['x'\]; it must be a mapping"),
        ("tuner", {"name": "TPE", "classArgs": {"sed": 1}}, "unknown key 'sed' in classArgs of tuner TPE; did you mean 'seed'"),
        ("tuner", {"name": "TPE", "classArgs": {"optimize_mode": "max"}}, "is 'max', but"),
        ("assessor", {"name": "Medianstopp"}, "did you mean 'Medianstop'"),
        ("tuner", {"className": "nni_cssnas.tuners.tpe.Tpe", "codeDirectory": "gone"}, "codeDirectory .* 'gone', and .* is no folder"),
        ("tuner", {"className": "nni_cssnas.tuners.tpe.Tpe", "classArgs": {"optimize_mode": "minimize"}}, "is 'minimize'"),
        ("tuner", {"className": "nni_cssnas.tuners.hyperopt.Hyperopt", "classArgs": {"optimize_mode": "minimize"}}, "is 'minimize'"),
        ("advisor", {"className": "nni_cssnas.tuners.hyperband.Hyperband", "classArgs": {"optimize_mode": "minimize"}}, "is 'minimize'"),
        ("advisor", {"className": "nni_cssnas.tuners.bohb.Bohb", "classArgs": {"optimize_mode": "minimize"}}, "is 'minimize'"),
        ("tuner", {"className": "nni.algorithms.hpo.tpe_tuner.TpeTuner", "codeDirectory": "."}, "is 'minimize' by default"),
        ("tuner", {"className": "no_such_module_a.Tuner", "codeDirectory": "."}, "cannot be imported: No module named 'no_such_module_a'"),
        ("tuner", {"className": "nni.algorithms.hpo.tpe_tuner.TPETuner", "codeDirectory": "."}, "has no class 'TPETuner'; did you mean 'TpeTuner'"),
        ("tuner", {"className": "Tuner", "codeDirectory": "."}, "className is 'Tuner'; it must be module.Class"),
    ],
)  # fmt: skip
def test_algorithms_that_cannot_be(section: str, given: Any, message: str, check: Check) -> None:
    settings: dict[str, Any] = {section: given}
    if section == "advisor":
        settings["tuner"] = None
    with pytest.raises(ConfigError, match=message) as caught:
        check(**settings)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("score", "objectives", "message"),
    [
        ("untrained", {"score": "maximize", "params": "minimize", "latency_ms": "minimize"}, None),
        ("untrained", {"score": "maximize", "effective_macs": "minimize"}, None),
        ("contrastive", {"score": "maximize", "uniformity": "minimize"}, None),
        ("contrastive\npreset: cpu", {"score": "maximize", "held_out": "minimize"}, None),
        ("contrastive\ncontrastive: {held_out: 0}", {"score": "maximize", "held_out": "minimize"}, "objectives names 'held_out', which no trial reports"),
        ("untrained", {"score": "maximize", "latency": "minimize"}, "objectives names 'latency', which no trial reports; did you mean 'latency_ms'"),
        ("untrained", {"score": "maximize", "uniformity": "minimize"}, "objectives names 'uniformity', which no trial reports"),
        ("contrastive", {"score": "maximize", "depth": "minimize"}, "objectives names 'depth', which no trial reports"),
        ("untrained", {"score": "minimize", "macs": "minimize"}, "objectives: score is 'minimize', but the score of a trial is better when it is larger"),
    ],
)  # fmt: skip
def test_objectives_are_what_a_trial_reports(score: str, objectives: Any, message: str | None, check: Check) -> None:
    given = {"className": "nni_cssnas.tuners.tpe.Tpe", "codeDirectory": ".", "classArgs": {"objectives": objectives}}
    if message is None:
        assert check(tuner=given, proxy=f"score: {score}") == 16
        return
    with pytest.raises(ConfigError, match=message) as caught:
        check(tuner=given, proxy=f"score: {score}")
    assert len(str(caught.value).splitlines()) == 1


OWN = """
class Plain:
    def __init__(self, depth, optimize_mode="minimize"): ...
class Free:
    def __init__(self, **arguments): ...
class Required:
    def __init__(self, optimize_mode): ...
"""


def test_a_tuner_of_the_users_own(check: Check, tmp_path: Path) -> None:
    (tmp_path / "own_tuner_a.py").write_text(OWN)
    (tmp_path / "own_tuner_b.py").write_text("raise SystemExit('no licence')")
    path = list(sys.path)

    def tuner(name: str, **arguments: Any) -> dict[str, Any]:
        return {"tuner": {"className": name, "codeDirectory": ".", "classArgs": arguments}}

    for name, arguments, message in (
        ("own_tuner_a.Plain", {"depth": 1}, "optimize_mode of tuner own_tuner_a.Plain is 'minimize' by default"),
        ("own_tuner_a.Plain", {"optimize_mode": "maximize"}, "lacks 'depth', which has no default"),
        ("own_tuner_a.Required", {}, "is missing, but the score .* write classArgs: {optimize_mode: maximize}"),
        ("own_tuner_b.Tuner", {}, "cannot be imported: no licence"),
    ):
        with pytest.raises(ConfigError, match=message):
            check(**tuner(name, **arguments))
    assert check(**tuner("own_tuner_a.Plain", depth=1, optimize_mode="maximize")) == 16
    assert check(**tuner("own_tuner_a.Free", anything=1)) == 16
    assert sys.path == path


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trialConcurrency": 0}, "trialConcurrency is 0; it must be a whole number from 1"),
        ({"trialConcurrency": None}, "trialConcurrency is missing"),
        ({"trialConcurrency": True}, "trialConcurrency is True"),
        ({"maxTrialNumber": "many"}, "maxTrialNumber is 'many'"),
        ({"maxExperimentDuration": "1 week"}, "maxExperimentDuration is '1 week'; it must be a time as 90s"),
        ({"maxTrialDuration": 0}, "maxTrialDuration is 0"),
        ({"logLevel": "warn"}, "logLevel is 'warn'; did you mean 'warning'"),
        ({"searchSpaceFile": "gone.json"}, "searchSpaceFile: cannot read .*gone.json: No such file"),
        ({"searchSpaceFile": None}, "searchSpaceFile is missing; write it with: nni-cssnas space"),
        ({"trialCodeDirectory": "gone"}, "trialCodeDirectory is 'gone', and .* is no folder"),
        ({"trialCommand": "python -m nni_cssnas.trial 'proxy.yml"}, "trialCommand is .*No closing quotation"),
        ({"experimentWorkingDirectory": "proxy.yml"}, "experimentWorkingDirectory is 'proxy.yml', but .* is a file"),
        ({"experimentWorkingDirectory": "proxy.yml/deep/er"}, "proxy.yml is a file; name a folder"),
        ({"trialConcurency": 3}, "does not have field.* trialconcurency; did you mean 'trialConcurrency'"),
        ({"trialCommand": None}, "NNI refuses it: .*trial_command"),
        ({"trainingService": {"platform": "lokal"}}, "NNI refuses it"),
        ({"tuner": None}, "NNI refuses it: .*tuner must be set"),
        ({"trialCodeDirectory": "~nobody-of-that-name/x"}, "trialCodeDirectory is '~nobody"),
        ({"experimentWorkingDirectory": "x" * 3000}, "experimentWorkingDirectory is .*too long"),
        ({"searchSpaceFile": "a\0b"}, "searchSpaceFile"),
        ({"maxExperimentDuration": [1]}, r"maxExperimentDuration is \[1\]"),
        ({"tuner": {**GOOD["tuner"], "codeDirectory": "~nobody-of-that-name"}}, "codeDirectory of the tuner is"),
        ({"tuner": {**GOOD["tuner"], "classArgs": {1: 2}}}, "its key 1 is not a text"),
        ({"tuner": {**GOOD["tuner"], "classArgs": {"screen": 3}}}, "screen is 3; it must be a mapping"),
        ({"advisor": {"className": "nni_cssnas.tuners.hyperband.Hyperband"}}, "You should only set"),
    ],
)  # fmt: skip
def test_settings_that_nni_answers_with_a_traceback(settings: dict[str, Any], message: str, check: Check) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check(**settings)
    assert len(str(caught.value).splitlines()) == 1


def test_a_tuner_that_passes_its_arguments_on(check: Check, tmp_path: Path) -> None:
    (tmp_path / "passing_tuner.py").write_text("class Passing:\n    def __init__(self, **arguments): pass\n")
    tuner: dict[str, Any] = {"className": "passing_tuner.Passing", "codeDirectory": "."}
    check(tuner=tuner)
    check(tuner={**tuner, "classArgs": {"optimize_mode": "maximize"}})
    with pytest.raises(ConfigError, match=r"optimize_mode of tuner .* is 'minimize'"):
        check(tuner={**tuner, "classArgs": {"optimize_mode": "minimize"}})


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ("{", "is neither JSON nor YAML"),
        ("[]", "search_space.json is a list, not a mapping"),
        ({}, "the search space is empty"),
        ({"x": 3}, "choice x of search_space.json is 3; it must be a mapping"),
        ({"x": {"_type": "choice", "_value": []}}, r"choice x of search_space.json has _value \[\]"),
        ({"x": {"_type": "chioce", "_value": [1]}}, "choice x .* has _type 'chioce'; did you mean 'choice'"),
        ({"x": {"_type": "randint", "_value": [3, 3]}}, "choice x .*must be larger than the first"),
        ({"x": {"_type": "uniform", "_value": [3, 2]}}, "choice x .*must not be smaller"),
        ({"x": {"_type": "loguniform", "_value": [0, 2]}}, "choice x .*must be more than 0"),
        ({"x": {"_type": "uniform", "_value": [3, 3]}}, None),
        ({"x": {"_type": "qnormal", "_value": [3, 0, 1]}}, None),
    ],
)
def test_search_spaces(choices: Any, message: str | None, check: Check) -> None:
    if message is None:
        assert check(choices=choices) == 16
        return
    with pytest.raises(ConfigError, match=message) as caught:
        check(choices=choices)
    assert len(str(caught.value).splitlines()) == 1


ACTIVE = {"platform": "local", "useActiveGpu": True}


@pytest.mark.parametrize(
    ("found", "settings", "message"),
    [
        (0, {"trialGpuNumber": 1}, "trialGpuNumber is 1, but no NVIDIA GPU was found .* set trialGpuNumber: 0, .* device: cpu"),
        (0, {"trainingService": {**ACTIVE, "trialGpuNumber": 1}}, "trialGpuNumber is 1, but no NVIDIA GPU"),
        (0, {"trialGpuNumber": 0}, None),
        (1, {"trialGpuNumber": 4, "trainingService": ACTIVE}, "trialGpuNumber is 4, but only 1 was found .* at most 1"),
        (1, {"trialGpuNumber": 1}, "useActiveGpu is missing"),
        (1, {"trialGpuNumber": 1, "trainingService": ACTIVE}, None),
        (2, {"trialGpuNumber": 1, "trainingService": {**ACTIVE, "gpuIndices": "0,2"}}, "gpuIndices is '0,2'; .* from 0 to 1"),
        (2, {"trialGpuNumber": 1, "trainingService": {**ACTIVE, "gpuIndices": [1]}}, None),
        (2, {"trialGpuNumber": "all"}, "trialGpuNumber is 'all'; it must be a whole number"),
    ],
)  # fmt: skip
def test_gpus_that_are_asked_for(
    found: int, settings: dict[str, Any], message: str | None, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment_file, "count_gpus", lambda: found)
    if message is None:
        assert check(**settings) == 16
        return
    with pytest.raises(ConfigError, match=message):
        check(**settings)


def test_gpus_are_counted_as_the_driver_counts_them() -> None:
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
        expected = done.stdout.count("UUID: GPU") if done.returncode == 0 else 0
    except FileNotFoundError:
        expected = 0
    assert count_gpus() == expected


def test_the_form_of_nni_1(check: Check, tmp_path: Path) -> None:
    old = {
        "authorName": "a",
        "experimentName": "b",
        "trialConcurrency": 1,
        "maxTrialNum": 7,
        "trainingServicePlatform": "local",
        "searchSpacePath": "search_space.json",
        "trial": {"command": "python -m nni_cssnas.trial", "codeDir": "."},
        "tuner": {"builtinTunerName": "TPE"},
    }
    check()
    path = tmp_path / "old.yml"
    path.write_text(yaml.safe_dump(old))
    with pytest.raises(ConfigError, match="optimize_mode of tuner TPE is 'minimize' by default"):
        check_experiment(path)
    old["tuner"] = {"builtinTunerName": "TPE", "classArgs": {"optimize_mode": "maximize"}}
    path.write_text(yaml.safe_dump(old))
    assert check_experiment(path).trials == 7
    path.write_text(yaml.safe_dump({**old, "trial": {}, "trainingServicePlatform": "x"}))
    with pytest.raises(ConfigError, match="in the form of NNI 1"):
        check_experiment(path)


@pytest.mark.parametrize(
    "folder", sorted((Path(__file__).parents[2] / "experiments").glob("*/experiment.yml")), ids=str
)
def test_the_committed_experiments(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "id_ed25519").touch()  # NNI looks for the key of experiments/ssh
    monkeypatch.setattr(experiment_file, "count_gpus", lambda: 1)
    assert check_experiment(folder) is not None


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        ("tuner: {className: nni_cssnas.tuners.tpe.TPE}", "did you mean 'nni_cssnas.tuners.tpe.Tpe'"),
        ("tuner: {className: nni_cssnas.tuners.tpe.Tpe, classArgs: {sed: 1}}", "did you mean 'seed'"),
        ("tuner: {className: nni_cssnas.tuners.hyperopt.Hyperopt, classArgs: {gamma: 0}}", "gamma is 0"),
        ("tuner: {className: nni_cssnas.tuners.tpe.Tpe, classArgs: {screen: {candidates: 0}}}", "candidates is 0"),
        (
            "tuner: {className: nni_cssnas.tuners.tpe.Tpe, classArgs: {constraints: {max_params: 9, proxy: no.yml}}}",
            "constraints: proxy is 'no.yml', which is neither in .* nor in codeDirectory",
        ),
        (
            "advisor: {className: nni_cssnas.tuners.hyperband.Hyperband, classArgs: {R: 9, eta: 3}}",
            r"R 9 and eta 3 give candidates 1 epochs at first.*at least 2 epochs; change them",
        ),
        (
            "advisor: {className: nni_cssnas.tuners.bohb.Bohb, classArgs: {min_budget: 1, max_budget: 9}}",
            "min_budget 1, max_budget 9 and eta 3 give candidates 1 epochs at first",
        ),
        ("advisor: {className: nni_cssnas.tuners.bohb.Bohb, classArgs: {max_budget: 1}}", "max_budget is 1"),
        ("advisor: {name: Hyperband}", "NNI's own Hyperband ends at the first metric .*hyperband.Hyperband"),
        ("tuner: {name: BOHB}", "NNI's own BOHB ends .* advisor: {className: nni_cssnas.tuners.bohb.Bohb"),
        ("tuner: {className: nni_cssnas.tuners.bohb.Bohb}", "write it under advisor:, not under tuner:"),
        ("advisor: {className: nni_cssnas.tuners.hyperband.Hyperband, classArgs: {eta: 1}}", "eta is 1"),
        ("assessor: {className: nni_cssnas.tuners.curvefitting.Curvefitting, classArgs: {gap: 0}}", "gap is 0"),
        (
            "assessor: {className: nni_cssnas.tuners.curvefitting.Curvefitting}",
            "is 20, but trials train 8 .* epoch_num: 8",
        ),
        ("assessor: {name: Curvefitting, classArgs: {epoch_num: 9}}", "epoch_num of the assessor is 9"),
    ],
)
def test_a_wrong_tuner_is_refused_before_a_manager_is_started(algorithm: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "experiment.yml"
    path.write_text(f"trialCommand: python -m nni_cssnas.trial\nsearchSpaceFile: s.json\n{algorithm}\n")
    (tmp_path / "proxy.yml").write_text("score: contrastive\n")
    with pytest.raises(ConfigError, match=message):
        check_experiment(path)


@pytest.mark.parametrize(
    ("proxy", "assessor", "message"),
    [
        ("score: untrained", "Medianstop", "score is 'untrained', which trains nothing"),
        ("{score: contrastive, contrastive: {criterion: loss}}", "Curvefitting", "criterion is 'loss', .* Medianstop"),
        ("{score: contrastive, contrastive: {criterion: loss}}", "Medianstop", None),
    ],
)
def test_an_assessor_needs_results_that_it_can_judge(
    proxy: str, assessor: str, message: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "experiment.yml"
    path.write_text(
        f"trialCommand: python -m nni_cssnas.trial\nsearchSpaceFile: s.json\nassessor: {{name: {assessor}}}\n"
    )
    (tmp_path / "proxy.yml").write_text(f"{proxy}\n")
    if message is None:
        with pytest.raises(ConfigError, match="trialConcurrency is missing"):  # all before it is accepted
            check_experiment(path)
        return
    with pytest.raises(ConfigError, match=message):
        check_experiment(path)


def test_a_home_that_cannot_be_written_is_named(check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(
        ConfigError, match=r"its default is .*home/nni-experiments, but .*home is a file; name a folder"
    ):
        check()


def test_images_and_device_of_other_machines_are_not_looked_at_here(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Any] = []
    monkeypatch.setattr(Proxy, "rehearse", lambda self, tell, candidate: looked.append(candidate))
    monkeypatch.setattr(Proxy, "images", [])
    monkeypatch.setattr(watching, "follow", lambda start, **settings: None)
    # That it wants a password is told; with a key it would be asked (tests/integration/test_remote.py).
    machine = {"host": "192.0.2.1", "user": "somebody", "password": "x"}
    for service, expected in (({"platform": "remote", "machineList": [machine]}, 0), ({"platform": "local"}, 1)):
        check(proxy="images: {source: /on/another/machine}", trainingService=service, nniManagerIp="192.0.2.2")
        experiments.run(tmp_path / "experiment.yml", public=True)
        assert len(looked) == expected
