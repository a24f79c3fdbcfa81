"""The last steps to a file: what all that write one have in common."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

import lumina_kernel
from lumina_onnx.schema import DOMAIN, OPERATOR, PARAMETERS, VERSION, VERSION_ATTRIBUTE

from . import packing
from .body import function
from .onnx_schema import register

__all__ = ["attach_body", "destination", "finish", "save"]

_MAXIMUM_PROTOBUF = 2**31 - 2**20
"""Larger models keep their data beside the .onnx file: protobuf ends at 2 GiB."""


def destination(path: str | os.PathLike[str]) -> Path:
    """The file to write.

    Raises:
        FileNotFoundError, IsADirectoryError, ValueError: it cannot be written, or is no *.onnx.
    """
    file = Path(path)
    if file.is_dir():
        raise IsADirectoryError(f"path = {str(file)!r} is a folder; allowed is the name of a file, *.onnx")
    if file.suffix != ".onnx":
        raise ValueError(f"path = {str(file)!r}: allowed is a name that ends in .onnx")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"path = {str(file)!r}: the folder {str(file.parent)!r} does not exist")
    return file


def finish(graph: ir.Model) -> None:
    """The order of the nodes' attributes, versions, metadata, and names where some are missing."""
    order = [row.name for row in PARAMETERS]
    for node in packing.optical_nodes(graph):
        attributes = sorted(node.attributes.values(), key=lambda attribute: order.index(attribute.name))
        node.attributes.clear()
        node.attributes.update({attribute.name: attribute for attribute in attributes})
        node.attributes[VERSION_ATTRIBUTE] = ir.AttrInt64(VERSION_ATTRIBUTE, VERSION)
    graph.opset_imports[DOMAIN] = VERSION
    graph.producer_name = "lumina_onnx"
    graph.producer_version = lumina_kernel.__version__
    graph.metadata_props.update(
        {
            "lumina.version": lumina_kernel.__version__,
            "lumina.operator": f"{DOMAIN}::{OPERATOR} version {VERSION}",
            "lumina.profile": json.dumps(_profiles(graph)),
        }
    )
    ir.passes.common.NameFixPass()(graph)


def attach_body(graph: ir.Model) -> None:
    """Adds the operator as a function of standard operators."""
    body = ir.serde.deserialize_function(function(graph.opset_imports[""]))
    graph.functions[body.identifier()] = body


def save(graph: ir.Model, file: Path, *, check: bool = True) -> list[str]:
    """Writes the file in one step, or with its data beside it where protobuf cannot hold it: a note says so.

    `check` asks onnx's checker, which refuses some of what ONNX Runtime takes: outputs without a shape, other domains.
    """
    data_bytes = sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value)
    if data_bytes > _MAXIMUM_PROTOBUF:
        data = f"{file.name}.data"
        ir.save(graph, file, external_data=data)
        return [f"weights of {data_bytes / 2**30:.2f} GiB do not fit into one .onnx file: keep {data} beside it"]
    if check:
        register()
        onnx.checker.check_model(ir.to_proto(graph), check_custom_domain=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        temporary = Path(folder) / file.name
        ir.save(graph, temporary)
        os.replace(temporary, file)
    return []


def _profiles(graph: ir.Model) -> list[dict[str, Any]]:
    """Each distinct hardware with the layers that run on it. Ranges are each layer's own and stand in its node."""
    groups: dict[str, dict[str, Any]] = {}
    for node in packing.optical_nodes(graph):
        profile = {
            name: attribute.value
            for name, attribute in node.attributes.items()
            if name not in ("seed", "in_features", "input_range", "output_range", VERSION_ATTRIBUTE)
        }
        groups.setdefault(json.dumps(profile), {**profile, "layers": []})["layers"].append(node.name)
    return list(groups.values())
