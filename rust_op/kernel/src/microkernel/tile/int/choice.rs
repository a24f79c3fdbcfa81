//! Which tiles and which algorithm to use for a number of rows and a storage of codes: all the choices that were made
//! by measuring.

/// How a panel holds its codes, and what the tier's tiles can do.
#[derive(Clone, Copy)]
pub(super) struct Choice {
    /// Rows of the tier's largest tile, [`crate::microkernel::isa::Isa::INT_TILE`].
    pub(super) tile_rows: usize,
    /// [`crate::microkernel::isa::Isa::SMALL_SUMS`].
    pub(super) small_sums: bool,
    /// [`crate::microkernel::isa::Isa::OWN_TILES`].
    pub(super) own_tiles: bool,
    /// Bits of a code.
    pub(super) bits: u32,
    /// Bits that a code takes: 8 where it is unpacked.
    pub(super) size: u32,
}

/// How a tile is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Algorithm {
    Own,
    Wide,
    Small,
    Nibble,
    Slot,
}

impl Choice {
    /// Whether sums of 16 bits are used.
    const fn is_small(self) -> bool {
        self.small_sums && self.bits < 8
    }

    /// Whether a tile may have `rows` rows.
    pub(super) const fn has(self, rows: usize) -> bool {
        match rows {
            // Unpacking needs registers that tiles of 12 rows, or of 6 rows with sums of 16 bits, do not leave free.
            12 => self.tile_rows >= 12 && self.size == 8,
            6 => self.is_small() && self.size == 8,
            // With codes of a single bit and sums of 16 bits, two tiles of 4 rows are faster.
            8 => self.tile_rows >= 8 && !(self.is_small() && self.bits == 1),
            4 => self.tile_rows >= 4,
            1 | 2 => true,
            _ => false,
        }
    }

    /// Rows of the next tile where `remaining` rows are left.
    pub(super) const fn rows(self, remaining: usize) -> usize {
        if self.has(12) && remaining >= 12 {
            12
        } else if self.has(6) && remaining >= 6 && remaining != 8 {
            6
        } else if self.has(8) && remaining >= 8 {
            8
        } else if self.has(4) && remaining >= 4 {
            4
        } else if remaining >= 2 {
            2
        } else {
            1
        }
    }

    /// How a tile of `rows` rows is computed. [`Algorithm::Slot`] has a maximum length of rows; for longer ones,
    /// [`Algorithm::Wide`] takes its place.
    pub(super) const fn algorithm(self, rows: usize) -> Algorithm {
        if self.own_tiles {
            Algorithm::Own
        } else if self.is_small() && self.size <= 2 && rows == 1 {
            Algorithm::Nibble
        } else if self.is_small() {
            Algorithm::Small
        } else if self.size < 8 && rows * 8 <= 8 * self.size as usize {
            Algorithm::Slot
        } else {
            Algorithm::Wide
        }
    }

    /// Whether a tile of `rows` rows is computed with `algorithm`.
    pub(super) const fn is(self, algorithm: Algorithm, rows: usize) -> bool {
        self.algorithm(rows) as u8 == algorithm as u8
    }
}

#[cfg(test)]
mod tests {
    use super::Algorithm::{Nibble, Own, Slot, Small, Wide};
    use super::*;

    /// The tiles of `count` rows, and their algorithms.
    fn tiles(choice: Choice, count: usize) -> Vec<(usize, Algorithm)> {
        let (mut tiles, mut row) = (Vec::new(), 0);
        while row < count {
            let rows = choice.rows(count - row);
            assert!(choice.has(rows) && rows <= count - row);
            tiles.push((rows, choice.algorithm(rows)));
            row += rows;
        }
        tiles
    }

    #[test]
    fn tiles_of_each_tier_and_storage() {
        let choice = |tile_rows, small_sums, bits, size| Choice { tile_rows, small_sums, own_tiles: false, bits, size };
        let own_tier = |tile_rows, bits, size| Choice { own_tiles: true, ..choice(tile_rows, false, bits, size) };
        let small_tier = |bits, size| choice(4, true, bits, size);
        let large_tier = |bits, size| choice(12, false, bits, size);
        let large_small_tier = |bits, size| choice(12, true, bits, size);
        for (choice, count, expected) in [
            (small_tier(8, 8), 7, vec![(4, Wide), (2, Wide), (1, Wide)]),
            (small_tier(4, 4), 7, vec![(4, Small), (2, Small), (1, Small)]),
            (small_tier(2, 2), 5, vec![(4, Small), (1, Nibble)]),
            (small_tier(1, 1), 3, vec![(2, Small), (1, Nibble)]),
            (small_tier(4, 8), 19, vec![(6, Small), (6, Small), (6, Small), (1, Small)]),
            (small_tier(1, 8), 8, vec![(4, Small), (4, Small)]),
            (large_tier(8, 8), 23, vec![(12, Wide), (8, Wide), (2, Wide), (1, Wide)]),
            (large_tier(4, 4), 15, vec![(8, Wide), (4, Slot), (2, Slot), (1, Slot)]),
            (large_tier(2, 2), 15, vec![(8, Wide), (4, Wide), (2, Slot), (1, Slot)]),
            (large_tier(1, 1), 15, vec![(8, Wide), (4, Wide), (2, Wide), (1, Slot)]),
            (large_small_tier(8, 8), 14, vec![(12, Wide), (2, Wide)]),
            (large_small_tier(4, 4), 12, vec![(8, Small), (4, Small)]),
            (large_small_tier(1, 1), 9, vec![(4, Small), (4, Small), (1, Nibble)]),
            (large_small_tier(2, 8), 20, vec![(12, Small), (8, Small)]),
            (large_small_tier(2, 8), 19, vec![(12, Small), (6, Small), (1, Small)]),
            (own_tier(2, 8, 8), 5, vec![(2, Own), (2, Own), (1, Own)]),
            (own_tier(4, 1, 1), 15, vec![(4, Own), (4, Own), (4, Own), (2, Own), (1, Own)]),
        ] {
            assert_eq!(tiles(choice, count), expected);
        }
    }
}
