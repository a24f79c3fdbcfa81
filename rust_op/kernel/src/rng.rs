//! The noise generator: its keys, lanes and words. xoshiro256++, seeded through SplitMix64.
//!
//! A *block* is up to [`BLOCK`] columns of one row. Its key is
//! `h = mix(mix(mix(mix(seed) ^ stream) ^ row) ^ block)`, where `mix(x)` is the first output of
//! SplitMix64 started at `x`, and its 32 words of state are the first 32 outputs of SplitMix64
//! started at `h`: lane i of [`LANES`] takes words 4i..4i+3 (which is what
//! `Xoshiro256PlusPlus::seed_from_u64(h + 4 i GOLDEN)` does). Every lane then runs xoshiro256++
//! (D. Blackman, S. Vigna, "Scrambled linear pseudorandom number generators", ACM Trans. Math. Softw.
//! 47, 2021, doi:10.1145/3460772).

use rand_core::{Rng, SeedableRng};
use rand_xoshiro::{SplitMix64, Xoshiro256PlusPlus};

/// Columns of a row that share one key.
pub const BLOCK: usize = 1024;
/// Generators of a block; each draw of a generator is 64 bits.
pub const LANES: usize = 8;
/// The increment of SplitMix64.
pub const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// What is added (exclusive or) to a call's key for the noise on inputs: rows are far fewer than 2^62, so that no key of
/// theirs is one of the outputs'.
pub const INPUT_KEY: u64 = 1 << 63;
/// Bits of a block's number below those of its tile's.
const BLOCK_BITS: u32 = 24;

/// What the noise of one call is drawn from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoiseKey {
    /// The layer's seed.
    pub seed: u64,
    /// The call's stream.
    pub stream: u64,
}

/// The first output of SplitMix64 started at `x`.
pub fn mix(x: u64) -> u64 {
    SplitMix64::from_seed(x.to_le_bytes()).next_u64()
}

/// The part of a block's key that all rows of a call share.
pub fn call_key(key: NoiseKey) -> u64 {
    mix(mix(key.seed) ^ key.stream)
}

/// The key of block `block` of row `row`, from the [`call_key`].
pub fn block_key(call_key: u64, row: u64, block: u64) -> u64 {
    mix(mix(call_key ^ row) ^ block)
}

/// The number of block `block` of tile `tile`, in the place of the block: tile 0 has the keys of a row that is whole.
pub fn block_of_tile(tile: u64, block: u64) -> u64 {
    block | tile << BLOCK_BITS
}

/// The lanes of the block with key `key`.
pub fn lanes(key: u64) -> [Xoshiro256PlusPlus; LANES] {
    std::array::from_fn(|lane| {
        Xoshiro256PlusPlus::seed_from_u64(key.wrapping_add(GOLDEN.wrapping_mul(4 * lane as u64)))
    })
}

/// One draw of every lane as 16 words of 32 bits: word 2i is the low half of lane i's draw, word 2i+1 the high half.
pub fn draw(lanes: &mut [Xoshiro256PlusPlus; LANES]) -> [u32; 2 * LANES] {
    let mut words = [0; 2 * LANES];
    for (pair, lane) in words.chunks_exact_mut(2).zip(lanes) {
        let word = lane.next_u64();
        pair[0] = word as u32;
        pair[1] = (word >> 32) as u32;
    }
    words
}
