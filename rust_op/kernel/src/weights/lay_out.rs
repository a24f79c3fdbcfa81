//! Lays channels of W out in panels: quantises or unpacks one row at a time, then packs 32 rows at a time.

use std::ops::Range;

use super::{WeightSource, panel_elements};
use crate::error::Error;
use crate::microkernel::buffer::{Buffer, Part};
use crate::microkernel::isa::{Isa, LANES, Vectorized};
use crate::microkernel::panels::{PANEL, Storage, pack_float, pack_int, staged_stride};
use crate::microkernel::row_ops::{self, Coder, INFINITY_BITS, VectorQuantizer};
use crate::pack;
use crate::quantize::{self, levels, weight_quantizer};
use crate::saved::{CodesMut, take_first};

/// The error for row `row`, `w`, in which a number that is not finite was seen.
#[cold]
fn not_finite(row: usize, w: &[f32]) -> Error {
    match w.iter().copied().enumerate().find(|(_, value)| !value.is_finite()) {
        Some((column, value)) => Error::element("weight", vec![row, column], value, "a finite number"),
        None => Error::Changed { name: "weight", row },
    }
}

/// Where the panels of a task's channels go.
pub(super) enum PanelSink<'a> {
    Int(Storage, Part<'a, u8>),
    Float(Part<'a, f32>),
}

/// Quantises or unpacks channels of W.
pub(super) struct LayOutChannels<'a> {
    pub(super) bits: u32,
    pub(super) k: usize,
    /// Inputs of a tile.
    pub(super) tile: usize,
    /// The channels.
    pub(super) rows: Range<usize>,
    pub(super) source: WeightSource<'a>,
    pub(super) scale: Option<&'a [f32]>,
    pub(super) scale_out: &'a mut [f32],
    pub(super) codes: Option<CodesMut<'a>>,
}

/// Lays channels out in panels.
struct IntoPanels<'a> {
    channels: LayOutChannels<'a>,
    sink: PanelSink<'a>,
}

impl Vectorized for IntoPanels<'_> {
    type Output = Result<(), Error>;

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) -> Result<(), Error> {
        let IntoPanels { mut channels, sink } = self;
        let k = channels.k;
        let split = channels.tile < k;
        match sink {
            PanelSink::Int(storage, bytes) => {
                let stride = staged_stride(k);
                let mut staged = Buffer::<i8>::new(PANEL * stride);
                let mut part = split.then(|| Buffer::<i8>::new(PANEL * staged_stride(channels.tile)));
                let size = panel_elements(Some(storage), k, channels.tile);
                for (panel, mut bytes) in bytes.zeroed().chunks_exact_mut(size).enumerate() {
                    for (slot, out) in staged.as_mut_slice().chunks_exact_mut(stride).enumerate() {
                        channels.stage_int(isa, panel * PANEL + slot, out)?;
                    }
                    let Some(part) = &mut part else {
                        pack_int(isa, storage, k, staged.as_slice(), bytes);
                        continue;
                    };
                    for tile in channels.tiles() {
                        copy_columns(staged.as_slice(), stride, &tile, part.as_mut_slice(), staged_stride(tile.len()));
                        let bytes = take_first(&mut bytes, storage.panel_bytes(tile.len()));
                        pack_int(isa, storage, tile.len(), part.as_slice(), bytes);
                    }
                }
            }
            PanelSink::Float(values) => {
                let stride = float_stride(k);
                let mut staged = Buffer::<f32>::new(PANEL * stride);
                let mut part = split.then(|| Buffer::<f32>::new(PANEL * float_stride(channels.tile)));
                for (panel, mut values) in values.zeroed().chunks_exact_mut(PANEL * k).enumerate() {
                    for (slot, out) in staged.as_mut_slice().chunks_exact_mut(stride).enumerate() {
                        channels.stage_float(isa, panel * PANEL + slot, out)?;
                    }
                    let Some(part) = &mut part else {
                        pack_float(isa, k, stride, staged.as_slice(), values);
                        continue;
                    };
                    for tile in channels.tiles() {
                        let of_tile = float_stride(tile.len());
                        copy_columns(staged.as_slice(), stride, &tile, part.as_mut_slice(), of_tile);
                        let values = take_first(&mut values, PANEL * tile.len());
                        pack_float(isa, tile.len(), of_tile, part.as_slice(), values);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Elements from one staged row of floats to the next: an odd number of vectors, since rows a power of two apart would
/// share their cache sets.
const fn float_stride(k: usize) -> usize {
    (k.div_ceil(LANES) | 1) * LANES
}

/// Copies columns `columns` of [`PANEL`] rows, `stride` apart, to the start of rows that are `new_stride` apart and are
/// padded with zeros.
#[inline(always)]
fn copy_columns<T: Copy + Default>(
    rows: &[T],
    stride: usize,
    columns: &Range<usize>,
    out: &mut [T],
    new_stride: usize,
) {
    for (row, out) in rows.chunks_exact(stride).zip(out.chunks_exact_mut(new_stride)) {
        let (values, padding) = out.split_at_mut(columns.len());
        values.copy_from_slice(&row[columns.clone()]);
        padding.fill(T::default());
    }
}

impl<'a> LayOutChannels<'a> {
    /// The inputs of each tile.
    fn tiles(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (k, tile) = (self.k, self.tile);
        (0..k).step_by(tile).map(move |first| first..k.min(first + tile))
    }

    /// The computation that lays the channels out in the panels of `sink`.
    pub(super) fn into(self, sink: PanelSink<'a>) -> impl Vectorized<Output = Result<(), Error>> + use<'a> {
        IntoPanels { channels: self, sink }
    }

    /// The row of W at `offset` from the first of these channels, if there is one.
    fn row(&self, offset: usize) -> Option<usize> {
        Some(self.rows.start + offset).filter(|row| *row < self.rows.end)
    }

    /// Sets the scale of a channel of f32 weights and returns its coder, `None` where it is analog.
    #[inline(always)]
    fn coder<S: Isa>(&mut self, isa: S, offset: usize, row: usize, w: &[f32]) -> Result<Option<Coder<S>>, Error> {
        let largest = row_ops::largest_magnitude(isa, w);
        if largest >= INFINITY_BITS {
            return Err(not_finite(row, w));
        }
        if self.bits == 0 {
            self.scale_out[offset] = 1.0;
            return Ok(None);
        }
        let scale = match self.scale {
            Some([one]) => *one,
            Some(each) => each[row],
            None if self.bits == 1 => row_ops::sum_magnitudes(isa, w) / self.k as f32,
            None => f32::from_bits(largest as u32) / levels(self.bits) as f32,
        };
        if self.scale.is_none() {
            // Only weights that changed after their maximum was found to be finite can sum to NaN.
            if scale.is_nan() {
                return Err(Error::Changed { name: "weight", row });
            }
            quantize::check_default_scale(self.bits, row, scale)?;
        }
        self.scale_out[offset] = scale;
        Ok(Some(match self.bits {
            1 => Coder::Sign,
            bits => Coder::Quantizer(VectorQuantizer::new(isa, &weight_quantizer(bits, scale))),
        }))
    }

    /// Reads the stored codes of the channel at `offset` and sets its scale.
    #[inline(always)]
    fn stored_codes(&mut self, offset: usize, row: usize, out: &mut [i8]) -> Result<(), Error> {
        let (bits, k) = (self.bits, self.k);
        match self.source {
            WeightSource::Codes(codes) => {
                // Copied first: what is checked is what is used, even if another thread writes to `codes`.
                out.copy_from_slice(&codes[row * k..(row + 1) * k]);
                pack::check_codes(bits, row, out)?;
            }
            WeightSource::Packed(packed) => {
                let bytes = pack::packed_row_bytes(bits, k);
                pack::unpack_row(bits, row, &packed[row * bytes..(row + 1) * bytes], out)?;
            }
            WeightSource::F32(_) => unreachable!("weights in f32 are quantised"),
        }
        self.scale_out[offset] = match self.scale.expect("checked") {
            [one] => *one,
            each => each[row],
        };
        Ok(())
    }

    #[inline(always)]
    fn stage_int<S: Isa>(&mut self, isa: S, offset: usize, out: &mut [i8]) -> Result<(), Error> {
        let Some(row) = self.row(offset) else {
            out.fill(0);
            return Ok(());
        };
        let k = self.k;
        if let WeightSource::F32(w) = self.source {
            let w = &w[row * k..(row + 1) * k];
            let coder = self.coder(isa, offset, row, w)?.expect("an integer product has codes");
            row_ops::codes_i8(isa, w, out, &coder);
        } else {
            out[k..].fill(0);
            self.stored_codes(offset, row, &mut out[..k])?;
        }
        if let Some(CodesMut::I8(saved)) = self.codes.as_mut().map(|codes| codes.row(offset, k)) {
            let stride = saved.len();
            let count = stride.min(out.len());
            saved[..count].copy_from_slice(&out[..count]);
            saved[count..].fill(0);
        }
        Ok(())
    }

    #[inline(always)]
    fn stage_float<S: Isa>(&mut self, isa: S, offset: usize, out: &mut [f32]) -> Result<(), Error> {
        let Some(row) = self.row(offset) else {
            out.fill(0.0);
            return Ok(());
        };
        let k = self.k;
        if let WeightSource::F32(w) = self.source {
            let w = &w[row * k..(row + 1) * k];
            match self.coder(isa, offset, row, w)? {
                Some(coder) => row_ops::codes_f32(isa, w, out, &coder),
                None => {
                    out[..k].copy_from_slice(w);
                    out[k..].fill(0.0);
                }
            }
        } else {
            let mut codes = vec![0; k];
            self.stored_codes(offset, row, &mut codes)?;
            out.fill(0.0);
            out.iter_mut().zip(&codes).for_each(|(out, code)| *out = f32::from(*code));
        }
        if let Some(saved) = &mut self.codes {
            row_ops::narrow(isa, &out[..k], saved.row(offset, k));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Another thread may overwrite a NaN after the maximum has shown it and before it is located.
    #[test]
    fn a_row_that_changes_between_two_looks() {
        let message = |w: &[f32]| not_finite(3, w).to_string();
        assert_eq!(message(&[1.0, f32::INFINITY, f32::NAN]), "weight[3, 1] = inf: allowed is a finite number");
        let changed = "weight[3] changed while it was read: allowed is memory that nobody writes to during the call";
        assert_eq!(message(&[1.0, 2.0]), changed);
        assert_eq!(not_finite(3, &[]).argument(), "weight");
    }
}
