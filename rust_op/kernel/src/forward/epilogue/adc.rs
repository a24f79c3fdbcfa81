//! The ADC, and the other last steps on an output.
#![allow(clippy::needless_range_loop, reason = "halves index several arrays at once")]

use super::{GROUP, Pass, padded, pair};
use crate::microkernel::isa::Isa;
use crate::microkernel::row_ops::VectorQuantizer;
use crate::params::{OutputRange, Params};
use crate::quantize::{Quantizer, levels};
use crate::reference::NAN;

/// Static full scales and their quantisers, one entry per column, padded to whole groups.
#[derive(Clone, Debug)]
pub(super) struct StaticRanges {
    pub(super) range: Vec<f32>,
    inv: Vec<f32>,
    step: Vec<f32>,
    limit: Vec<f32>,
}

impl StaticRanges {
    /// The full scales of `n` columns; `None` where each row takes its own maximum.
    pub(super) fn new(params: &Params, n: usize) -> Option<Self> {
        let range: Vec<f32> = match &params.output_range {
            OutputRange::Dynamic => return None,
            OutputRange::Layer(range) => vec![*range; n.next_multiple_of(GROUP)],
            OutputRange::Channel(ranges) => padded(ranges.iter().copied(), 1.0),
        };
        let output_levels = if params.output_bits == 0 { 0 } else { levels(params.output_bits) };
        let quantizers: Vec<_> = range.iter().map(|range| Quantizer::new(output_levels, *range)).collect();
        Some(StaticRanges {
            inv: quantizers.iter().map(|q| q.inv).collect(),
            step: quantizers.iter().map(|q| q.step).collect(),
            limit: quantizers.iter().map(|q| q.limit).collect(),
            range,
        })
    }
}

/// Pass 3: ADC, digital bias, NaN made canonical, saturation mask.
pub(super) struct Convert<'a, S: Isa> {
    /// The ADC, if there is one; with static full scales, each column's own quantiser takes its place.
    pub(super) quantizer: Option<VectorQuantizer<S>>,
    pub(super) columns: Option<&'a StaticRanges>,
    pub(super) digital_bias: Option<&'a [f32]>,
    pub(super) mask: Option<&'a mut [u8]>,
}

impl<S: Isa> Pass<S> for Convert<'_, S> {
    #[inline(always)]
    fn group(&mut self, isa: S, column: usize, v: [S::F; 2]) -> [S::F; 2] {
        let mut value = v;
        if let Some(quantizer) = self.quantizer {
            let mut quantizers = [quantizer; 2];
            if let Some(columns) = self.columns {
                let inv = pair(isa, &columns.inv, column);
                let limit = pair(isa, &columns.limit, column);
                let step = pair(isa, &columns.step, column);
                for half in 0..2 {
                    quantizers[half] = VectorQuantizer::from_vectors(isa, inv[half], limit[half], step[half]);
                }
            }
            value = [quantizers[0].value(v[0]), quantizers[1].value(v[1])];
        }
        if let (Some(mask), Some(columns)) = (&mut self.mask, self.columns) {
            let range = pair(isa, &columns.range, column);
            let (words, _) = mask[column / 8..].as_chunks_mut::<2>();
            for (half, word) in words.iter_mut().take(2).enumerate() {
                *word = isa.mask_bits(isa.greater(isa.abs(v[half]), range[half])).to_le_bytes();
            }
        }
        if let Some(bias) = self.digital_bias {
            let bias = pair(isa, bias, column);
            value = [isa.add(value[0], bias[0]), isa.add(value[1], bias[1])];
        }
        let nan = isa.splat(NAN);
        [isa.select(isa.is_nan(v[0]), nan, value[0]), isa.select(isa.is_nan(v[1]), nan, value[1])]
    }
}
