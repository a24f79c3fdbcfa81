"""The laws of the noise on outputs in plain numpy: sigma of what one pass of the core puts on its detectors.

Shapes: M rows, N outputs. Operations are in the order in which they are written.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ._reference_checks import Floats, Params
from ._reference_fma import fma32


@dataclass(frozen=True)
class Light:
    """Sums over the codes a of the inputs, which are exact integers, as float32 ``[M, 1]``."""

    tile: Floats
    """S_u: sum |a| over the tile's inputs."""
    tile_squares: Floats
    """Q_u: sum a^2 over the tile's inputs."""
    row: Floats
    """S: sum |a| over the whole row."""

    @staticmethod
    def of(codes: Floats, tile: slice) -> Light:
        magnitudes = np.abs(codes).astype(np.int64)
        squares = magnitudes[:, tile] ** 2
        tile_sum, squares_sum, row_sum = (
            each.sum(axis=1, keepdims=True).astype(np.float32) for each in (magnitudes[:, tile], squares, magnitudes)
        )
        return Light(tile_sum, squares_sum, row_sum)


@dataclass(frozen=True)
class Pass:
    """One pass of the core over a tile of each row."""

    z: Floats
    """[M, N]: before the noise."""
    bias: Floats
    """[N] or [1]: what of z is an analog bias."""
    product_step: Floats
    """[M, N]: t, what a product of two codes of 1 stands for."""
    range: Floats | None
    """R, which broadcasts against z; None where no law reads it."""
    light: Light | None
    """None where no law reads it."""
    in_features: int
    """K, of the whole row."""


def sigma(params: Params, core: Pass) -> Floats:
    """Standard deviation of the noise ``[M, N]``: of the one law that is on, or of the sum of several."""
    z, laws = core.z, list[Floats]()
    if params.relative:
        laws.append(params.relative * np.abs(z))
    if core.range is not None:
        if params.additive:
            laws.append(np.broadcast_to(params.additive * core.range, z.shape))
        if params.shot:
            laws.append(params.shot * np.sqrt(np.abs(z) * core.range))
    if core.light is not None:
        if params.read:
            # Each weight has sigma noise_read * L_w codes: their sum over the inputs has that times sqrt(sum a^2).
            of_weight = params.read * np.float32(params.weight_full_scale)
            laws.append(core.product_step * (of_weight * np.sqrt(core.light.tile_squares)))
        if params.photons:
            laws.append(_balanced(params, core, core.light) if params.balanced else _offset(params, core, core.light))
    if len(laws) == 1:
        return laws[0]
    total = laws[0] * laws[0]
    for law in laws[1:]:
        total = total + law * law
    return np.sqrt(total)


def _offset(params: Params, core: Pass, light: Light) -> Floats:
    """Photons at the detector of a core whose weights are shifted into 0..1 and which gets |a|.

    A product lets (c sign(a) + L_w) / (2 L_w) of the light |a| / L_x through, and the row's sum of |a| (c sign(a) +
    L_w) is acc + L_w S. P photons are a product of two full-scale operands, and the variance of a Poisson number is the
    number itself. After the optical network of T. Wang et al., Nat. Commun. 13:123, 2022,
    doi:10.1038/s41467-021-27774-8.
    """
    l_x, l_w = params.input_full_scale, params.weight_full_scale
    per_photon = _per_photon(params, core, light, 2 * l_x * l_w, 2 * l_w)
    lit = fma32(np.float32(l_w) * light.tile, core.product_step, core.z - core.bias)
    lit = np.where(lit < 0, np.float32(0), lit)
    return np.sqrt((per_photon * lit) * core.product_step)


def _balanced(params: Params, core: Pass, light: Light) -> Floats:
    """Photons at both ports of balanced detectors: all the light that enters, whatever the weights."""
    l_x, l_w = params.input_full_scale, params.weight_full_scale
    per_photon = _per_photon(params, core, light, l_x * l_w**2, l_w**2)
    return core.product_step * np.sqrt(per_photon * light.tile)


def _per_photon(params: Params, core: Pass, light: Light, of_full_scale: int, of_mean: int) -> Floats:
    """C or D of the page: full-scale products per photon, in codes; or, with "mean", the row's mean in place of L_x."""
    if params.photon_reference == "full_scale":
        return np.asarray(np.float32(of_full_scale) / params.photons)
    return (np.float32(of_mean) * light.row) / (params.photons * np.float32(core.in_features))
