//! Intel's matrix tiles (AMX): sums of byte products for 32 rows and 32 columns at a time.
//!
//! A tile is a register of 16 rows of 64 bytes. `tdpbsud` adds to a tile of 16 x 16 i32 the products of 16 rows of 64
//! signed codes with 64 unsigned codes of 16 columns. It expects the latter in 16 *groups*: four consecutive codes of
//! each column side by side. That is one half of a panel on every tier, so tiles share the panels and the vector code
//! of the `avx512` tier, and AMX is a permission in addition to that tier's own: see [`Tiles`].

use super::panels::{BLOCK_BYTES, PANEL};

#[cfg(not(target_arch = "x86_64"))]
mod absent;
#[cfg(target_arch = "x86_64")]
mod instructions;

#[cfg(not(target_arch = "x86_64"))]
pub(crate) use absent::{ConfiguredTiles, Tiles};
#[cfg(target_arch = "x86_64")]
pub(crate) use instructions::{ConfiguredTiles, Tiles};

/// Rows of a tile.
pub(crate) const TILE_ROWS: usize = 16;
/// Codes of a row, and of a column, that a tile holds.
pub(crate) const TILE_CODES: usize = 64;
/// Groups of a panel that a tile holds.
const TILE_GROUPS: usize = TILE_CODES / 4;
/// Rows of a block of sums.
pub(crate) const SUM_ROWS: usize = 2 * TILE_ROWS;

/// The most bytes that tiles read past the end of a panel.
pub(crate) const TILE_BYTES: usize = TILE_GROUPS * BLOCK_BYTES;

/// Bytes that tiles read past the end of a panel of `groups` groups. Their contents do not matter: they are multiplied
/// by the zeros that follow the codes of a row.
pub(crate) const fn bytes_behind(groups: usize) -> usize {
    (groups.next_multiple_of(TILE_GROUPS) - groups) * BLOCK_BYTES
}

/// Codes from one row to the next where tiles read them: padded with zeros to whole tiles, and an odd number of cache
/// lines, so that rows do not all fall into the same cache sets.
pub(crate) const fn tile_stride(k: usize) -> usize {
    (k.div_ceil(TILE_CODES) | 1) * TILE_CODES
}

/// Sums of the rows of two tiles multiplied with a panel.
#[repr(C, align(64))]
pub(crate) struct Sums(pub(crate) [[i32; PANEL]; SUM_ROWS]);

// As far apart as the groups of a panel, which the instructions take for both.
const _: () = assert!(size_of::<[i32; PANEL]>() == BLOCK_BYTES);

impl Sums {
    pub(crate) const fn zeros() -> Self {
        Sums([[0; PANEL]; SUM_ROWS])
    }
}
