"""The entries that an optical layer has in a ``state_dict`` besides those of ``nn.Linear``: its ranges and its seed.

Each is a float64 tensor whose shape follows from the layer's size alone, so that a checkpoint can be read into the
``state_dict`` of a fresh model. Arithmetic on the entries, as in an average over several ``state_dict``s, gives ranges
and a seed that are either meaningful or recognised here as meaningless:

- ``input_range`` [1] and ``output_range`` [N]: the full scales, 0 where dynamic. One scale for all outputs is stored
  N times.
- ``range_kind`` [3]: whether the input range is static, whether the output range is static, and whether each output has
  its own range, as 1 or 0. The average of a static and a dynamic range is neither.
- ``output_bound`` [1], where the profile has one: the full scale of the output in products.
- ``noise_seed`` [24]: the seed's 16 digits in base 16, least significant first, and 8 digits of its hash. Digits are
  exact in any type of float. The average of equal seeds is that seed; an average of different seeds does not match its
  hash.

The first release kept all of this as JSON in one uint8 tensor, ``_extra_state``, which is still read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._C import _functorch as functorch
from torch._subclasses import FakeTensor

from lumina_onnx.nn import _checks
from lumina_onnx.profile import OpticalProfile

#: The ``nn.Module`` version of a state_dict, which torch keeps in its metadata. Version 1, which is also that of
#: ``nn.Linear``, had JSON.
VERSION = 2
NAMES = ("input_range", "output_range", "range_kind", "noise_seed", "output_bound")
RANGES = NAMES[:3]
BOUND = NAMES[4]
JSON_NAME = "_extra_state"
_JSON_VERSION = 1

_TYPE = torch.float64
_DIGITS = 16
_CHECK_DIGITS = 8
_SHARE = 1 / 4  # how far a digit may be from an integer: an average that is nearly a seed is that seed


class Settings(NamedTuple):
    """What the entries say."""

    profile: OpticalProfile
    seed: int
    note: str
    """What the user should know; empty if all is well."""


class Held:
    """The entries that a layer has handed out, and a way to tell which of them have been written to since."""

    def __init__(self, profile: OpticalProfile, seed: int, n: int) -> None:
        self.seed = seed
        self._values = _values(profile, seed, n)
        with torch.inference_mode(False):
            self._entries = encode(profile, seed, n)
        self._tensors = tuple(self._entries.values())
        self._changes = self._count_changes()
        self._holders = self._count_holders()
        self._looks = 0

    def _count_changes(self) -> int:
        a, b, c, d, *more = self._tensors
        changes: int = a._version + b._version + c._version + d._version
        return changes + more[0]._version if more else changes

    def _count_holders(self) -> int:
        return sum(torch._C._storage_Use_Count(entry.untyped_storage()._cdata) for entry in self._tensors)

    def is_changed(self) -> bool:
        """Whether an entry has been written to."""
        return self._count_changes() != self._changes

    def is_forgotten(self) -> bool:
        """Whether nobody holds the entries any more. Only the 1st, 2nd, 4th, 8th ... call looks, since that is slow."""
        self._looks += 1
        return self._looks & (self._looks - 1) == 0 and self._count_holders() == self._holders

    def entries(self) -> dict[str, Tensor]:
        """The entries; changing them in place changes those held here."""
        return {name: entry.detach() for name, entry in self._entries.items()}

    def changed(self) -> dict[str, Tensor]:
        """The entries that no longer have the values with which they were handed out."""
        return {name: entry for name, entry in self._entries.items() if entry.tolist() != self._values[name]}


def encode(profile: OpticalProfile, seed: int, n: int) -> dict[str, Tensor]:
    """The entries of a layer with n outputs, by name."""
    values = _values(profile, seed, n)
    return {name: torch.tensor(value, dtype=_TYPE, device="cpu") for name, value in values.items()}


def _values(profile: OpticalProfile, seed: int, n: int) -> dict[str, list[float]]:
    ranges = profile.output_range
    each = isinstance(ranges, tuple)
    values: dict[str, list[float]] = {
        "input_range": [profile.input_range],
        "output_range": list(ranges) if isinstance(ranges, tuple) else [ranges] * n,
        "range_kind": [profile.input_range != 0, ranges != 0, each],
        "noise_seed": _seed_digits(seed),
    }
    return values | {BOUND: [profile.output_bound]} if profile.output_bound else values


def decode(entries: Mapping[str, Any], profile: OpticalProfile, seed: int, n: int, prefix: str = "") -> Settings:
    """A layer's profile and seed, updated from `entries`; an absent entry changes nothing.

    Args:
        entries: by name, any of :data:`NAMES`.
        profile: the layer's profile so far.
        seed: the layer's seed so far.
        n: the number of the layer's outputs.
        prefix: what precedes the names in messages.

    Raises:
        ValueError: an entry is invalid; the message gives the entry, its value and what is allowed.
    """
    shapes = {"input_range": 1, "output_range": n, "range_kind": 3, "noise_seed": _DIGITS + _CHECK_DIGITS, BOUND: 1}
    empty = [prefix + name for name, entry in entries.items() if _has_no_values(entry)]
    if empty:
        return Settings(profile, seed, f"{', '.join(empty)}: tensors without values, so the layer keeps what it has")
    read = {name: _read(prefix + name, entry, shapes[name]) for name, entry in entries.items()}
    kind = _kind(prefix + "range_kind", *read["range_kind"]) if "range_kind" in read else None
    changes: dict[str, Any] = {}
    if "input_range" in read:
        values, _ = read["input_range"]
        _check_range(prefix + "input_range", values, None if kind is None else kind[0])
        changes["input_range"] = float(values[0])
    if "output_range" in read:
        values, tolerance = read["output_range"]
        _check_range(prefix + "output_range", values, None if kind is None else kind[1])
        changes["output_range"] = _output_range(prefix + "output_range", values, tolerance, kind and kind[2])
    elif kind is not None and kind[2] and profile.output_range and not isinstance(profile.output_range, tuple):
        changes["output_range"] = (profile.output_range,) * n
    if BOUND in read:
        changes[BOUND] = _bound(prefix + BOUND, float(read[BOUND][0][0]), profile)
    note = ""
    if "noise_seed" in read:
        found = _seed(prefix + "noise_seed", read["noise_seed"][0])
        if found is None:
            note = f"{prefix}noise_seed averages different seeds, which gives none: the layer keeps its own, {seed}"
        else:
            seed = found
    return Settings(_fitting(profile, changes, n), seed, note)


def decode_json(entry: Any, profile: OpticalProfile, n: int, key: str) -> Settings:
    """The same as :func:`decode`, from the single entry that the first release wrote.

    Raises:
        ValueError: the entry is invalid; the message says what is wrong with it.
    """
    try:
        if entry.dtype != torch.uint8:
            raise ValueError(f"it is {entry.dtype}: allowed is torch.uint8 (of one checkpoint: bytes have no average)")
        read = json.loads(bytes(entry.cpu().numpy()))
        if read["version"] != _JSON_VERSION:
            raise ValueError(f"it has version {read['version']}: allowed is {_JSON_VERSION}")
        seed, input_range, ranges = read["seed"], read["input_range"], read["output_range"]
    except (AttributeError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{key} of the checkpoint is not one that a release of this package wrote: {error}") from error
    try:
        _checks.check_counter("seed", seed)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key} of the checkpoint: {error}") from error
    output_range = tuple(ranges) if isinstance(ranges, list) else ranges
    changes = {"input_range": input_range, "output_range": output_range}
    return Settings(_fitting(profile, changes, n), seed, "")


def _fitting(profile: OpticalProfile, changes: dict[str, Any], n: int) -> OpticalProfile:
    try:
        changed = profile.replace(**changes)
        _checks.check_profile(changed, n)
        return changed
    except (TypeError, ValueError) as error:
        raise ValueError(f"the checkpoint does not fit the layer's profile: {error}") from error


def _has_no_values(entry: Any) -> bool:
    return isinstance(entry, Tensor) and (entry.is_meta or isinstance(entry, FakeTensor))


def _read(key: str, entry: Any, size: int) -> tuple[NDArray[np.float64], float]:
    """An entry's values, and how far arithmetic in its type may have moved them, as a fraction."""
    allowed = f"allowed is float64 [{size}]"
    if not isinstance(entry, Tensor):
        raise ValueError(f"{key} is {type(entry).__name__}: {allowed}")
    while functorch.is_functorch_wrapped_tensor(entry):
        if functorch.is_batchedtensor(entry):
            raise ValueError(
                f"{key} is a batch of torch.vmap: {allowed}, since all samples share a layer's ranges and seed"
            )
        entry = functorch.get_unwrapped(entry)
    if not entry.is_floating_point() or entry.itemsize < 2:
        raise ValueError(f"{key} is {entry.dtype}: {allowed}")
    if entry.shape != (size,):
        raise ValueError(f"{key} has shape {list(entry.shape)}: {allowed}")
    if entry.layout != torch.strided:
        raise ValueError(f"{key} is {entry.layout}: {allowed}, dense")
    with torch._C._DisableFuncTorch():  # torch.func would wrap it again: torch 2.8 cannot make a list of that
        values = np.array(entry.tolist(), dtype=np.float64)
    wrong = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if wrong.size:
        raise ValueError(f"{key}[{wrong[0]}] = {values[wrong[0]]:g}: allowed is a finite number >= 0")
    # An exponential average with a decay of 0.9999 may end up some 10^4 roundings away from what it averages.
    return values, min(max(2.0**13 * torch.finfo(entry.dtype).eps, 1e-6), 2.0**-6)


_KINDS = (
    ("static", "dynamic", "input range"),
    ("static", "dynamic", "output range"),
    ("one for each output", "one for all outputs", "output range"),
)


def _kind(key: str, values: NDArray[np.float64], tolerance: float) -> tuple[bool, bool, bool]:
    for index, (value, (yes, no, what)) in enumerate(zip(values, _KINDS, strict=True)):
        # The average of one range for each output and a single range for all is one range for each output.
        if min(abs(value), abs(value - 1)) > tolerance and not (index == 2 and value < 1):
            raise ValueError(
                f"{key}[{index}] = {value:g}: allowed is 1 (the {what} is {yes}) or 0 ({no}); an average of both is "
                f"no range. Average what was calibrated alike, or leave out {', '.join(RANGES)} and calibrate after it"
            )
    return bool(values[0] > 0.5), bool(values[1] > 0.5), bool(values[2] > tolerance)


def _check_range(key: str, values: NDArray[np.float64], static: bool | None) -> None:
    """Raises if a range is partly 0, or not of the kind that the checkpoint states."""
    zeros = values == 0
    if static is None:
        static = not zeros.all()
    if static and zeros.any():
        raise ValueError(f"{key}[{int(np.argmax(zeros))}] = 0: allowed is a number > 0, as the range is static")
    if not static and not zeros.all():
        index = int(np.argmin(zeros))
        raise ValueError(f"{key}[{index}] = {values[index]:g}: allowed is 0, as range_kind says that it is dynamic")


def _output_range(
    key: str, values: NDArray[np.float64], tolerance: float, each: bool | None
) -> float | tuple[float, ...]:
    first = float(values[0])
    alike = bool(np.all(np.abs(values - first) <= tolerance * first))
    if each is None:
        each = bool(np.any(values != first))
    if each and first:
        return tuple(map(float, values))
    if not alike:
        raise ValueError(f"{key} has several values: allowed is one, as range_kind says that it holds for all outputs")
    return first


def _bound(key: str, value: float, profile: OpticalProfile) -> float:
    """The bound of the full scale, for a layer that has one."""
    if not profile.output_bound:
        raise ValueError(f"{key} = {value:g}: allowed is a checkpoint without it, since the layer's profile has none")
    if not value:
        raise ValueError(f"{key} = 0: allowed is a number > 0, as the layer's full scale is bounded")
    return value


def _seed_digits(seed: int) -> list[float]:
    digest = hashlib.blake2b(seed.to_bytes(8, "little"), digest_size=_CHECK_DIGITS // 2).digest()
    check = int.from_bytes(digest, "little")
    digits = [seed >> 4 * i & 15 for i in range(_DIGITS)] + [check >> 4 * i & 15 for i in range(_CHECK_DIGITS)]
    return list(map(float, digits))


def _seed(key: str, values: NDArray[np.float64]) -> int | None:
    """The seed; None if the digits are an average over different seeds."""
    digits = np.rint(values)
    if (digits > 15).any():
        index = int(np.argmax(digits > 15))
        raise ValueError(f"{key}[{index}] = {values[index]:g}: allowed is 0..15, a digit in base 16")
    seed = sum(int(digit) << 4 * i for i, digit in enumerate(digits[:_DIGITS]))
    whole = bool((np.abs(values - digits) <= _SHARE).all())
    return seed if whole and seed < 2**63 and _seed_digits(seed) == digits.tolist() else None
