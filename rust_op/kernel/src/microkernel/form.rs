//! How the backward products multiply: what a lane of their packed operands holds.

use super::isa::{Isa, LANES};
use super::panels::{PANEL, Storage, panel_lane};
use crate::precision::Block;

/// The most terms that a lane holds.
pub(crate) const MAX_TERMS: usize = 4;

/// What the lanes of packed operands hold, and how they are multiplied. A lane has 32 bits whatever it holds, and is
/// passed around as a float.
///
/// Where a lane holds several terms of a sum, these lie apart: of a block packed into `depth` lanes, lane i holds the
/// terms i, i + depth, and so on. Sums are then exact, so that the order does not matter, and rows of terms are packed
/// without being interleaved.
pub(crate) trait Form<S: Isa>: Copy {
    /// Terms of a sum per lane: 1, 2 or 4.
    const TERMS: usize;
    /// Whether the left operand is packed row by row, instead of in tiles.
    const BY_ROWS: bool;
    /// A term of either operand, of 16 rows or columns.
    type Element: Copy;

    /// The fixed point of the left operand; `None` where it stays as it is.
    fn block(self) -> Option<Block>;
    /// Nothing, on either side.
    fn zero(self, isa: S) -> Self::Element;
    /// Terms of the left operand; `inv` is [`BlockScale::inv`](crate::precision::BlockScale::inv) of their rows.
    fn left(self, isa: S, terms: S::F, inv: S::F) -> Self::Element;
    /// Codes as terms of the right operand. Where a value they were made from is not finite, the sums of its column
    /// will be NaN: by the term itself, or by `spoilt`, which is added to them.
    fn code(self, isa: S, code: S::I, value: S::F, spoilt: &mut S::F) -> Self::Element;
    /// Codes of values that are known to be finite, or were codes from the start.
    fn finite_code(self, isa: S, code: S::I) -> Self::Element;
    /// Analog values as terms of the right operand.
    fn value(self, isa: S, value: S::F) -> Self::Element;
    /// Lanes of the first `TERMS` elements.
    fn lanes(self, isa: S, elements: [Self::Element; MAX_TERMS]) -> S::F;
    /// With `BY_ROWS`, how many products make up one: 1 or 2.
    #[inline(always)]
    fn planes(self) -> usize {
        1
    }
    /// With `BY_ROWS`, what product `plane` has of the left operand's elements; and `sum` plus all of that.
    #[inline(always)]
    fn plane(
        self,
        _isa: S,
        elements: [Self::Element; MAX_TERMS],
        _plane: usize,
        sum: S::I,
    ) -> ([Self::Element; MAX_TERMS], S::I) {
        (elements, sum)
    }

    /// With `BY_ROWS`, the element in the first `count` lanes, and nothing in the others.
    #[inline(always)]
    fn first(self, _isa: S, element: Self::Element, _count: usize) -> Self::Element {
        element
    }

    /// Where vector `vector` of row `lane` begins in a panel of `depth` rows.
    #[inline(always)]
    fn panel_lane(depth: usize, lane: usize, vector: usize) -> usize {
        panel_lane::<S>(depth, lane, vector)
    }
}

/// A form whose left operand is packed in tiles.
pub(crate) trait InTiles<S: Isa>: Form<S> {
    /// Whether a sum goes on from one block to the next. Otherwise each block has a sum of its own, which a step turns
    /// into a float.
    const CHAINED: bool;
    /// 16 sums of products.
    type Sum: Copy;

    /// Where sums begin: at those of the preceding blocks, if they are chained.
    fn start(self, isa: S, before: S::F) -> Self::Sum;
    /// `sum` plus the products of the lanes' terms.
    fn multiply_add(self, isa: S, left: S::F, right: S::F, sum: Self::Sum) -> Self::Sum;
    /// The sums up to the end of a block, whose codes stand for `step` each; `before` is the sum of the preceding blocks.
    fn finish(self, isa: S, sum: Self::Sum, step: f32, before: S::F, spoilt: S::F) -> S::F;
}

/// Lanes are floats; product and sum are rounded once, as the contract requires.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Floats;

impl<S: Isa> Form<S> for Floats {
    const TERMS: usize = 1;
    const BY_ROWS: bool = false;
    type Element = S::F;

    #[inline(always)]
    fn block(self) -> Option<Block> {
        None
    }
    #[inline(always)]
    fn zero(self, isa: S) -> S::F {
        isa.splat(0.0)
    }
    #[inline(always)]
    fn left(self, _isa: S, terms: S::F, _inv: S::F) -> S::F {
        terms
    }
    #[inline(always)]
    fn code(self, isa: S, code: S::I, value: S::F, _spoilt: &mut S::F) -> S::F {
        // 0 * value is NaN where value is not finite, and adds nothing elsewhere.
        isa.fma(isa.splat(0.0), value, isa.to_float(code))
    }
    #[inline(always)]
    fn finite_code(self, isa: S, code: S::I) -> S::F {
        isa.to_float(code)
    }
    #[inline(always)]
    fn value(self, _isa: S, value: S::F) -> S::F {
        value
    }
    #[inline(always)]
    fn lanes(self, _isa: S, [element, ..]: [S::F; MAX_TERMS]) -> S::F {
        element
    }
}

impl<S: Isa> InTiles<S> for Floats {
    const CHAINED: bool = true;
    type Sum = S::F;

    #[inline(always)]
    fn start(self, _isa: S, before: S::F) -> S::F {
        before
    }
    #[inline(always)]
    fn multiply_add(self, isa: S, left: S::F, right: S::F, sum: S::F) -> S::F {
        isa.fma(left, right, sum)
    }
    #[inline(always)]
    fn finish(self, _isa: S, sum: S::F, _step: f32, _before: S::F, _spoilt: S::F) -> S::F {
        sum
    }
}

/// Codes of terms of the left operand.
#[inline(always)]
fn left_codes<S: Isa>(isa: S, terms: S::F, inv: S::F) -> S::I {
    isa.round(isa.mul(terms, inv))
}

/// `spoilt`, and NaN where `value` is not finite.
#[inline(always)]
fn spoilt_by<S: Isa>(isa: S, value: S::F, spoilt: S::F) -> S::F {
    isa.fma(isa.splat(0.0), value, spoilt)
}

/// The sums of the preceding blocks plus one block's, whose codes stand for `step` each, and what spoils a column.
#[inline(always)]
pub(crate) fn join<S: Isa>(isa: S, sum: S::I, step: f32, before: S::F, spoilt: S::F) -> S::F {
    // A sum is never -0, so that adding 0 changes nothing.
    isa.add(isa.fma(isa.to_float(sum), isa.splat(step), before), spoilt)
}

/// Lanes are pairs of 16-bit integers, the first term in the low half; products are summed exactly.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pairs(pub(crate) Block);

impl Pairs {
    /// [`Form::TERMS`], on every tier.
    pub(crate) const TERMS: usize = 2;
}

impl<S: Isa> Form<S> for Pairs {
    const TERMS: usize = Pairs::TERMS;
    const BY_ROWS: bool = false;
    type Element = S::I;

    #[inline(always)]
    fn block(self) -> Option<Block> {
        Some(self.0)
    }
    #[inline(always)]
    fn zero(self, isa: S) -> S::I {
        isa.splat_i(0)
    }
    #[inline(always)]
    fn left(self, isa: S, terms: S::F, inv: S::F) -> S::I {
        left_codes(isa, terms, inv)
    }
    #[inline(always)]
    fn code(self, isa: S, code: S::I, value: S::F, spoilt: &mut S::F) -> S::I {
        *spoilt = spoilt_by(isa, value, *spoilt);
        code
    }
    #[inline(always)]
    fn finite_code(self, _isa: S, code: S::I) -> S::I {
        code
    }
    #[inline(always)]
    fn value(self, _isa: S, _value: S::F) -> S::I {
        unreachable!("analog values are multiplied as floats")
    }
    #[inline(always)]
    fn lanes(self, isa: S, [first, second, ..]: [S::I; MAX_TERMS]) -> S::F {
        isa.from_bits(isa.or(isa.and(first, isa.splat_i(0xFFFF)), isa.shl::<16>(second)))
    }
}

impl<S: Isa> InTiles<S> for Pairs {
    const CHAINED: bool = false;
    type Sum = S::I;

    #[inline(always)]
    fn start(self, isa: S, _before: S::F) -> S::I {
        isa.splat_i(0)
    }
    #[inline(always)]
    fn multiply_add(self, isa: S, left: S::F, right: S::F, sum: S::I) -> S::I {
        isa.dot_pairs(sum, isa.bits(left), isa.bits(right))
    }
    #[inline(always)]
    fn finish(self, isa: S, sum: S::I, step: f32, before: S::F, spoilt: S::F) -> S::F {
        join(isa, sum, step, before, spoilt)
    }
}

/// Lanes are four bytes, the first term in the lowest: signed on the left, [stored](Storage) codes on the right, so that
/// the forward pass's tiles multiply them. Codes of 16 bits are 256 h + l, with h and l of 8 bits, and make two products.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bytes {
    pub(crate) block: Block,
    /// How the right operand's codes are stored. Each takes a byte.
    pub(crate) storage: Storage,
}

impl Bytes {
    /// [`Form::TERMS`], on every tier.
    pub(crate) const TERMS: usize = 4;

    /// [`Form::planes`]: l first, then h.
    #[inline(always)]
    pub(crate) fn planes(self) -> usize {
        if self.block.levels > i32::from(i8::MAX) { 2 } else { 1 }
    }
}

impl<S: Isa> Form<S> for Bytes {
    const TERMS: usize = Bytes::TERMS;
    const BY_ROWS: bool = true;
    type Element = S::I;

    #[inline(always)]
    fn block(self) -> Option<Block> {
        Some(self.block)
    }
    #[inline(always)]
    fn zero(self, isa: S) -> S::I {
        isa.splat_i(0)
    }
    #[inline(always)]
    fn left(self, isa: S, terms: S::F, inv: S::F) -> S::I {
        left_codes(isa, terms, inv)
    }
    #[inline(always)]
    fn code(self, isa: S, code: S::I, value: S::F, spoilt: &mut S::F) -> S::I {
        *spoilt = spoilt_by(isa, value, *spoilt);
        <Self as Form<S>>::finite_code(self, isa, code)
    }
    #[inline(always)]
    fn finite_code(self, isa: S, code: S::I) -> S::I {
        isa.add_i(code, isa.splat_i(self.storage.zero))
    }
    #[inline(always)]
    fn value(self, _isa: S, _value: S::F) -> S::I {
        unreachable!("analog values are multiplied as floats")
    }
    #[inline(always)]
    fn lanes(self, isa: S, elements: [S::I; MAX_TERMS]) -> S::F {
        isa.from_bits(isa.low_bytes(elements))
    }
    #[inline(always)]
    fn planes(self) -> usize {
        Bytes::planes(self)
    }
    #[inline(always)]
    fn plane(self, isa: S, elements: [S::I; MAX_TERMS], plane: usize, sum: S::I) -> ([S::I; MAX_TERMS], S::I) {
        let mut parts = elements;
        if Bytes::planes(self) == 2 {
            for part in &mut parts {
                let high = isa.sar::<8>(isa.add_i(*part, isa.splat_i(128)));
                *part = if plane == 1 { high } else { isa.sub_i(*part, isa.shl::<8>(high)) };
            }
        }
        let [a, b, c, d] = parts;
        (parts, isa.add_i(sum, isa.add_i(isa.add_i(a, b), isa.add_i(c, d))))
    }
    #[inline(always)]
    fn first(self, isa: S, element: S::I, count: usize) -> S::I {
        isa.bits(isa.first(isa.from_bits(element), count))
    }
    #[inline(always)]
    fn panel_lane(_depth: usize, lane: usize, vector: usize) -> usize {
        lane * PANEL + vector * LANES
    }
}
