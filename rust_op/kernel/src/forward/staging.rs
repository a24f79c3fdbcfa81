//! Rows of X staged for the product: the memory for their codes or values, and how it is filled.

use super::dac::{CodeSink, InputNoise, convert_row};
use super::epilogue::RowLight;
use super::product::StagedRows;
use crate::microkernel::amx::{TILE_ROWS, tile_stride};
use crate::microkernel::buffer::Buffer;
use crate::microkernel::isa::{Isa, LANES, Vectorized};
use crate::microkernel::row_ops;
use crate::microkernel::tile::float::FloatRows;
use crate::microkernel::tile::int::CodeRows;
use crate::params::Params;
use crate::saved::{CodesMut, Saved, code_stride, mask_row, take_first};
use crate::weights::Weights;

/// Maximum rows of codes.
pub(super) const CODE_ROWS: usize = 128;

/// Memory for rows as the product reads them; for at most [`CODE_ROWS`] rows if they are codes.
///
/// Where rows are split into tiles, the parts of all rows that belong to a tile lie together, in a *block* that looks
/// like the rows of a layer with as many inputs.
pub(super) struct Staging {
    values: Values,
    layout: Layout,
    /// The sums of each row's codes, where there is one tile.
    sums: [i32; CODE_ROWS],
    /// The same for each tile and row, where there are several.
    sums_of_tiles: Option<Buffer<i32>>,
    /// [`RowLight`] of each tile and row, if it is asked for.
    light: Option<Buffer<f32>>,
}

/// How rows lie in the memory.
#[derive(Clone, Copy)]
struct Layout {
    tiles: usize,
    /// Rows.
    rows: usize,
    /// Elements from one row of a block to the next, and from one block to the next.
    stride: usize,
    block: usize,
}

enum Values {
    /// The codes of all rows, followed by their magnitudes where the product needs them. With magnitudes and
    /// [`Isa::SIGNS`], signs take the place of the codes.
    Int {
        codes: Buffer<i8>,
        magnitudes: bool,
    },
    Float {
        values: Buffer<f32>,
    },
}

/// Floats from one row to the next: an odd number of cache lines, so that rows do not all fall into the same sets.
const fn float_stride(k: usize) -> usize {
    (k.div_ceil(LANES) | 1) * LANES
}

impl Staging {
    /// For `rows` rows, and their light if it is asked for.
    pub(super) fn new(weights: &Weights, rows: usize, with_light: bool) -> Self {
        let (params, k) = (weights.params(), weights.k());
        let (tiles, tile) = (params.tiles(k).len(), params.tile(k));
        let (values, stride, block) = if params.is_integer() {
            let magnitudes = weights.needs_magnitudes();
            // Matrix tiles read whole tiles of rows.
            let (rows, stride) = match weights.tier().tiles_for(rows) {
                Some(_) => (rows.next_multiple_of(TILE_ROWS), tile_stride(tile)),
                None => (rows, code_stride(tile)),
            };
            let codes = Buffer::new((tiles * rows * stride) << usize::from(magnitudes));
            (Values::Int { codes, magnitudes }, stride, rows * stride)
        } else {
            let stride = float_stride(tile);
            (Values::Float { values: Buffer::new(tiles * rows * stride) }, stride, rows * stride)
        };
        Staging {
            values,
            layout: Layout { tiles, rows, stride, block },
            sums: [0; CODE_ROWS],
            sums_of_tiles: (tiles > 1).then(|| Buffer::new(tiles * rows)),
            light: with_light.then(|| Buffer::new(3 * tiles * rows)),
        }
    }

    /// All of the memory, to be filled.
    pub(super) fn all(&mut self) -> StagingMut<'_> {
        let Staging { values, layout, sums, sums_of_tiles, light } = self;
        let sums = sums_of_tiles.as_mut().map_or(&mut sums[..], Buffer::as_mut_slice);
        let values = match values {
            Values::Int { codes, magnitudes } => {
                let codes = codes.as_mut_slice();
                let (codes, behind) = codes.split_at_mut(codes.len() >> usize::from(*magnitudes));
                ValuesMut::Int { codes, magnitudes: magnitudes.then_some(behind), sums }
            }
            Values::Float { values } => ValuesMut::Float(values.as_mut_slice()),
        };
        let light = light.as_mut().map_or(&mut [][..], Buffer::as_mut_slice);
        StagingMut { values, light: light.as_chunks_mut().0, layout: *layout }
    }

    /// The first `rows` rows of tile `tile`, to be multiplied.
    pub(super) fn rows(&self, rows: usize, tile: usize) -> StagedRows<'_> {
        let Layout { stride, block, .. } = self.layout;
        let block = tile * block..(tile + 1) * block;
        match &self.values {
            Values::Int { codes, magnitudes } => {
                let first = tile * self.layout.rows;
                let sums = match &self.sums_of_tiles {
                    None => &self.sums[..rows],
                    Some(sums) => &sums.as_slice()[first..first + rows],
                };
                let codes = codes.as_slice();
                let (codes, behind) = codes.split_at(codes.len() >> usize::from(*magnitudes));
                let magnitudes = if *magnitudes { &behind[block.clone()] } else { behind };
                StagedRows::Int(CodeRows { codes: &codes[block], magnitudes, stride, sums })
            }
            Values::Float { values } => StagedRows::Float(FloatRows { values: &values.as_slice()[block], stride }),
        }
    }

    /// The light of the rows of tile `tile`; empty if it was not asked for.
    pub(super) fn light(&self, tile: usize) -> &[RowLight] {
        let (light, _) = self.light.as_ref().map_or(&[][..], Buffer::as_slice).as_chunks();
        light.get(tile * self.layout.rows..(tile + 1) * self.layout.rows).unwrap_or_default()
    }
}

/// Rows of a [`Staging`] to be filled.
pub(super) struct StagingMut<'a> {
    values: ValuesMut<'a>,
    light: &'a mut [RowLight],
    layout: Layout,
}

enum ValuesMut<'a> {
    Int { codes: &'a mut [i8], magnitudes: Option<&'a mut [i8]>, sums: &'a mut [i32] },
    Float(&'a mut [f32]),
}

impl StagingMut<'_> {
    /// Splits off the first `count` rows, or all if there are fewer, where there is one tile.
    pub(super) fn take_rows(&mut self, count: usize) -> Self {
        let Layout { tiles, stride, .. } = self.layout;
        assert_eq!(tiles, 1, "rows that are whole");
        let values = match &mut self.values {
            ValuesMut::Int { codes, magnitudes, sums } => ValuesMut::Int {
                codes: take_first(codes, count * stride),
                magnitudes: magnitudes.as_mut().map(|magnitudes| take_first(magnitudes, count * stride)),
                sums: take_first(sums, count),
            },
            ValuesMut::Float(values) => ValuesMut::Float(take_first(values, count * stride)),
        };
        StagingMut { values, light: take_first(&mut self.light, count), layout: self.layout }
    }
}

/// Converts rows of X into `staged`, and into what `saved` asks for.
pub(super) struct ConvertRows<'a> {
    pub(super) params: &'a Params,
    pub(super) k: usize,
    pub(super) x: &'a [f32],
    pub(super) call_key: u64,
    /// The first row's number in the call.
    pub(super) first_row: usize,
    pub(super) saved: Saved<'a>,
    pub(super) staged: StagingMut<'a>,
    pub(super) x_step: &'a mut [f32],
}

impl Vectorized for ConvertRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(mut self, isa: S) {
        let (k, tiles) = (self.k, self.staged.layout.tiles);
        let mut noise = InputNoise::new(self.params, self.call_key, k);
        // Where a row is split, it is converted here first.
        let is_int = matches!(self.staged.values, ValuesMut::Int { .. });
        let mut whole_codes = (tiles > 1 && is_int).then(|| Buffer::<i8>::new(code_stride(k)));
        let mut whole_values = (tiles > 1 && !is_int).then(|| Buffer::<f32>::new(float_stride(k)));
        for (row, x) in self.x.chunks_exact(k).enumerate() {
            let mask = self.saved.dac_mask.as_mut().map(|mask| mask_row(mask, row, k));
            let noise = noise.as_mut().map(|noise| noise.of_row((self.first_row + row) as u64));
            let StagingMut { values, light, layout } = &mut self.staged;
            let Layout { rows, stride, block, .. } = *layout;
            let here = row * stride..(row + 1) * stride;
            match values {
                ValuesMut::Int { codes, magnitudes, sums } => {
                    let whole = match &mut whole_codes {
                        None => &mut codes[here.clone()],
                        Some(whole) => whole.as_mut_slice(),
                    };
                    let mut sum = 0;
                    self.x_step[row] = convert_row(isa, self.params, x, CodeSink::Int(whole, &mut sum), noise, mask);
                    if let Some(CodesMut::I8(saved)) = &mut self.saved.x_codes {
                        let saved_stride = code_stride(k);
                        saved[row * saved_stride..(row + 1) * saved_stride].copy_from_slice(&whole[..saved_stride]);
                    }
                    if !light.is_empty() {
                        let of_row = magnitude_sum(&whole[..k]);
                        for (tile, part) in self.params.tiles(k).enumerate() {
                            light[tile * rows + row] = light_of(&whole[part], of_row);
                        }
                    }
                    sums[row] = sum;
                    if let Some(whole) = &whole_codes {
                        for (tile, part) in self.params.tiles(k).enumerate() {
                            let (codes, padding) = codes[tile * block..][here.clone()].split_at_mut(part.len());
                            codes.copy_from_slice(&whole.as_slice()[part]);
                            padding.fill(0);
                            sums[tile * rows + row] = codes.iter().map(|code| i32::from(*code)).sum();
                        }
                    }
                    if let Some(magnitudes) = magnitudes {
                        for tile in 0..tiles {
                            let codes = &mut codes[tile * block..][here.clone()];
                            let magnitudes = &mut magnitudes[tile * block..][here.clone()];
                            row_ops::magnitudes(codes, magnitudes);
                            if S::SIGNS {
                                sums[tile * rows + row] = row_ops::signs(codes, magnitudes);
                            }
                        }
                    }
                }
                ValuesMut::Float(values) => {
                    let whole = match &mut whole_values {
                        None => &mut values[here.clone()],
                        Some(whole) => whole.as_mut_slice(),
                    };
                    self.x_step[row] = convert_row(isa, self.params, x, CodeSink::Float(whole), noise, mask);
                    if let Some(saved) = &mut self.saved.x_codes {
                        row_ops::narrow(isa, &whole[..k], saved.row(row, k));
                    }
                    if !light.is_empty() {
                        let of_row = value_sum(&whole[..k]);
                        for (tile, part) in self.params.tiles(k).enumerate() {
                            light[tile * rows + row] = light_of_values(&whole[part], of_row);
                        }
                    }
                    if let Some(whole) = &whole_values {
                        for (tile, part) in self.params.tiles(k).enumerate() {
                            let (values, padding) = values[tile * block..][here.clone()].split_at_mut(part.len());
                            values.copy_from_slice(&whole.as_slice()[part]);
                            padding.fill(0.0);
                        }
                    }
                }
            }
        }
        if let Some(saved) = &mut self.saved.x_step {
            saved.copy_from_slice(self.x_step);
        }
    }
}

/// sum |a| of codes, exact.
#[inline(always)]
fn magnitude_sum(codes: &[i8]) -> i64 {
    codes.chunks(ROW_CHUNK).map(|codes| i64::from(codes.iter().map(|a| i32::from(a.unsigned_abs())).sum::<i32>())).sum()
}

/// Codes whose squares are added in 32 bits: 127^2 * 2^16 < 2^31.
const ROW_CHUNK: usize = 1 << 16;

/// The light of a tile of codes, in a row whose magnitudes come to `of_row`.
#[inline(always)]
fn light_of(codes: &[i8], of_row: i64) -> RowLight {
    let squares = codes
        .chunks(ROW_CHUNK)
        .map(|codes| i64::from(codes.iter().map(|a| i32::from(*a) * i32::from(*a)).sum::<i32>()));
    [magnitude_sum(codes) as f32, squares.sum::<i64>() as f32, of_row as f32]
}

/// The same of codes in floats.
#[inline(always)]
fn value_sum(codes: &[f32]) -> i64 {
    codes.iter().map(|a| (*a as i64).abs()).sum()
}

#[inline(always)]
fn light_of_values(codes: &[f32], of_row: i64) -> RowLight {
    let squares = codes.iter().map(|a| *a as i64 * *a as i64).sum::<i64>();
    [value_sum(codes) as f32, squares as f32, of_row as f32]
}
