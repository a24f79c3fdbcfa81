//! How exact the products of a backward pass are, and the fixed point in blocks that the less exact ones use.

use crate::error::Error;

/// How the products of a gradient are computed. Each gives the same bits on every tier and for every number of threads.
///
/// The left operand of a product, v = g s rounded to float32 (g: dY where the ADC did not saturate; s: a row's or a
/// channel's step), is multiplied by codes c of up to 8 bits. With T terms in an element's sum, in B blocks, the element
/// is off the exact sum of unrounded g s c by at most
///
/// ```text
/// Highest         (T + 2) 2^-23 sum |v c|  +  T 2^-125 (1 + max |c|)
/// Bits16, Bits8   sum over blocks of max|v| sum|c| / (2 L - 1)  +  (2 B + 8) 2^-24 sum |v c|  +  T 2^-112 (1 + max |c|)
/// ```
///
/// where nothing overflows; L is 32639 or 127 ([`Block::levels`]). Products with codes of more bits or with analog
/// values, and the bias's gradient, are computed as at [`Precision::Highest`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// One chain of float32 multiply-adds.
    #[default]
    Highest,
    /// v in fixed point of 16 bits, in blocks of 512 terms.
    Bits16,
    /// v in fixed point of 8 bits, in blocks of 256 terms.
    Bits8,
}

/// What [`Precision::from_name`] takes.
pub const PRECISIONS: &str = "\"highest\", \"high\", \"medium\" or \"8 bits\"";

impl Precision {
    /// The precision called `name`: three names are those of `torch.set_float32_matmul_precision`, of which "high" and
    /// "medium" are the same here.
    ///
    /// # Errors
    /// No precision has that name.
    pub fn from_name(name: &str) -> Result<Self, Error> {
        match name {
            "highest" => Ok(Precision::Highest),
            "high" | "medium" => Ok(Precision::Bits16),
            "8 bits" => Ok(Precision::Bits8),
            _ => Err(Error::value("precision", format!("{name:?}"), PRECISIONS)),
        }
    }

    /// The fixed point of products with codes of `bits` bits (0: analog values); `None` if they are computed in floats.
    pub fn block(self, bits: u32) -> Option<Block> {
        match self {
            Precision::Bits16 if (1..=8).contains(&bits) => Some(Block { levels: 32639, terms: 512 }),
            Precision::Bits8 if (1..=8).contains(&bits) => Some(Block { levels: 127, terms: 256 }),
            _ => None,
        }
    }
}

/// Fixed point in blocks: the terms of a sum are cut at multiples of [`Block::terms`], and those of a block share a
/// full scale, their largest magnitude.
///
/// The sum of a block's products with codes of 8 bits fits 32 bits, and so does every partial sum: 512 * 127 * 32639 is
/// less than 2^31. Such sums are exact, in whatever order. 32639 is 127 * 257, so that a code is 256 h + l with h and l
/// of 8 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// L: the largest code.
    pub levels: i32,
    /// Terms of a block.
    pub terms: usize,
}

impl Block {
    /// The full scale of a block whose largest |v| is `largest`, NaN or infinity if there is one.
    pub fn scale(self, largest: f32) -> BlockScale {
        let levels = self.levels as f32;
        let inv = levels / largest;
        if !largest.is_finite() {
            BlockScale { inv: 0.0, step: f32::NAN }
        } else if inv.is_finite() {
            BlockScale { inv, step: largest / levels }
        } else {
            BlockScale { inv: 0.0, step: 0.0 }
        }
    }
}

/// The full scale of one block of one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlockScale {
    /// Codes per unit; 0 where every code is 0.
    pub inv: f32,
    /// What a code stands for: 0 where that is too small for a float's reciprocal, NaN where a term is not finite.
    pub step: f32,
}

impl BlockScale {
    /// The code of `v`, a finite term of the block.
    pub fn code(self, v: f32) -> i32 {
        (v * self.inv).round_ties_even() as i32
    }
}
