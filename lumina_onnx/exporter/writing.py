"""The last steps to a file: what all that write one have in common."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import onnx_ir as ir

import lumina_kernel
from lumina_onnx.schema import DOMAIN, OPERATOR, PARAMETERS, VERSION, VERSION_ATTRIBUTE

from . import files, packing
from .body import function
from .onnx_schema import register

__all__ = ["attach_body", "destination", "finish", "save"]


def destination(path: str | os.PathLike[str]) -> Path:
    """The file to write.

    Raises:
        FileNotFoundError, IsADirectoryError, ValueError: it cannot be written, or is no *.onnx.
    """
    file = Path(path)
    if file.is_dir():
        raise IsADirectoryError(f"path = {str(file)!r} is a folder; allowed is the name of a file, *.onnx")
    if file.exists() and not file.is_file():
        raise ValueError(f"path = {str(file)!r} is a pipe or a device; allowed is the name of a file, *.onnx")
    if file.suffix != ".onnx":
        raise ValueError(f"path = {str(file)!r}: allowed is a name that ends in .onnx")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"path = {str(file)!r}: the folder {str(file.parent)!r} does not exist")
    return file


def finish(graph: ir.Model) -> None:
    """The order of the nodes' attributes, versions, metadata, and names where some are missing.

    Whoever made the model stays its producer. Each distinct hardware has a key of its own in the metadata, made from
    what it holds, so that those of two files can be merged.
    """
    order = [row.name for row in PARAMETERS]
    for node in packing.optical_nodes(graph):
        node.attributes.pop(VERSION_ATTRIBUTE, None)
        attributes = sorted(node.attributes.values(), key=lambda attribute: order.index(attribute.name))
        node.attributes.clear()
        node.attributes.update({attribute.name: attribute for attribute in attributes})
        node.attributes[VERSION_ATTRIBUTE] = ir.AttrInt64(VERSION_ATTRIBUTE, VERSION)
    graph.opset_imports[DOMAIN] = VERSION
    if not graph.producer_name:
        graph.producer_name, graph.producer_version = "lumina_onnx", lumina_kernel.__version__
    ir.passes.common.NameFixPass()(graph)
    for key in [key for key in graph.metadata_props if key.startswith(_PROFILE)]:
        del graph.metadata_props[key]
    profiles = [json.dumps(profile) for profile in _profiles(graph)]
    graph.metadata_props.update(
        {
            "lumina.version": lumina_kernel.__version__,
            "lumina.operator": f"{DOMAIN}::{OPERATOR} version {VERSION}",
            **{f"{_PROFILE}{hashlib.sha256(text.encode()).hexdigest()[:8]}": text for text in profiles},
        }
    )


_PROFILE = "lumina.profile."
"""How the keys begin under which a hardware stands with the layers that run on it."""


def attach_body(graph: ir.Model) -> None:
    """Adds the operator as a function of standard operators."""
    body = ir.serde.deserialize_function(function(graph.opset_imports[""]))
    graph.functions[body.identifier()] = body


def save(graph: ir.Model, file: Path, *, check: bool = True) -> list[str]:
    """Writes the file with all its data, or with these beside it where protobuf cannot hold them: a note says so.

    `check` asks onnx's checker, which refuses some of what ONNX Runtime takes: outputs without a shape, other domains.
    """
    register()
    data = files.write(ir.to_proto(graph), file, check=check)
    if data is None:
        return []
    size = data.stat().st_size / 2**30
    return [f"weights of {size:.2f} GiB do not fit into one .onnx file: keep {data.name} beside it"]


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
