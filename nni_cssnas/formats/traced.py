"""The source of any network that torch.fx can follow, as a module that needs only torch."""

from __future__ import annotations

import inspect
import keyword
import re
from typing import Any

import torch
from torch import fx, nn

from nni_cssnas.base.modules import evaluation_mode
from nni_cssnas.errors import SpaceError

__all__ = ["traced_source"]


def traced_source(network: nn.Module, title: str, size: int) -> str:
    """Python source of a class ``Network`` with the parameters of ``network``, by the same names.

    What the network does in evaluation mode is followed once; layers of torch (batch norm, dropout) still know both
    modes, what is drawn or switched elsewhere (drop path, auxiliary heads) is as in evaluation.

    Parameters
    ----------
    network
        Any network of torch modules and functions.
    title
        What the module's docstring says of its origin.
    size
        Edge of the images in pixels.

    Raises
    ------
    SpaceError
        If its way depends on the values of the images, or it uses what torch alone does not have.
    """
    with evaluation_mode(network):
        try:
            graph = _Tracer().trace(network)
        except Exception as error:  # whatever a stranger's code raises when it is given a proxy
            raise SpaceError(
                f"the network cannot be written as Python, since torch.fx cannot follow it ({_first_line(error)}); "
                "use --format onnx, torchscript or state-dict"
            ) from error
    used = _used(graph)
    names: dict[fx.Node, str] = {}
    lines = []
    result = ""
    for node in graph.nodes:
        if node not in used:
            continue
        if node.op == "placeholder":
            names[node] = "images" if not names else _name(node)
            continue
        if node.op == "output":
            result = _written(node.args[0], names)
            continue
        names[node] = _name(node)
        lines.append(f"        {names[node]} = {_call(node, names)}")
    forward = [
        "    def forward(self, images):",
        "        layer = self.get_submodule",
        *lines,
        f"        return {result}",
    ]
    containers = [*_containers(network, "self", indent=2)]
    body = [
        "class Network(nn.Module):",
        f'    """Images (batch, 3, {size}, {size}) to {_gives(network, size)}."""',
        "",
        "    def __init__(self):",
        "        super().__init__()",
        *containers,
        "",
        *_shortened(forward),
    ]
    modules = [f"import {name}" for name in ("math", "operator") if any(f" {name}." in line for line in lines)]
    imports = "\n".join([*modules, *([""] if modules else []), "import torch", "from torch import nn"])
    return "\n\n\n".join([f'"""{title}\n"""\n\n{imports}', "\n".join(body), _main(size)]) + "\n"


class _Tracer(fx.Tracer):
    """Stops at layers of torch, and at subclasses that only add to them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _layer_class(m) is not None


def _layer_class(module: nn.Module) -> type[nn.Module] | None:
    """The class of torch whose forward the module has."""
    for kind in type(module).__mro__:
        if kind.__module__.startswith("torch.nn.modules") and kind not in (nn.Module, nn.Sequential):
            own = type(module).forward is kind.forward  # type: ignore[attr-defined]
            return kind if own and kind.__module__ != _CONTAINERS else None
    return None


_CONTAINERS = "torch.nn.modules.container"


def _used(graph: fx.Graph) -> set[fx.Node]:
    """What the output depends on; a forward may also ask for shapes that it does not use."""
    found: set[fx.Node] = set()
    waiting = [node for node in graph.nodes if node.op in ("output", "placeholder")]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def _containers(module: nn.Module, target: str, indent: int) -> list[str]:
    """Lines that make parameters, buffers and parts of a module, by their names."""
    space = "    " * indent
    lines = []
    for name, parameter in module.named_parameters(recurse=False):
        lines.append(
            f'{space}{target}.register_parameter("{name}", nn.Parameter(torch.zeros({list(parameter.shape)})))'
        )
    for name, buffer in module.named_buffers(recurse=False):
        kept = name not in module._non_persistent_buffers_set
        value = f"torch.zeros({list(buffer.shape)}, dtype={buffer.dtype})"
        if not kept:  # no state dict brings it
            value = f"torch.tensor({buffer.tolist()!r}, dtype={buffer.dtype})"
        lines.append(f'{space}{target}.register_buffer("{name}", {value}{"" if kept else ", persistent=False"})')
    for name, child in module.named_children():
        part = f"{target}.{name}" if name.isidentifier() and not keyword.iskeyword(name) else ""
        kind = _layer_class(child)
        made = _constructor(child, kind) if kind else "nn.Module()"
        if not kind and not list(child.parameters()) and not list(child.buffers()) and not _has_layers(child):
            continue
        if part:
            lines.append(f"{space}{part} = {made}")
        else:
            lines.append(f'{space}{target}.add_module("{name}", {made})')
            part = f'{target}.get_submodule("{name}")'
        if not kind:
            lines += _containers(child, part, indent)
    return lines


def _has_layers(module: nn.Module) -> bool:
    return any(_layer_class(part) for part in module.modules())


def _constructor(module: nn.Module, kind: type[nn.Module]) -> str:
    """``nn.Conv2d(3, 8, 3, bias=False)``: the arguments that are not the defaults, from the layer's attributes."""
    arguments = []
    positional = True
    for parameter in inspect.signature(kind.__init__).parameters.values():
        if parameter.name in ("self", "device", "dtype") or not hasattr(module, parameter.name):
            positional = positional and parameter.name == "self"
            continue
        value = getattr(module, parameter.name)
        if isinstance(parameter.default, bool) and not isinstance(value, bool):
            value = value is not None  # bias=True is kept as a tensor
        if parameter.default is not inspect.Parameter.empty and value == parameter.default:
            positional = False
            continue
        if isinstance(value, nn.Module) or callable(value):
            raise SpaceError(
                f"layer {kind.__name__} has the argument {parameter.name}={value!r}, which cannot be written; "
                "use --format onnx, torchscript or state-dict"
            )
        if isinstance(value, tuple) and len(set(value)) == 1 and len(value) == 2 and "Norm" not in kind.__name__:
            value = value[0]
        arguments.append(repr(value) if positional else f"{parameter.name}={value!r}")
    return f"nn.{kind.__name__}({', '.join(arguments)})"


def _name(node: fx.Node) -> str:
    name = re.sub(r"\W", "_", node.name)
    return f"{name}_" if keyword.iskeyword(name) or name in ("images", "layer", "torch", "nn", "self") else name


def _call(node: fx.Node, names: dict[fx.Node, str]) -> str:
    arguments = [_written(item, names) for item in node.args]
    arguments += [f"{name}={_written(item, names)}" for name, item in node.kwargs.items()]
    if node.op == "call_module":
        return f'layer("{node.target}")({", ".join(arguments)})'
    if node.op == "call_method":
        return f"{arguments[0]}.{node.target}({', '.join(arguments[1:])})"
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        return f'layer("{owner}").{name}' if owner else f"self.{name}"
    target: Any = node.target
    symbol = _OPERATORS.get(getattr(target, "__name__", ""))
    if target.__module__ == "_operator" and symbol and len(arguments) == 2:
        return f"{arguments[0]} {symbol} {arguments[1]}"
    if target.__module__ == "_operator" and target.__name__ == "getitem":
        return f"{arguments[0]}[{_index(node.args[1], names)}]"
    if target is getattr:
        return f"{arguments[0]}.{node.args[1]}"
    name = fx.node._get_qualified_name(target)  # type: ignore[attr-defined]
    if name.split(".")[0] not in ("torch", "math", "operator", "_operator"):
        raise SpaceError(
            f"the network calls {name}, which torch alone does not have; use --format onnx, torchscript or state-dict"
        )
    return f"{name.replace('_operator.', 'operator.')}({', '.join(arguments)})"


_OPERATORS = {"add": "+", "iadd": "+", "sub": "-", "mul": "*", "imul": "*", "truediv": "/", "floordiv": "//"}
_OPERATORS |= {"mod": "%", "matmul": "@", "pow": "**", "isub": "-", "eq": "==", "gt": ">", "lt": "<"}


def _written(value: Any, names: dict[fx.Node, str]) -> str:
    if isinstance(value, fx.Node):
        return names[value]
    if isinstance(value, tuple):
        items = ", ".join(_written(item, names) for item in value)
        return f"({items},)" if len(value) == 1 else f"({items})"
    if isinstance(value, list):
        return f"[{', '.join(_written(item, names) for item in value)}]"
    if isinstance(value, slice):
        parts = (value.start, value.stop, value.step)
        return f"slice({', '.join(_written(item, names) for item in parts)})"
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value) if isinstance(value, torch.dtype) else repr(str(value))
    if value is Ellipsis:
        return "..."
    return repr(value)


def _index(value: Any, names: dict[fx.Node, str]) -> str:
    """``:, 1:, 0`` as one writes it."""
    if not isinstance(value, (tuple, slice)):
        return _written(value, names)
    items = value if isinstance(value, tuple) else (value,)

    def one(item: Any) -> str:
        if not isinstance(item, slice):
            return _written(item, names)
        start, stop, step = (
            "" if part is None else _written(part, names) for part in (item.start, item.stop, item.step)
        )
        return f"{start}:{stop}" + (f":{step}" if step else "")

    return ", ".join(one(item) for item in items)


def _shortened(lines: list[str]) -> list[str]:
    """Chains that are read once go by the name ``x``: what is left of the names tells where ways part."""
    result = []
    for index, line in enumerate(lines):
        match = re.fullmatch(r"        (\w+) = (.*)", line)
        if match and match[1] != "layer":
            name = match[1]
            uses = [other for other in range(index + 1, len(lines)) if re.search(rf"\b{name}\b", lines[other])]
            if uses == [index + 1] and len(re.findall(rf"\b{name}\b", lines[index + 1])) == 1:
                line = f"        x = {match[2]}"
                lines[index + 1] = re.sub(rf"\b{name}\b", "x", lines[index + 1])
        result.append(line)
    return result


def _gives(network: nn.Module, size: int) -> str:
    with torch.no_grad(), evaluation_mode(network):
        output = network(torch.zeros(1, 3, size, size))
    return f"an output (batch, {', '.join(map(str, output.shape[1:]))})"


def _main(size: int) -> str:
    return f"""if __name__ == "__main__":
    network = Network().eval()
    print(f"{{sum(weight.numel() for weight in network.parameters()):,}} parameters")
    print(f"output {{tuple(network(torch.randn(2, 3, {size}, {size})).shape)}}")"""


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
