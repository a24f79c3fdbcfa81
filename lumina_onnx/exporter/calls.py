"""The optical calls of a program that torch captured: which module makes each, and the weights that torch computes.

On the way to ONNX a program is decomposed and its branches become functions; a call is then only sure to keep its
arguments. So :func:`mark` numbers the calls and puts each number in place of the call's seed, and
:class:`.passes.restore_calls.RestoreCalls` restores the seeds, weights and module paths on the nodes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from lumina_onnx import nn as optical

__all__ = ["OPERATOR", "Call", "mark", "module_path"]

OPERATOR = torch.ops.lumina.optical_linear.default

_ARGUMENTS = [argument.name for argument in OPERATOR._schema.arguments]


@dataclass(frozen=True)
class Call:
    """One call of the operator."""

    module: str
    """The path of the module that calls it; "" for the model itself."""
    seed: int
    computed: dict[int, Tensor]
    """Operands computed from parameters and buffers alone, keyed by the node's input: 1 for W, 3 for the bias."""


def mark(program: torch.export.ExportedProgram, model: nn.Module) -> list[Call]:
    """Numbers the optical calls of a program, including those in branches and loops.

    torch evaluates computed weights, such as a weight norm or a sum with a low-rank update: another library's
    arithmetic would differ from the model's own forward pass in the last bits.

    Raises:
        ValueError: a weight or bias changes from call to call.
    """
    calls: list[Call] = []
    stored: dict[Node, Any] = {}
    tensors = {**program.state_dict, **program.constants}
    for node, spec in zip(program.graph.find_nodes(op="placeholder"), program.graph_signature.input_specs, strict=True):
        if spec.target in tensors:
            stored[node] = tensors[spec.target]
        elif isinstance(spec.arg, torch.export.graph_signature.ConstantArgument):
            stored[node] = spec.arg.value
    names = {id(tensor): name for name, tensor in tensors.items()}
    _visit(program.graph_module, stored, "", _Owners(model, names), calls)
    return calls


class _Owners:
    """Finds the optical layer of a call for which torch recorded no layer."""

    def __init__(self, model: nn.Module, names: dict[int, str]) -> None:
        self.model = model
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.names = names
        tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        self.tensors = {name: id(tensor) for name, tensor in tensors}
        self.layers: list[tuple[str, optical.OpticalLayer, set[int]]] = [
            (name, layer, {id(tensor) for tensor in (*holder.parameters(), *holder.buffers())})
            for name, layer in model.named_modules()
            if isinstance(layer, optical.OpticalLayer)
            for holder in (layer._holder(),)
        ]
        self.used: set[str] = set()

    def path(self, scope: str, seed: int, sources: list[Any]) -> str:
        """`scope` if it is a layer, else the layer with this seed that holds one of `sources`, else `scope`."""
        path = scope
        if not isinstance(self.modules.get(scope), optical.OpticalLayer):
            held = {self.tensors.get(self.names.get(id(source), "")) for source in sources}
            fitting = [name for name, layer, own in self.layers if layer.seed == seed and own & held]
            # Layers that share both a seed and a weight are told apart by their order.
            path = next((name for name in fitting if name not in self.used), fitting[0] if fitting else scope)
        self.used.add(path)
        return path


def module_path(path: str, modules: Any) -> str:
    """The module path in a path written by torch's exporters, which may number repeated calls: ``path@1``."""
    while path and path not in modules and (counted := path.rpartition("@"))[2].isdigit():
        path = counted[0]
    return path


def _visit(module: GraphModule, stored: dict[Node, Any], scope: str, owners: _Owners, calls: list[Call]) -> None:
    """Collects the calls in a graph and its subgraphs; the values in `stored` do not depend on the model's inputs."""
    changed = False
    changing: list[Node] = []
    for node in list(module.graph.nodes):
        here = _scope(node, owners) or scope
        if node.op == "get_attr":
            stored[node] = operator.attrgetter(node.target)(module)
        elif node.target is OPERATOR:
            calls.append(_call(module, node, stored, changing, here, owners))
            _set_argument(node, "seed", len(calls) - 1)
            changed = True
        elif isinstance(node.target, torch._ops.HigherOrderOperator):
            for body, operands in _bodies(node, stored):
                inner: dict[Node, Any] = {}
                for place, operand in zip(body.graph.find_nodes(op="placeholder"), operands, strict=False):
                    value = _value(module, operand, stored, changing) if isinstance(operand, Node) else _COMPUTED
                    if value is not _COMPUTED:
                        inner[place] = value
                _visit(body, inner, here, owners, calls)
        if _changed(node):
            changing.append(node)
    if changed:
        module.graph.eliminate_dead_code(_is_kept)
        module.recompile()


def _is_kept(node: Node) -> bool:
    """Whether a node does something even if nothing reads its result, as those do that begin and end a torch.vmap."""
    return node.is_impure() or getattr(node.target, "__module__", "") == "torch._functorch.predispatch"


def _scope(node: Node, owners: _Owners) -> str:
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return module_path(stack[-1][0], owners.modules) if stack else ""


def _call(
    module: GraphModule, node: Node, stored: dict[Node, Any], changing: list[Node], scope: str, owners: _Owners
) -> Call:
    seed = _argument(node, "seed")
    weight = _argument(node, "weight")
    sources = [stored[source] for source in _needed(weight, changing) if source in stored]
    path = owners.path(scope, seed, sources)
    computed: dict[int, Tensor] = {}
    for index, name in ((1, "weight"), (3, "bias")):
        operand = _argument(node, name)
        value: Any = _COMPUTED if operand is None else _value(module, operand, stored, changing)
        if isinstance(value, _Varying):
            raise ValueError(
                f"{path or 'optical_linear'}: its {name} {value.how}, so that it is another one in each call; allowed "
                "is a parameter, a buffer or something computed from those alone"
            )
        if value is not _COMPUTED and id(value) not in owners.names:
            computed[index] = value
            _forget(module, node, name)
    return Call(path, seed, computed)


def _forget(module: GraphModule, node: Node, name: str) -> None:
    """Replaces an operand by zeros, so that its computation, which ONNX may not support, can be removed."""
    operand = _argument(node, name)
    with module.graph.inserting_before(node):
        zeros = module.graph.call_function(torch.ops.aten.zeros.default, (list(operand.meta["val"].shape),))
    zeros.meta = dict(operand.meta)
    _set_argument(node, name, zeros)


def _argument(node: Node, name: str) -> Any:
    index = _ARGUMENTS.index(name)
    return node.args[index] if index < len(node.args) else node.kwargs.get(name)


def _set_argument(node: Node, name: str, value: Any) -> None:
    index = _ARGUMENTS.index(name)
    if index < len(node.args):
        node.update_arg(index, value)
    else:
        node.update_kwarg(name, value)


_COMPUTED = object()
"""A placeholder for a value that depends on the model's inputs."""


@dataclass(frozen=True)
class _Varying:
    """A placeholder for a value that depends on no input but changes from call to call."""

    how: str


def _value(module: GraphModule, node: Node, stored: dict[Node, Any], changing: list[Node]) -> Any:
    """The value of `node` as torch computes it, after all in-place changes in `changing`."""
    needed = _needed(node, changing)
    leaves = [each for each in needed if each.op != "call_function"]
    if any(leaf not in stored for leaf in leaves):
        return _COMPUTED
    for leaf in leaves:
        if isinstance(stored[leaf], _Varying):
            return stored[leaf]
    if needed == {node} and node in stored:
        return stored[node]
    changes = [each for each in changing if each in needed]
    values: dict[Node, Any] = {}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        state = torch.get_rng_state()
        for each in module.graph.nodes:
            if each in leaves:
                value = stored[each]
                # The tensor that a call changes in place may be the model's own.
                values[each] = value.clone() if changes and isinstance(value, Tensor) else value
            elif each in needed:
                args, kwargs = torch.fx.map_arg((each.args, each.kwargs), values.__getitem__)
                values[each] = each.target(*args, **kwargs)
        if not torch.equal(state, torch.get_rng_state()):
            return _Varying("is drawn at random")
    for leaf in leaves:
        if changes and isinstance(values[leaf], Tensor) and values[leaf]._version:
            return _Varying(f"comes from one that the forward pass changes in place ({changes[0].target})")
    return values[node]


def _needed(node: Node, changing: list[Node]) -> set[Node]:
    """The nodes that determine `node`: those it is computed from, and those of `changing` that change one of these in
    place."""
    needed = _reached([node], _inputs)
    while more := [
        each for each in changing if each not in needed and not needed.isdisjoint(_reached(_changed(each), _shared))
    ]:
        needed |= _reached(more, _inputs)
    return needed


def _reached(nodes: list[Node], step: Callable[[Node], list[Node]]) -> set[Node]:
    """The nodes, and all nodes reachable from them in any number of steps."""
    found: set[Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(step(node))
    return found


def _inputs(node: Node) -> list[Node]:
    """The nodes that a node is computed from."""
    return node.all_input_nodes


def _shared(node: Node) -> list[Node]:
    """The arguments whose memory a node's results may share."""
    return _aliased(node, writes=False)


def _changed(node: Node) -> list[Node]:
    """The arguments that a node changes in place."""
    return _aliased(node, writes=True)


def _aliased(node: Node, *, writes: bool) -> list[Node]:
    """The arguments whose memory a node's results may share; with `writes`, only those that it writes to."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return []
    found: list[Node] = []
    for index, argument in enumerate(node.target._schema.arguments):
        if argument.alias_info is not None and (argument.alias_info.is_write or not writes):
            value = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
            found += [
                each for each in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(each, Node)
            ]
    return found


def _bodies(node: Node, stored: dict[Node, Any]) -> Iterator[tuple[GraphModule, list[Any]]]:
    """The graphs that a higher-order operator runs, each with its operands; None for an operand that changes from one
    run to the next."""
    operands: list[Any] = []
    graphs: list[GraphModule] = []
    loops = _LOOPS.get(str(node.target), ())
    for index, argument in enumerate(node.args):
        if isinstance(argument, Node) and isinstance(stored.get(argument), GraphModule):
            graphs.append(stored[argument])
            operands.clear()
        elif graphs:
            each = list(argument) if isinstance(argument, (list, tuple)) else [argument]
            operands += [None] * len(each) if index in loops else each
    for graph in graphs:
        if len(graph.graph.find_nodes(op="placeholder")) == len(operands):
            yield graph, operands
        else:
            yield graph, []


# Arguments of loop operators whose value changes from iteration to iteration.
_LOOPS = {"while_loop": (2,), "scan": (1, 2), "map_impl": (1,), "associative_scan": (1,)}
