"""What the documents say works: every block of YAML, Python and shell, every path and every link."""

from __future__ import annotations

import argparse
import ast
import glob
import importlib
import inspect
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from nni_cssnas.bridge.experiment_file import check_experiment
from nni_cssnas.cli import app
from nni_cssnas.config import ProxyConfig
from nni_cssnas.genotype import Genotype

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("experiments/*/README.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
]
REPOSITORY = re.compile(
    r"https://(?:github\.com/nni-cssnas/nni-cssnas/(?:blob|tree)|raw\.githubusercontent\.com/nni-cssnas/nni-cssnas)/main/"
)
"""Before the path of a file of this project, in a link that works from anywhere."""

USERS = ("photos", "labelled", "data.npz", "/path/to", "nas-bench-macro_cifar10.json")
"""Files and folders that are the reader's own in the documents."""

EXPERIMENT = ("my-search/experiment.yml", "my-search/proxy.yml", "my-search/images")
"""What docs/how-to/own-images.md makes, which the other pages go on with."""

OUTPUTS = ("-o", "--output", "--out", "--pictures")

# ---- reading ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A fenced block, or an indented one, whose language is shell in these documents."""

    document: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def blocks_of(document: Path) -> Iterator[Block]:
    lines = document.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        start = number
        if fence := re.fullmatch(r"(\s*)```(\w*)", lines[number]):
            number += 1
            while lines[number].strip() != "```":
                number += 1
            text = "\n".join(line.removeprefix(fence[1]) for line in lines[start + 1 : number])
            yield Block(document, start + 2, fence[2], text + "\n")
        elif lines[number].startswith("    ") and not lines[max(0, number - 1)].strip():
            while number + 1 < len(lines) and lines[number + 1].startswith("    "):
                number += 1
            yield Block(document, start + 1, "bash", textwrap.dedent("\n".join(lines[start : number + 1])) + "\n")
        number += 1


BLOCKS = [block for document in DOCUMENTS for block in blocks_of(document)]


def of(*languages: str) -> pytest.MarkDecorator:
    chosen = [block for block in BLOCKS if block.language in languages]
    return pytest.mark.parametrize("block", chosen, ids=str)


def test_the_documents_have_blocks_of_known_languages() -> None:
    languages = [block.language for block in BLOCKS]
    assert set(languages) <= {"yaml", "python", "bash", "bibtex", ""}, "a block of a language that no test here reads"
    assert min(languages.count("yaml"), languages.count("python"), languages.count("bash")) > 3


# ---- YAML ---------------------------------------------------------------------------------------------


def check_as_experiment(settings: Mapping[str, Any], folder: Path) -> None:
    """These keys of ``experiment.yml`` in place of the quickstart's."""
    shutil.copytree(ROOT / "experiments" / "quickstart", folder)
    whole = yaml.safe_load((folder / "experiment.yml").read_text())
    if "advisor" in settings:
        del whole["tuner"]
    (folder / "experiment.yml").write_text(yaml.safe_dump(whole | dict(settings)))
    arguments = settings.get("assessor", {}).get("classArgs", {})
    if "epoch_num" in arguments:  # "as in proxy.yml", the document says
        proxy = yaml.safe_load((folder / "proxy.yml").read_text())
        proxy["contrastive"] = proxy.get("contrastive", {}) | {"epochs": arguments["epoch_num"], "criterion": "drop"}
        (folder / "proxy.yml").write_text(yaml.safe_dump(proxy))
    assert check_experiment(folder / "experiment.yml").trials == whole["maxTrialNumber"]


@of("yaml")
def test_yaml_is_accepted(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "id_ed25519").write_text("the reader's own")
    settings = yaml.safe_load(block.text)
    if set(settings) <= set(ProxyConfig.model_fields) | {"preset"}:
        (tmp_path / "proxy.yml").write_text(block.text)
        ProxyConfig.load(tmp_path / "proxy.yml")
    else:
        check_as_experiment(settings, tmp_path / "experiment")


TUNERS = sorted(
    {
        code
        for document in DOCUMENTS
        for code in re.findall(r"`(tuner: \{[^`]*\})`", document.read_text(encoding="utf-8"))
    }
)


@pytest.mark.parametrize("code", TUNERS)
def test_a_tuner_in_the_text_is_accepted(code: str, tmp_path: Path) -> None:
    settings = yaml.safe_load(code)
    names = {}
    for path in (ROOT / "nni_cssnas" / "tuners").glob("*.yml"):
        for algorithm in yaml.safe_load(path.read_text())["algorithms"]:
            names[algorithm["builtinName"]] = algorithm["className"]
    if (name := settings["tuner"].get("name")) in names:  # after `nni-cssnas register`: what the name stands for
        settings = {"tuner": {"className": names[name], "codeDirectory": "."}}
    check_as_experiment(settings, tmp_path / "experiment")


# ---- Python -------------------------------------------------------------------------------------------


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which ``experiments/`` lies, as in a checkout, and a genotype that a search found."""
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    (tmp_path / "genotype.json").write_text(Genotype.parse("DARTS_V2").to_json())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def my_space() -> type[Any]:
    """The reader's own space."""
    import torch
    from nni.nas.nn.pytorch import LayerChoice, ModelSpace

    class MySpace(ModelSpace):
        def __init__(self, width: int) -> None:
            super().__init__()
            convs = [torch.nn.Conv2d(3, width, kernel, padding=kernel // 2) for kernel in (1, 3)]
            self.conv = LayerChoice(convs, label="conv")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            features: torch.Tensor = self.conv(x)
            return features

    return MySpace


RESULTS = {
    "screen": "nni_cssnas.search.result:SearchResult",
    "run": "nni_cssnas.search.result:SearchResult",
    "best": "nni_cssnas.search.result:SearchResult",
    "retrain": "nni_cssnas.training.result:RetrainResult",
    "compare": "nni_cssnas.verbs:CompareResult",
    "probe": "nni_cssnas.verbs:ProbeResults",
    "export": "nni_cssnas.verbs:ExportResult",
    "report": "builtins:list",
}
"""The verbs, and what each gives. The documents call them on the reader's own images, with hours of work: here their
arguments are held against their signatures, and what is asked of a result against its class. The notebook runs them."""

STARTS = ("run", "resume", "stop", "export_top_models")
"""What starts or asks a real experiment; other tests do. Here the arguments are held against the signature."""


def starts(statement: ast.stmt) -> bool:
    return any(isinstance(node, ast.Attribute) and node.attr in STARTS for node in ast.walk(statement))


def bind(statement: ast.stmt, names: Mapping[str, Any]) -> int:
    """Hold the calls of methods of known objects against their signatures; gives how many there were."""
    bound = 0
    for node in ast.walk(statement):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
        ):
            method = getattr(names[node.func.value.id], node.func.attr)
            inspect.signature(method).bind(*node.args, **{str(word.arg): word.value for word in node.keywords})
            bound += 1
    return bound


def verb_of(statement: ast.stmt) -> str | None:
    """The verb of ``nni_cssnas`` that a statement calls."""
    for node in ast.walk(statement):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "nni_cssnas"
            and node.attr in RESULTS
        ):
            return node.attr
    return None


def given(statement: ast.stmt, results: dict[str, type[Any]]) -> bool:
    """Whether a statement calls a verb, or asks something of a verb's result; both are checked, and neither is run."""
    used = [
        node
        for node in ast.walk(statement)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in results
    ]
    for node in used:
        assert isinstance(node.value, ast.Name)
        kind = results[node.value.id]
        known = {*dir(kind), *getattr(kind, "__dataclass_fields__", ())}
        assert node.attr in known, f"{kind.__name__} has no {node.attr}"
    verb = verb_of(statement)
    if verb is not None:
        import nni_cssnas

        assert bind(statement, {"nni_cssnas": nni_cssnas}) == 1, ast.unparse(statement)
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            module, _, name = RESULTS[verb].partition(":")
            results[statement.targets[0].id] = getattr(importlib.import_module(module), name)
    return bool(used) or verb is not None


@of("python")
def test_python_runs(block: Block, workplace: Path) -> None:
    results: dict[str, type[Any]] = {}
    names: dict[str, Any] = {"__name__": "__main__", "MySpace": my_space()}
    body: list[ast.stmt] = []
    for statement in ast.parse(block.text).body:
        guarded = isinstance(statement, ast.If) and "__main__" in ast.unparse(statement.test)
        body += statement.body if guarded and isinstance(statement, ast.If) else [statement]
    for statement in body:
        if given(statement, results):
            continue
        if starts(statement):
            assert bind(statement, names) > 0, ast.unparse(statement)
        else:
            exec(compile(ast.Module([statement], []), str(block), "exec"), names)
    for name, value in list(names.items()):
        if name.startswith("Test") and "make_space" in vars(value):
            assert value().make_space().simplify()


def test_a_wrong_argument_of_a_started_experiment_is_found() -> None:
    class Experiment:
        def run(self, port: int) -> None:
            raise AssertionError("started")

    (statement,) = ast.parse("experiment.run(prot=1)").body
    with pytest.raises(TypeError):
        bind(statement, {"experiment": Experiment()})


def test_a_wrong_argument_of_a_verb_and_a_wrong_name_of_its_result_are_found() -> None:
    results: dict[str, type[Any]] = {}
    right, wrong, asked, unknown = ast.parse(
        "found = nni_cssnas.screen('photos', num=3)\n"
        "nni_cssnas.screen('photos', nmu=3)\n"
        "found.best.score\n"
        "print(found.bets)"
    ).body
    assert given(right, results)
    assert given(asked, results)
    with pytest.raises(TypeError):
        given(wrong, results)
    with pytest.raises(AssertionError, match="SearchResult has no bets"):
        given(unknown, results)


# ---- shell --------------------------------------------------------------------------------------------

COMMANDS = ("nni-cssnas", "nnictl", "python", "pip", "make", "cp", "ln", "git", "cd", "mkdocs", "pre-commit", "ssh")
RECORD = "#!{bash}\nprintf '%s\\x1f' \"${{0##*/}}\" \"$@\" >> {log}\nprintf '\\x1e' >> {log}\n"


def commands_of(block: Block, folder: Path) -> list[list[str]]:
    """What bash starts for a block: every program is one that only writes its arguments down."""
    log = folder / "log"
    log.write_text("")
    bash = shutil.which("bash")
    for place in (folder / "bin", folder / ".venv" / "bin"):
        place.mkdir(parents=True, exist_ok=True)
        for name in COMMANDS:
            (place / name).write_text(RECORD.format(bash=bash, log=shlex.quote(str(log))))
            (place / name).chmod(0o755)
        (place / "activate").write_text("")
    text = "cd() { command -p true; }\n" + re.sub(r"\bPYTHON -m", "python -m", block.text)
    done = subprocess.run(
        [str(bash), "-eu", "-c", text],
        cwd=folder,
        env={"PATH": str(folder / "bin"), "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{block}: {done.stderr}"
    return [record.split("\x1f")[:-1] for record in log.read_text().split("\x1e")[:-1]]


class ParsedError(Exception):
    """The arguments were accepted."""


def parse_only(monkeypatch: pytest.MonkeyPatch, main: Callable[[], Any]) -> None:
    """Run ``main`` up to the end of its argument parser; whatever is refused there exits."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        original(self, args, namespace)
        raise ParsedError

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        with pytest.raises(ParsedError):
            main()


def check_nni_cssnas(words: Sequence[str]) -> None:
    group: Any = typer.main.get_command(app)
    assert words, "nni-cssnas without a command"
    if words[0].startswith("-"):
        names = {name for parameter in group.params for name in parameter.opts} | {"--help"}
        assert words[0] in names, f"nni-cssnas has no option {words[0]}"
        return
    assert words[0] in group.commands, f"nni-cssnas has no command {words[0]}"
    group.commands[words[0]].make_context(words[0], list(words[1:]))


def check_nnictl(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from nni.tools.nnictl import nnictl

    monkeypatch.setattr(sys, "argv", ["nnictl", *words])
    parse_only(monkeypatch, nnictl.parse_args)


def check_python(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if words[0] == "-m":
        assert words[1] in ("venv", "pip", "pytest", "nni_cssnas", "nni_cssnas.trial"), f"python -m {words[1]}"
        return
    script = ROOT / words[0]
    assert script.is_file(), f"there is no {words[0]}"
    monkeypatch.syspath_prepend(str(script.parent))
    module = importlib.import_module(script.stem)
    parse_only(monkeypatch, lambda: module.main(list(words[1:])))


def check_pip(words: Sequence[str]) -> None:
    assert words[0] == "install"
    extras = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    for listed in re.findall(r"\[([\w,]+)\]", " ".join(words)):
        for extra in listed.split(","):
            assert re.search(rf"^{extra} = ", extras, re.MULTILINE), f"there is no extra {extra}"


def check_make(words: Sequence[str]) -> None:
    for target in (word for word in words if "=" not in word):
        assert re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(), re.MULTILINE), (
            f"no target {target}"
        )


def written(words: Sequence[str]) -> list[str]:
    """What a command makes, as the document names it."""
    program, *rest = words
    made = [rest[index + 1] for index, word in enumerate(rest[:-1]) if word in OUTPUTS]
    if program in ("cp", "ln"):
        made.append(rest[-1])
    if rest[:1] == ["init"]:
        made.append(rest[1])
    if rest[:1] == ["retrain"] and not made:
        made.append("retrained")
    return made


def named(words: Sequence[str]) -> Iterator[str]:
    """What in a command looks like the path of a file."""
    for index, word in enumerate(words[1:], start=1):
        if words[index - 1] in OUTPUTS or word.startswith("-") or re.search(r"[\s{}=]", word) or ":" in word:
            continue
        if "/" in word or re.search(r"\.(yml|json|npz|gz|csv|pt|py|html|db)$", word):
            yield word


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_shell_lines_are_accepted(document: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    for block in blocks_of(document):
        if block.language != "bash":
            continue
        for words in commands_of(block, workplace):
            program, *rest = words
            if program == "nni-cssnas":
                check_nni_cssnas(rest)
            elif program == "nnictl":
                check_nnictl(rest, monkeypatch)
            elif program == "python":
                check_python(rest, monkeypatch)
            elif program == "pip":
                check_pip(rest)
            elif program == "make":
                check_make(rest)
            for name in named(words):
                if name in written(words):
                    continue
                known = (*USERS, *EXPERIMENT, *made)
                there = bool(glob.glob(str(ROOT / name))) or any(
                    name == one or name.startswith(f"{one}/") for one in known
                )
                assert there, f"{block}: {name} is neither in the project nor made by an earlier line"
            made += written(words)


def test_a_wrong_option_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    check_nni_cssnas(["best", "ID", "--top", "3"])
    with pytest.raises(Exception, match="No such option"):
        check_nni_cssnas(["best", "ID", "--tpo", "3"])
    with pytest.raises(SystemExit):
        check_python(["experiments/benchmarks/toy.py", "--trails", "3"], monkeypatch)
    with pytest.raises(SystemExit):
        check_nnictl(["create", "--confg", "experiment.yml"], monkeypatch)
    with pytest.raises(AssertionError, match="no extra onyx"):
        check_pip(["install", "-e", ".[onyx]"])


def test_a_file_that_nothing_made_is_found() -> None:
    words = ["nni-cssnas", "export", "--weights", "retrained/best.pt", "-o", "network.py"]
    assert list(named(words)) == ["retrained/best.pt"]
    assert written(words) == ["network.py"]
    assert written(["nni-cssnas", "retrain", "best"]) == ["retrained"]


# ---- paths and links ----------------------------------------------------------------------------------


def anchors(document: Path) -> set[str]:
    """GitHub's anchors of the headings outside of code."""
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        own = REPOSITORY.match(target)
        if re.match(r"https?:|mailto:", target) and not own:
            continue
        path, _, anchor = target.removeprefix(own[0] if own else "").partition("#")
        leads_to = (ROOT if own else document.parent) / path if path else document
        assert leads_to.exists(), f"the link to {target}"
        assert not anchor or anchor in anchors(leads_to), f"the link to {target}"
    for name in re.findall(r"`((?:experiments|tests|docs|nni_cssnas)/[\w./*-]+)`", text):
        assert list(ROOT.glob(name.rstrip("/"))), f"the path {name}"
