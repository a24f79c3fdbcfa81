"""A .onnx file in a sweep: attributes of its nodes are set in memory, and each cell is a session of ONNX Runtime."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

import lumina_kernel
import lumina_onnx
from lumina_onnx._seeds import layer_seed
from lumina_onnx.exporter import feeds, files, loading, nodes
from lumina_onnx.exporter.constants import DRAWING
from lumina_onnx.exporter.passes import run as run_passes
from lumina_onnx.exporter.passes.order_attributes import OrderAttributes
from lumina_onnx.exporter.passes.remove_unused import RemoveUnused
from lumina_onnx.exporter.passes.store_weights import StoreWeights
from lumina_onnx.profile import OpticalProfile
from lumina_onnx.runtime import silent_options
from lumina_onnx.schema import DOMAIN, LAYER, OPERATOR, VERSION, VERSION_ATTRIBUTE

from .data import Arrays
from .engine import joined

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["File"]


@dataclass(frozen=True)
class File:
    """A .onnx file: its bytes or, where its weights lie beside it, its path, which every worker has to reach."""

    path: str
    content: bytes | None

    @classmethod
    def of(cls, path: Path) -> File:
        """Reads and checks it.

        Raises:
            OSError, ValueError: it cannot be read, or is no ONNX model.
        """
        message = files.load(path, weights=False, argument="model")
        if any(files.placed(tensor) for _, tensor in files.tensors(message)):
            return cls(str(path.resolve()), None)
        return cls(str(path), path.read_bytes())

    def digest(self) -> str:
        """Of the file, and of the data that lie beside it."""
        if self.content is not None:
            return hashlib.sha256(self.content).hexdigest()
        found = hashlib.sha256(Path(self.path).read_bytes())
        message = files.load(self.path, weights=False, argument="model")
        for _, tensor in files.tensors(message):
            if files.placed(tensor):
                found.update(files.content(tensor))
        return found.hexdigest()

    def versions(self) -> dict[str, str]:
        """ONNX Runtime's, and ours."""
        import onnxruntime

        return {"lumina_onnx": lumina_onnx.__version__, "onnxruntime": onnxruntime.__version__}

    def open(self) -> Opened:
        """The file as an engine."""
        if self.content is None:
            return Opened(self.path, self.path)
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "model.onnx"
            copy.write_bytes(self.content)
            return Opened(self.path, copy)


class Opened:
    """A file as an engine, see :class:`.engine.Engine`."""

    def __init__(self, name: str, path: str | Path) -> None:
        """`name` is what error messages call the file at `path`."""
        self._name = f"model = {name!r}"
        self._model = loading.load(path, argument="model").model
        # With the library, nothing runs the operator's function.
        for key in [
            key for key, body in self._model.functions.items() if (body.domain, body.name) == (DOMAIN, OPERATOR)
        ]:
            del self._model.functions[key]
        copies = nodes.renamed(self._model)
        if copies:
            raise ValueError(f"{self._name}: {copies[0].name or copies[0].op_type!r} is {nodes.RENAMED}")
        self._layers = nodes.optical_nodes(self._model)
        if not self._layers:
            raise ValueError(
                f"{self._name} has no optical layer: make some first, lumina_onnx.exporter.rewrite or lumina convert "
                "(with weight_bits 0 in the profile, so that a sweep can quantise the weights)"
            )
        self.names = [layer.name for layer in self._layers]
        self.profiles = [_profile(layer) for layer in self._layers]
        self.inputs = list(feeds.declared(self._model))
        inside = (node for body in self._model.functions.values() for node in body.all_nodes())
        self._draws = any(node.op_type in DRAWING for node in (*self._model.graph.all_nodes(), *inside))
        self._point: tuple[OpticalProfile, ...] | None = None
        self._open = contextlib.ExitStack()
        self._path: Path | None = None
        self._message = onnx.ModelProto()
        self._seeds: list[tuple[str, onnx.AttributeProto]] = []
        self._own_seeds: list[int] = []

    def check_profile(self, place: int, profile: OpticalProfile) -> None:
        """Whether the stored weights have the bits."""
        layer, before, wanted = self._layers[place], self.profiles[place].weight_bits, profile.weight_bits
        if wanted == before:
            return
        stored = _stored_bits(layer)
        if stored and not 1 <= wanted < stored:
            raise ValueError(
                f"weight_bits = {wanted}: the file stores this layer's weights in {stored} bits; allowed is "
                f"{'1' if stored == 1 else f'1..{stored}'}. For others sweep the torch module, or a file made with "
                "weight_bits 0"
            )
        if layer.computed:
            names = ", ".join(layer.computed)
            raise ValueError(f"weight_bits = {wanted}: the file computes this layer's {names}; allowed is {before}")

    def check_inputs(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Whether dtypes and shapes are those that the file declares."""
        try:
            feeds.read(self._model, inputs)
        except ValueError as error:
            raise ValueError(f"{self._name} does not take the data: {error}") from None

    def set_up(self, profiles: Sequence[OpticalProfile]) -> None:
        """Writes the model of a point, of which cells differ in the seeds alone."""
        if self._point == tuple(profiles):
            return
        self.close()
        model = self._model.clone()
        quantised = []
        for layer, before, after in zip(nodes.optical_nodes(model), self.profiles, profiles, strict=True):
            if after.weight_bits != before.weight_bits:
                _restore_weight(layer)
                quantised.append(layer.node)
            # The last pass lowers the version to the one that suffices.
            nodes.set_attributes(layer.node, **_changes(before, after), **{VERSION_ATTRIBUTE: VERSION})
        run_passes(model, StoreWeights(quantised), RemoveUnused(), OrderAttributes())
        self._message = ir.to_proto(model)
        self._path = None
        if files.is_large(self._message):
            self._path = self._open.enter_context(files.temporary(self._message))
        else:
            # A small model is not in a file: opening one may take longer than a cell.
            files.take_in(self._message)
        self._seeds = [
            (node.name or node.output[0], _seed(node))
            for graph in files.graphs(self._message.graph)
            for node in graph.node
            if (node.domain, node.op_type) == (DOMAIN, OPERATOR)
        ]
        self._own_seeds = [attribute.i for _, attribute in self._seeds]
        self._point = tuple(profiles)

    def close(self) -> None:
        """Deletes the data of a large model."""
        self._point = None
        self._open.close()

    def run(self, batches: Iterable[Arrays], seed: int | None) -> Any:
        """A fresh session on one thread, so that batch b has the noise of stream b."""
        taken: set[int] = set()
        for (name, attribute), own in zip(self._seeds, self._own_seeds, strict=True):
            attribute.i = own if seed is None else layer_seed(seed, name, taken)
            taken.add(attribute.i)
        message = self._message.SerializeToString()
        if self._path is not None:
            # The data of a large model lie beside it.
            self._path.write_bytes(message)
        session = _session(self._path or message, (seed or 0) if self._draws else None)
        names = [value.name for value in session.get_outputs()]
        results = [session.run(names, batch) for batch in batches]
        return joined([result[0] if len(names) == 1 else dict(zip(names, result, strict=True)) for result in results])


_seeding = threading.Lock()
"""A session takes the seed of its random operators from the process when it is created."""


def _session(model: bytes | Path, seed: int | None) -> onnxruntime.InferenceSession:
    """A session whose random operators, if it has any, have a seed."""
    import onnxruntime

    options = silent_options()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    with _seeding:
        if seed is not None:
            onnxruntime.set_seed(seed % 2**31)
        return lumina_onnx.load(model, sess_options=options, providers=["CPUExecutionProvider"])


def _profile(layer: nodes.OpticalNode) -> OpticalProfile:
    try:
        return OpticalProfile(**{row.name: layer.attributes[row.name] for row in LAYER})
    except ValueError as error:
        raise ValueError(f"layer {layer.name!r}: {error}") from None


def _seed(node: onnx.NodeProto) -> onnx.AttributeProto:
    """The attribute of a node's noise seed, which is added if the node omits it."""
    for attribute in node.attribute:
        if attribute.name == "seed":
            return attribute
    return node.attribute.add(name="seed", type=onnx.AttributeProto.INT, i=0)


def _changes(before: OpticalProfile, after: OpticalProfile) -> dict[str, Any]:
    """The attributes in which two profiles differ, with the values of the second."""
    changes = {}
    for row in LAYER:
        value = getattr(after, row.name)
        if value != getattr(before, row.name):
            changes[row.name] = (value,) if row.type == "FLOATS" and not isinstance(value, tuple) else value
    return changes


def _stored_bits(layer: nodes.OpticalNode) -> int:
    """The bits of the codes that a file stores as a layer's weights; 0 if it stores floats."""
    stored = layer.weight
    is_coded = stored is not None and stored.dtype in (ir.DataType.INT8, ir.DataType.UINT8)
    return int(layer.attributes["weight_bits"]) if is_coded else 0


def _restore_weight(layer: nodes.OpticalNode) -> None:
    """Gives a layer its W in float32, so that it can be quantised to other bits."""
    weight, scale, bits = layer.weight, layer.weight_scale, _stored_bits(layer)
    if weight is not None and scale is not None and bits:
        codes = weight.numpy()
        if codes.dtype == np.uint8:
            codes = lumina_kernel.unpack_weight(codes, bits, layer.in_features)
        values = codes.astype(np.float32) * scale.numpy()[:, None]
        layer.node.replace_input_with(1, ir.Value(const_value=ir.tensor(values)))
    # It is stated anew if W is packed again.
    layer.node.attributes.pop("in_features", None)
