"""What a file may hold so that a given ONNX Runtime loads it."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["TARGETS", "Target", "resolve"]


class Target(NamedTuple):
    """The standard operators and file format of files for an ONNX Runtime release."""

    onnxruntime: str
    opset: int
    ir_version: int


# From ONNX Runtime's compatibility table. 1.17 is the oldest release with the custom-op interface that the operator's
# library requires. Without the library, 1.24 to 1.27 do not load a layer in an `If` whose condition they fold when the
# session is created, since they cannot fold its weights there. No other file is known to fail on a listed release.
TARGETS: dict[str, Target] = {
    target.onnxruntime: target
    for target in (
        Target("1.17", 20, 9),
        Target("1.18", 21, 10),
        Target("1.19", 21, 10),
        Target("1.20", 21, 10),
        # Newer opsets have no benefit for these models, and the function body draws noise slowly there.
        Target("1.21", 21, 10),
        Target("1.22", 21, 10),
        *(Target(f"1.{minor}", 21, 11) for minor in range(23, 33)),
    )
}


def resolve(target: str) -> Target:
    """The opset and IR version for an ONNX Runtime release such as ``"1.17"`` or ``"1.17.3"``.

    A release newer than the last one in the table gets the values of the last one.

    Raises:
        ValueError: the release is older than the first one in the table, or `target` is not a release.
    """
    found = re.fullmatch(r"(1\.(\d+))(\.\d+)*", target) if isinstance(target, str) else None
    if found:
        release, minor = found[1], int(found[2])
        *_, newest = TARGETS.values()
        if release in TARGETS:
            return TARGETS[release]
        if minor > int(newest.onnxruntime.split(".")[1]):
            return newest._replace(onnxruntime=release)
    first = next(iter(TARGETS))
    raise ValueError(
        f'target = {target!r}: allowed is the oldest ONNX Runtime release that the file must load in, "{first}" or '
        "newer (newer releases read these files too)"
    )
