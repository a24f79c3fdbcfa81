//! The noise laws: the sigma of each, as in `reference.rs`, times a normal.

use super::{Pass, pair};
use crate::microkernel::isa::Isa;
use crate::params::NoiseLevels;

/// Which laws are on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Law {
    Relative,
    Additive,
    Shot,
    Several,
}

impl Law {
    pub(super) fn of(levels: NoiseLevels) -> Self {
        // Without `..`, so that a law that is added has to be told apart here.
        let NoiseLevels { relative, additive, shot } = levels;
        match [relative != 0.0, additive != 0.0, shot != 0.0] {
            [_, false, false] => Law::Relative,
            [false, _, false] => Law::Additive,
            [false, false, _] => Law::Shot,
            _ => Law::Several,
        }
    }
}

/// Pass 2 over some columns.
pub(super) struct AddNoise<'a, S: Isa> {
    pub(super) law: Law,
    pub(super) levels: NoiseLevels,
    /// The static full scales of the columns.
    pub(super) columns: Option<&'a [f32]>,
    pub(super) row_range: S::F,
    /// The normals of the columns.
    pub(super) eps: &'a [f32],
}

impl<S: Isa> AddNoise<'_, S> {
    #[inline(always)]
    fn sigma(&self, isa: S, z: S::F, range: S::F) -> S::F {
        let NoiseLevels { relative, additive, shot } = self.levels;
        match self.law {
            Law::Relative => isa.mul(isa.splat(relative), isa.abs(z)),
            Law::Additive => isa.mul(isa.splat(additive), range),
            Law::Shot => isa.mul(isa.splat(shot), isa.sqrt(isa.mul(isa.abs(z), range))),
            Law::Several => {
                // An absent law adds +0, which changes no sum of squares.
                let a = isa.mul(isa.splat(relative), isa.abs(z));
                let mut sum = isa.mul(a, a);
                if relative == 0.0 {
                    sum = isa.splat(0.0);
                }
                if additive != 0.0 {
                    let b = isa.mul(isa.splat(additive), range);
                    sum = isa.add(sum, isa.mul(b, b));
                }
                if shot != 0.0 {
                    let c = isa.mul(isa.splat(shot), isa.sqrt(isa.mul(isa.abs(z), range)));
                    sum = isa.add(sum, isa.mul(c, c));
                }
                isa.sqrt(sum)
            }
        }
    }
}

impl<S: Isa> Pass<S> for AddNoise<'_, S> {
    #[inline(always)]
    fn group(&mut self, isa: S, column: usize, z: [S::F; 2]) -> [S::F; 2] {
        let range = match self.columns {
            Some(ranges) => pair(isa, ranges, column),
            None => [self.row_range; 2],
        };
        let eps = pair(isa, self.eps, column);
        [isa.fma(self.sigma(isa, z[0], range[0]), eps[0], z[0]), isa.fma(self.sigma(isa, z[1], range[1]), eps[1], z[1])]
    }
}
