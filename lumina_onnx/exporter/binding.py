"""How a file's inputs and outputs map to the arguments and results of the torch model that it was exported from."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument
from torch.utils import _pytree as pytree

__all__ = ["Binding", "bind", "leaves"]

METADATA = "lumina.call"
"""The metadata key; absent if forward takes the inputs in their order and nothing else."""


@dataclass(frozen=True)
class Binding:
    """One call of forward: the leaves of its arguments, and which leaves of its result are outputs."""

    tree: str
    """The structure of ``(args, kwargs)`` as torch's pytree serialises it; "" if pytree cannot."""
    arguments: list[dict[str, Any]]
    """Each leaf is ``{"input": NAME}`` or ``{"value": CONSTANT}``."""
    outputs: list[int]
    plain: bool
    """Whether the call takes the inputs alone, in their order, and all of its results are outputs."""

    @classmethod
    def of(cls, program: torch.export.ExportedProgram, signature: inspect.Signature) -> Binding:
        """The call that a program was captured from, of a forward with this signature."""
        given = [each.arg for each in program.graph_signature.input_specs if each.kind == InputKind.USER_INPUT]
        arguments: list[dict[str, Any]] = [
            {"value": each.value} if isinstance(each, ConstantArgument) else {"input": each.name} for each in given
        ]
        results = [each.arg for each in program.graph_signature.output_specs if each.kind == OutputKind.USER_OUTPUT]
        outputs = [index for index, result in enumerate(results) if not isinstance(result, ConstantArgument)]
        inside = program.call_spec.in_spec
        plain = (
            inside == pytree.tree_structure(((0,) * len(arguments), {}))
            and [each.get("input") for each in arguments] == list(signature.parameters)[: len(arguments)]
            and all(isinstance(each, TensorArgument) or getattr(each, "value", 0) is None for each in results)
        )
        try:
            tree = "" if inside is None else pytree.treespec_dumps(inside)
        except NotImplementedError:  # a container type registered without a serialised name
            tree = ""
        return cls(tree, arguments, outputs, plain)

    @classmethod
    def read(cls, model: ir.Model) -> Binding | None:
        """The call as recorded in a file; None if the file has no such record."""
        text = model.metadata_props.get(METADATA)
        return None if text is None else cls(**json.loads(text), plain=False)

    def metadata(self) -> dict[str, str]:
        """The metadata entries to write to the file."""
        if self.plain:
            return {}
        return {METADATA: json.dumps({"tree": self.tree, "arguments": self.arguments, "outputs": self.outputs})}

    def call(self, tensors: Mapping[str, Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of forward, with the given tensors in the places of the file's inputs.

        Raises:
            ValueError: the file could not record the structure of the arguments, or its inputs have other names now.
        """
        kept = []
        for each in self.arguments:
            if "input" in each and each["input"] not in tensors:
                raise ValueError(f"the file was exported with an input {each['input']!r}, which it no longer has")
            kept.append(tensors[each["input"]] if "input" in each else each["value"])
        if not self.tree:
            raise ValueError(
                "forward was called with containers of a type that a file cannot name, as it can tuples, lists, dicts "
                "and types that torch's pytree has a name for; without a reference it can be verified"
            )
        try:
            arguments, keywords = pytree.tree_unflatten(kept, pytree.treespec_loads(self.tree))
        except Exception as error:
            raise ValueError(f"the types that forward takes are not known here ({error})") from error
        return arguments, keywords


def bind(
    model: ir.Model, reference: nn.Module, arrays: Mapping[str, NDArray[Any]]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of the reference's forward that correspond to the file's inputs.

    A file written by :mod:`.torch_export` records the call if the inputs alone do not show it. In other files, inputs
    are matched by name to forward's parameters, as torch's exporter names them, or else by position.

    Raises:
        ValueError: an input belongs to no parameter, or a parameter has no input.
    """
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    binding = Binding.read(model)
    signature = inspect.signature(reference.forward)
    try:
        arguments, keywords = _by_name(signature, tensors) if binding is None else binding.call(tensors)
        signature.bind(*arguments, **keywords)
    except (TypeError, ValueError) as error:
        plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
        raise ValueError(
            f"reference: {type(reference).__name__}.forward{inspect.Signature(plain)} cannot be called with the file's "
            f"inputs {', '.join(map(repr, tensors))}: {error}"
            + ("" if binding is not None and not binding.tree else "; allowed is the model that was exported")
        ) from error
    return arguments, keywords


def _by_name(signature: inspect.Signature, tensors: dict[str, Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    kinds = {name: parameter.kind for name, parameter in signature.parameters.items()}
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    single = [name for name, kind in kinds.items() if kind not in variadic]
    if set(tensors) <= set(single):
        first = [name for name in single if kinds[name] is inspect.Parameter.POSITIONAL_ONLY and name in tensors]
        return tuple(tensors[name] for name in first), {name: tensors[name] for name in tensors if name not in first}
    nested = [name for name in tensors for each in single if name not in single and name.startswith(f"{each}_")]
    if nested or (set(tensors) & set(single) and inspect.Parameter.VAR_POSITIONAL not in kinds.values()):
        others = nested or [name for name in tensors if name not in single]
        raise ValueError(f"no parameter is named {', '.join(map(repr, others))}")
    return tuple(tensors.values()), {}


def leaves(result: Any) -> list[Any]:
    """The leaves of a result, including those in dataclasses and mappings that torch's pytree does not know."""
    found: list[Any] = []
    for leaf in pytree.tree_leaves(result):
        if isinstance(leaf, Mapping):
            found += leaves(list(leaf.values()))
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            found += leaves([getattr(leaf, field.name) for field in dataclasses.fields(leaf)])
        else:
            found.append(leaf)
    return found
