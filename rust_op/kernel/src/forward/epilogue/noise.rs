//! The noise laws: the sigma of each, as in `reference.rs`, times a normal.

use super::adc::Bounds;
use super::{Pass, pair};
use crate::microkernel::isa::Isa;
use crate::params::{Detection, NoiseLevels, Params, PhotonReference, Photons};

/// Which laws are on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Law {
    Relative,
    Additive,
    Shot,
    Read,
    Photons,
    Several,
}

impl Law {
    pub(super) fn of(levels: NoiseLevels) -> Self {
        // Without `..`, so that a law that is added has to be told apart here.
        let NoiseLevels { relative, additive, shot, read, photons } = levels;
        match [relative != 0.0, additive != 0.0, shot != 0.0, read != 0.0, photons.is_some()] {
            [_, false, false, false, false] => Law::Relative,
            [false, _, false, false, false] => Law::Additive,
            [false, false, _, false, false] => Law::Shot,
            [false, false, false, _, false] => Law::Read,
            [false, false, false, false, _] => Law::Photons,
            _ => Law::Several,
        }
    }
}

/// What the laws of light need beside the light itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct LightLevels {
    l_x: i64,
    l_w: i64,
    read: f32,
    photons: Option<Photons>,
    /// K.
    k: f32,
}

/// The light of a row and of one of its tiles, as the reference has it: sum |a| and sum a^2 of the tile, and sum |a| of
/// the row.
pub(in crate::forward) type RowLight = [f32; 3];

/// What is the same for all outputs of a row.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RowTerms {
    /// s_x.
    x_step: f32,
    /// A read law's sigma, and that of balanced detection, over s_x s_w.
    read: f32,
    balanced: f32,
    /// C, and L_w sum |a|.
    factor: f32,
    light: f32,
}

impl LightLevels {
    /// `None` where no law reads the light.
    pub(super) fn of(params: &Params, k: usize) -> Option<Self> {
        let NoiseLevels { read, photons, .. } = params.noise;
        let (l_x, l_w) = (i64::from(params.input_full_scale()), i64::from(params.weight_full_scale()));
        params.noise.reads_light().then_some(LightLevels { l_x, l_w, read, photons, k: k as f32 })
    }

    #[inline(always)]
    pub(super) fn terms(&self, x_step: f32, [tile, tile_squares, row]: RowLight) -> RowTerms {
        let LightLevels { l_x, l_w, read, photons, k } = *self;
        let mut terms = RowTerms { x_step, ..RowTerms::default() };
        if read != 0.0 {
            terms.read = (read * l_w as f32) * tile_squares.sqrt();
        }
        let Some(Photons { count, detection, reference }) = photons else { return terms };
        let mean = count * k;
        match detection {
            Detection::Offset => {
                terms.factor = match reference {
                    PhotonReference::FullScale => (2 * l_x * l_w) as f32 / count,
                    PhotonReference::Mean => ((2 * l_w) as f32 * row) / mean,
                };
                terms.light = l_w as f32 * tile;
            }
            Detection::Balanced => {
                let factor = match reference {
                    PhotonReference::FullScale => (l_x * l_w * l_w) as f32 / count,
                    PhotonReference::Mean => ((l_w * l_w) as f32 * row) / mean,
                };
                terms.balanced = (factor * tile).sqrt();
            }
        }
        terms
    }
}

/// What laws of light read of each column.
#[derive(Clone, Copy)]
pub(super) struct LightColumns<'a> {
    /// s_w.
    pub(super) weight_scale: &'a [f32],
    /// The analog bias in z; `None` where there is none.
    pub(super) bias: Option<&'a [f32]>,
}

/// Pass 2 over some columns, with the laws that read z and R alone.
pub(super) struct AddNoise<'a, S: Isa> {
    pub(super) law: Law,
    pub(super) levels: NoiseLevels,
    /// The static full scales of the columns.
    pub(super) columns: Option<&'a [f32]>,
    pub(super) row_range: S::F,
    /// The normals of the columns.
    pub(super) eps: &'a [f32],
}

/// The sum of the squares of the sigmas of these laws. An absent law adds +0, which changes no sum of squares.
#[inline(always)]
fn squares<S: Isa>(isa: S, levels: &NoiseLevels, z: S::F, range: S::F) -> S::F {
    let NoiseLevels { relative, additive, shot, .. } = *levels;
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
    sum
}

/// The sigma of a law that reads z and R alone, or of several.
#[inline(always)]
fn sigma<S: Isa>(isa: S, law: Law, levels: &NoiseLevels, z: S::F, range: S::F) -> S::F {
    match law {
        Law::Relative => isa.mul(isa.splat(levels.relative), isa.abs(z)),
        Law::Additive => isa.mul(isa.splat(levels.additive), range),
        Law::Shot => isa.mul(isa.splat(levels.shot), isa.sqrt(isa.mul(isa.abs(z), range))),
        _ => isa.sqrt(squares(isa, levels, z, range)),
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
        let (first, second) =
            (sigma(isa, self.law, &self.levels, z[0], range[0]), sigma(isa, self.law, &self.levels, z[1], range[1]));
        [isa.fma(first, eps[0], z[0]), isa.fma(second, eps[1], z[1])]
    }
}

/// The same where full scales are bounded, or a law reads the light.
pub(super) struct AddLitNoise<'a, S: Isa> {
    pub(super) noise: AddNoise<'a, S>,
    /// What bounds the full scales of the columns.
    pub(super) bounds: Option<Bounds<'a>>,
    /// `None` where no law reads the light.
    pub(super) light: Option<(LightColumns<'a>, RowTerms)>,
}

impl<S: Isa> AddLitNoise<'_, S> {
    /// Of a vector of columns with these s_w and biases.
    #[inline(always)]
    fn sigma(&self, isa: S, z: S::F, range: S::F, scale: S::F, bias: S::F) -> S::F {
        let AddNoise { law, levels, .. } = &self.noise;
        let Some((_, terms)) = &self.light else { return sigma(isa, *law, levels, z, range) };
        let step = isa.mul(isa.splat(terms.x_step), scale);
        match law {
            Law::Read => read(isa, terms, step),
            Law::Photons => photons(isa, levels, terms, z, step, bias),
            Law::Several => {
                let mut sum = squares(isa, levels, z, range);
                if levels.read != 0.0 {
                    let d = read(isa, terms, step);
                    sum = isa.add(sum, isa.mul(d, d));
                }
                if levels.photons.is_some() {
                    let e = photons(isa, levels, terms, z, step, bias);
                    sum = isa.add(sum, isa.mul(e, e));
                }
                isa.sqrt(sum)
            }
            law => sigma(isa, *law, levels, z, range),
        }
    }
}

#[inline(always)]
fn read<S: Isa>(isa: S, terms: &RowTerms, step: S::F) -> S::F {
    isa.mul(step, isa.splat(terms.read))
}

#[inline(always)]
fn photons<S: Isa>(isa: S, levels: &NoiseLevels, terms: &RowTerms, z: S::F, step: S::F, bias: S::F) -> S::F {
    match levels.photons {
        Some(Photons { detection: Detection::Offset, .. }) => {
            let seen = isa.fma(isa.splat(terms.light), step, isa.sub(z, bias));
            let zero = isa.splat(0.0);
            let seen = isa.select(isa.greater(zero, seen), zero, seen);
            isa.sqrt(isa.mul(isa.mul(isa.splat(terms.factor), seen), step))
        }
        _ => isa.mul(step, isa.splat(terms.balanced)),
    }
}

impl<S: Isa> Pass<S> for AddLitNoise<'_, S> {
    #[inline(always)]
    fn group(&mut self, isa: S, column: usize, z: [S::F; 2]) -> [S::F; 2] {
        let range = match (self.noise.columns, self.bounds) {
            (Some(ranges), _) => pair(isa, ranges, column),
            (None, Some(bounds)) => bounds.ranges(isa, column),
            (None, None) => [self.noise.row_range; 2],
        };
        let eps = pair(isa, self.noise.eps, column);
        let (mut scale, mut bias) = ([isa.splat(0.0); 2], [isa.splat(0.0); 2]);
        if let Some((columns, _)) = self.light {
            scale = pair(isa, columns.weight_scale, column);
            if let Some(values) = columns.bias {
                bias = pair(isa, values, column);
            }
        }
        let first = self.sigma(isa, z[0], range[0], scale[0], bias[0]);
        let second = self.sigma(isa, z[1], range[1], scale[1], bias[1]);
        [isa.fma(first, eps[0], z[0]), isa.fma(second, eps[1], z[1])]
    }
}
