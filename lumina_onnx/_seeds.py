"""Noise seeds of layers, derived from one seed and the layers' names."""

from __future__ import annotations

import hashlib
from collections.abc import Container

SEEDS = 2**63
"""Seeds and streams are 0..2^63-1."""


def layer_seed(seed: int, name: str, taken: Container[int] = ()) -> int:
    """The seed of the layer with this name: the first from a hash of `seed` and `name` on that is not `taken`."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(errors="surrogatepass"), digest_size=8).digest()
    own = int.from_bytes(digest, "little") % SEEDS
    while own in taken:
        own = (own + 1) % SEEDS
    return own
