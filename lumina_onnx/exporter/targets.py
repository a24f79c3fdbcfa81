"""What a file may hold so that a given ONNX Runtime loads it."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["TARGETS", "Target", "resolve"]


class Target(NamedTuple):
    """The newest standard operators and file format that an ONNX Runtime release reads."""

    onnxruntime: str
    opset: int
    ir_version: int


# From ONNX Runtime's compatibility table. 1.17 is the oldest release with the custom-op interface that the
# operator's library asks for.
TARGETS: dict[str, Target] = {
    target.onnxruntime: target
    for target in (
        Target("1.17", 20, 9),
        Target("1.18", 21, 10),
        Target("1.19", 21, 10),
        Target("1.20", 21, 10),
        Target("1.21", 22, 10),
        Target("1.22", 22, 10),
        # Newer opsets would bring these models nothing.
        *(Target(f"1.{minor}", 23, 11) for minor in range(23, 33)),
    )
}


def resolve(target: str) -> Target:
    """The row of :data:`TARGETS` for an ONNX Runtime release such as ``"1.17"`` or ``"1.17.3"``.

    Raises:
        ValueError: a release that is not in the table.
    """
    allowed = ", ".join(f'"{name}"' for name in TARGETS)
    if isinstance(target, str):
        release = ".".join(target.split(".")[:2])
        if release in TARGETS:
            return TARGETS[release]
    raise ValueError(
        f"target = {target!r}: allowed is the oldest ONNX Runtime release that the file must load in, one of {allowed}"
        " (newer releases read these files too)"
    )
