//! How the backward products multiply: what a lane of their packed operands holds.

use super::isa::Isa;

/// What the lanes of packed operands hold, and how they are multiplied. A lane has 32 bits whatever it holds, and is
/// passed around as a float. A value of an implementing type is the permission to use its instructions.
pub(crate) trait Form<S: Isa>: Copy {
    /// Terms of a sum per lane: 1 (a float), or 2.
    const TERMS: usize;
    /// Lane i holds `first[i]` and, where lanes hold two, `second[i]`.
    fn zip(self, isa: S, first: S::F, second: S::F) -> S::F;
    /// The lanes hold the elements of `first` and then, where lanes hold two, those of `second`, in order.
    fn join(self, isa: S, first: S::F, second: S::F) -> S::F;
    /// `sum` plus the products of the lanes' terms.
    fn multiply_add(self, isa: S, left: S::F, right: S::F, sum: S::F) -> S::F;
}

/// A computation that is compiled once for each tier and form.
pub(crate) trait Formed {
    /// The computation. Implementations are `#[inline(always)]`, and so is all that they call.
    fn run<S: Isa, F: Form<S>>(self, isa: S, form: F);
}

/// Lanes are floats; product and sum are rounded once, as the contract requires.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Floats;

impl<S: Isa> Form<S> for Floats {
    const TERMS: usize = 1;

    #[inline(always)]
    fn zip(self, _isa: S, first: S::F, _second: S::F) -> S::F {
        first
    }
    #[inline(always)]
    fn join(self, _isa: S, first: S::F, _second: S::F) -> S::F {
        first
    }
    #[inline(always)]
    fn multiply_add(self, isa: S, left: S::F, right: S::F, sum: S::F) -> S::F {
        isa.fma(left, right, sum)
    }
}
