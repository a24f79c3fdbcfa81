"""P14: a file says which hardware it is for, and who wrote it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import onnx_ir as ir

import lumina_kernel
from lumina_onnx.exporter.nodes import optical_nodes
from lumina_onnx.schema import DOMAIN, DOMAIN_VERSION, OPERATOR, VERSION_ATTRIBUTE, version_of

from . import Pass, PassResult

__all__ = ["StampMetadata"]

_PROFILE = "lumina.profile."
"""The prefix of the metadata keys that each describe one hardware profile and the layers that run on it."""


class StampMetadata(Pass):
    """P14: a file says which hardware it is for, and who wrote it.

    A producer that the model already names is kept. Each distinct hardware profile has its own metadata key, derived
    from its content, so that the metadata of two files can be merged. Nodes and values without a name get one, since
    layers are listed by name.
    """

    number = "P14"

    def call(self, model: ir.Model) -> PassResult:
        """Sets versions, producer, names and metadata."""
        model.opset_imports[DOMAIN] = DOMAIN_VERSION
        if not model.producer_name:
            model.producer_name, model.producer_version = "lumina_onnx", lumina_kernel.__version__
        ir.passes.common.NameFixPass()(model)
        for key in [key for key in model.metadata_props if key.startswith(_PROFILE)]:
            del model.metadata_props[key]
        version = max((version_of(layer.attributes) for layer in optical_nodes(model)), default=1)
        profiles = [json.dumps(profile) for profile in _profiles(model)]
        model.metadata_props.update(
            {
                "lumina.version": lumina_kernel.__version__,
                "lumina.operator": f"{DOMAIN}::{OPERATOR} version {version}",
                **{f"{_PROFILE}{hashlib.sha256(text.encode()).hexdigest()[:8]}": text for text in profiles},
            }
        )
        return PassResult(model, modified=True)


def _profiles(model: ir.Model) -> list[dict[str, Any]]:
    """Each distinct hardware profile with the layers that run on it. Ranges belong to a layer and stay in its node."""
    groups: dict[str, dict[str, Any]] = {}
    for layer in optical_nodes(model):
        profile = {
            name: attribute.value
            for name, attribute in layer.node.attributes.items()
            if name not in ("seed", "in_features", "input_range", "output_range", VERSION_ATTRIBUTE)
        }
        groups.setdefault(json.dumps(profile), {**profile, "layers": []})["layers"].append(layer.node.name)
    return list(groups.values())
