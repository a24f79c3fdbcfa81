"""Parameters that version 2 of the operator added, drawn by hypothesis: for the tests of every door."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from lumina_onnx.schema import parameter


@st.composite
def effects(draw: st.DrawFn, input_bits: int, weight_bits: int) -> dict[str, Any]:
    """What to change of a layer with these bits: half of the time nothing, else any effects that it can have.

    Parameters of version 1 that an effect excludes are at their defaults.
    """
    if not draw(st.booleans()):
        return {}
    found: dict[str, Any] = {"tile_features": draw(st.sampled_from([0, 1, 2, 3, 4, 5, 8, 13, 64]))}
    if input_bits:
        found["input_noise_relative"] = draw(st.sampled_from([0.0, 0.0625, 1.0]))
        found["input_noise_additive"] = draw(st.sampled_from([0.0, 0.0625, 1.0]))
    if input_bits and weight_bits:
        found["noise_read"] = draw(st.sampled_from([0.0, 0.125]))
        found["photons"] = draw(st.sampled_from([0.0, 0.5, 1000.0]))
        found["output_bound"] = draw(st.sampled_from([0.0, 0.25, 8.0]))
        if found["photons"]:
            found["detection"] = draw(st.sampled_from(parameter("detection").choices))
            found["photon_reference"] = draw(st.sampled_from(parameter("photon_reference").choices))
            found["noise_shot"] = 0.0
        if found["output_bound"]:
            found |= {"output_range": 0.0, "bias_stage": "digital"}
        if any(found[name] for name in ("noise_read", "photons", "output_bound")):
            largest = 1 if weight_bits == 1 else 2 ** (weight_bits - 1) - 1
            found["weight_levels"] = draw(st.integers(0, largest))
    return found
