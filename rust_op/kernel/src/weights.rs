//! Weights, quantised, checked and laid out for the kernels.

use std::sync::Mutex;

use crate::error::Error;
use crate::executor::{Executor, run_each};
use crate::microkernel::Tier;
use crate::microkernel::buffer::Buffer;
use crate::microkernel::isa::{Isa, LANES, Vectorized};
use crate::microkernel::panels::{pack_float, pack_int, staged_stride};
use crate::microkernel::rows::{self, Coder, INFINITY_BITS, VectorQuantizer};
use crate::microkernel::tile::{PANEL, Storage};
use crate::pack;
use crate::params::Params;
use crate::quantize::{self, levels, weight_quantizer};

/// Where weights come from.
#[derive(Clone, Copy, Debug)]
pub enum WeightSource<'a> {
    /// `[N, K]`: quantised here (or used as they are with weight_bits 0).
    F32(&'a [f32]),
    /// `[N, K]`: codes of 1..8 bits.
    Codes(&'a [i8]),
    /// `[N, ceil(K*b/8)]`: codes of b = 1, 2 or 4 bits as [`pack`] stores them.
    Packed(&'a [u8]),
}

/// Codes to keep for a backward pass, in rows of [`code_stride`].
#[derive(Debug)]
pub enum CodesMut<'a> {
    /// Codes of 1..8 bits.
    I8(&'a mut [i8]),
    /// Codes of 9..16 bits.
    I16(&'a mut [i16]),
}

impl<'a> CodesMut<'a> {
    /// Checks that this is the memory for `rows` rows of `k` codes of `bits` bits.
    pub(crate) fn check(&self, name: &'static str, rows: usize, k: usize, bits: u32) -> Result<(), Error> {
        let (fits, length) = match self {
            CodesMut::I8(codes) => ((1..=8).contains(&bits), codes.len()),
            CodesMut::I16(codes) => ((9..=16).contains(&bits), codes.len()),
        };
        if !fits {
            return Err(Error::value(
                name,
                format!("of {bits} bits"),
                "int8 for codes of 1..8 bits, int16 for 9..16, none where analog",
            ));
        }
        if length != rows * code_stride(k) {
            return Err(Error::Length { name, length, allowed: format!("{rows} rows * {}", code_stride(k)) });
        }
        Ok(())
    }

    /// Takes the first `rows` rows of `k` off, or all where there are fewer.
    pub(crate) fn take_rows(&mut self, rows: usize, k: usize) -> CodesMut<'a> {
        let length = rows * code_stride(k);
        match self {
            CodesMut::I8(codes) => CodesMut::I8(take_first(codes, length)),
            CodesMut::I16(codes) => CodesMut::I16(take_first(codes, length)),
        }
    }

    /// Narrows a row of `k` codes that stand as floats into row `row`.
    #[inline(always)]
    pub(crate) fn store<S: Isa>(&mut self, isa: S, row: usize, codes: &[f32]) {
        let stride = code_stride(codes.len());
        match self {
            CodesMut::I8(out) => {
                rows::codes_i8(isa, codes, &mut out[row * stride..(row + 1) * stride], &Coder::Narrow);
            }
            CodesMut::I16(out) => rows::narrow_i16(isa, codes, &mut out[row * stride..(row + 1) * stride]),
        }
    }
}

/// Takes the first `count` elements off `rest`, or all where there are fewer.
pub(crate) fn take_first<'a, T>(rest: &mut &'a mut [T], count: usize) -> &'a mut [T] {
    let count = count.min(rest.len());
    rest.split_off_mut(..count).expect("no more than there are")
}

/// Elements from one row of codes to the next, for rows of `k`: a multiple of 4, the padding 0; for long
/// rows an odd multiple of a cache line, so that rows do not all fall into the same cache sets.
pub const fn code_stride(k: usize) -> usize {
    if k < 512 { k.next_multiple_of(4) } else { k.div_ceil(64) / 2 * 128 + 64 }
}

/// Weights in panels of [`PANEL`] channels.
#[derive(Clone, Debug)]
pub(crate) enum Panels {
    Int { storage: Storage, bytes: Buffer<u8> },
    Float(Buffer<f32>),
}

/// The weights of a layer.
#[derive(Clone, Debug)]
pub struct Weights {
    /// What they are laid out for.
    tier: Tier,
    n: usize,
    k: usize,
    /// `[N]`, filled up with zeros to whole panels.
    scale: Vec<f32>,
    panels: Panels,
}

impl Weights {
    /// Quantises (or unpacks), checks and lays out W `[n, k]`.
    ///
    /// `scale` has 1 or N elements; without it weights in f32 take the default scale, codes need one,
    /// analog weights have none. `codes` receives the codes, if asked for.
    ///
    /// # Errors
    /// A shape or parameter that does not fit, a weight or scale that is not finite, a code out of range.
    #[allow(clippy::too_many_arguments, reason = "each is a fact of its own")]
    pub fn new(
        tier: Tier,
        executor: &dyn Executor,
        params: &Params,
        (n, k): (usize, usize),
        source: WeightSource<'_>,
        scale: Option<&[f32]>,
        codes: Option<CodesMut<'_>>,
    ) -> Result<Self, Error> {
        params.check_shape(n, k)?;
        check_source(params, n, k, source, scale)?;
        if let Some(codes) = &codes {
            codes.check("w_codes", n, k, params.weight_bits)?;
        }

        let panels = n.div_ceil(PANEL);
        let mut scales = vec![0.0; panels * PANEL];
        let mut laid_out = if params.is_integer() {
            let storage = Storage::of(params.weight_bits, tier.signed_codes());
            Panels::Int { storage, bytes: Buffer::new(panels * storage.panel_bytes(k)) }
        } else {
            Panels::Float(Buffer::new(panels * PANEL * k))
        };

        // Whole panels a task, of some 16 Ki weights at least.
        let together = (16_384 / (PANEL * k)).clamp(1, panels);
        let rows = together * PANEL;
        let targets: Vec<Target<'_>> = match &mut laid_out {
            Panels::Int { storage, bytes } => bytes
                .as_mut_slice()
                .chunks_mut(together * storage.panel_bytes(k))
                .map(|bytes| Target::Int(*storage, bytes))
                .collect(),
            Panels::Float(values) => values.as_mut_slice().chunks_mut(rows * k).map(Target::Float).collect(),
        };
        let mut codes = codes;
        let tasks = targets.into_iter().zip(scales.chunks_mut(rows)).enumerate();
        let tasks = tasks.map(|(index, (target, scale_out))| Pack {
            bits: params.weight_bits,
            k,
            rows: index * rows..n.min((index + 1) * rows),
            source,
            scale,
            target,
            scale_out,
            codes: codes.as_mut().map(|codes| codes.take_rows(rows, k)),
        });

        let failure: Mutex<Option<(usize, Error)>> = Mutex::new(None);
        run_each(executor, (n * k) as u64 / 5, tasks, |task| {
            let first = task.rows.start;
            if let Err(error) = tier.vectorize(task) {
                let mut failure = failure.lock().expect("no task panics with the lock");
                if failure.as_ref().is_none_or(|(row, _)| first < *row) {
                    *failure = Some((first, error));
                }
            }
        });
        match failure.into_inner().expect("no task panics with the lock") {
            Some((_, error)) => Err(error),
            None => Ok(Weights { tier, n, k, scale: scales, panels: laid_out }),
        }
    }

    /// The tier that they are laid out for, and that multiplies with them.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// Outputs.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        self.k
    }

    /// `[N]`: the step of one code; 1 where W is analog.
    pub fn scale(&self) -> &[f32] {
        &self.scale[..self.n]
    }

    /// Whether their products need the magnitudes of X's codes.
    pub(crate) fn needs_magnitudes(&self) -> bool {
        matches!(self.panels, Panels::Int { storage: Storage { zero: 0, .. }, .. })
    }

    /// Bytes of the panels, which a product reads.
    pub(crate) fn bytes(&self) -> usize {
        match &self.panels {
            Panels::Int { bytes, .. } => bytes.as_slice().len(),
            Panels::Float(values) => size_of_val(values.as_slice()),
        }
    }

    pub(crate) fn panels(&self) -> &Panels {
        &self.panels
    }

    /// The scales of panel `panel`.
    pub(crate) fn panel_scale(&self, panel: usize) -> &[f32; PANEL] {
        &self.scale.as_chunks::<PANEL>().0[panel]
    }
}

fn check_source(
    params: &Params,
    n: usize,
    k: usize,
    source: WeightSource<'_>,
    scale: Option<&[f32]>,
) -> Result<(), Error> {
    let bits = params.weight_bits;
    match scale {
        Some(scale) if bits == 0 => {
            return Err(Error::Ignored {
                name: "weight_scale",
                value: match scale {
                    [one] => one.to_string(),
                    more => format!("{} numbers", more.len()),
                },
                because: "with weight_bits 0 the weights are analog",
            });
        }
        Some(scale) => quantize::check_scale(scale, n, levels(bits))?,
        None if matches!(source, WeightSource::F32(_)) => {}
        None => return Err(Error::value("weight_scale", "none", "1 or N numbers where the weights are codes")),
    }
    let (length, expected) = match source {
        WeightSource::F32(w) => (w.len(), n * k),
        WeightSource::Codes(codes) => {
            if !(1..=8).contains(&bits) {
                return Err(Error::value("weight_bits", bits, "1..8 where the weights are int8 codes"));
            }
            (codes.len(), n * k)
        }
        WeightSource::Packed(packed) => {
            if !pack::PACKED_BITS.contains(&bits) {
                return Err(Error::value("weight_bits", bits, "1, 2 or 4 where the weights are packed in uint8"));
            }
            (packed.len(), n * pack::packed_row_bytes(bits, k))
        }
    };
    if length == expected {
        Ok(())
    } else {
        Err(Error::Length { name: "weight", length, allowed: format!("{expected} for N = {n}, K = {k}") })
    }
}

/// What is said of row `row`, `w`, in which a number was seen that is not finite.
#[cold]
fn not_finite(row: usize, w: &[f32]) -> Error {
    match w.iter().copied().enumerate().find(|(_, value)| !value.is_finite()) {
        Some((column, value)) => Error::element("weight", vec![row, column], value, "a finite number"),
        None => Error::Changed { name: "weight", row },
    }
}

/// Where the panels of a task go.
enum Target<'a> {
    Int(Storage, &'a mut [u8]),
    Float(&'a mut [f32]),
}

/// Quantises and packs the channels `rows`.
struct Pack<'a> {
    bits: u32,
    k: usize,
    rows: std::ops::Range<usize>,
    source: WeightSource<'a>,
    scale: Option<&'a [f32]>,
    target: Target<'a>,
    scale_out: &'a mut [f32],
    codes: Option<CodesMut<'a>>,
}

impl Vectorized for Pack<'_> {
    type Output = Result<(), Error>;

    #[inline(always)]
    fn run<S: Isa>(mut self, isa: S) -> Result<(), Error> {
        let k = self.k;
        match std::mem::replace(&mut self.target, Target::Float(&mut [])) {
            Target::Int(storage, bytes) => {
                let stride = staged_stride(k);
                let mut staged = Buffer::<i8>::new(PANEL * stride);
                for (panel, bytes) in bytes.chunks_exact_mut(storage.panel_bytes(k)).enumerate() {
                    for (slot, out) in staged.as_mut_slice().chunks_exact_mut(stride).enumerate() {
                        self.stage_int(isa, panel * PANEL + slot, out)?;
                    }
                    pack_int(isa, storage, k, staged.as_slice(), bytes);
                }
            }
            Target::Float(values) => {
                // An odd number of vectors: rows a power of two apart would share their cache sets.
                let stride = (k.div_ceil(LANES) | 1) * LANES;
                let mut staged = Buffer::<f32>::new(PANEL * stride);
                for (panel, values) in values.chunks_exact_mut(PANEL * k).enumerate() {
                    for (slot, out) in staged.as_mut_slice().chunks_exact_mut(stride).enumerate() {
                        self.stage_float(isa, panel * PANEL + slot, out)?;
                    }
                    pack_float(isa, k, stride, staged.as_slice(), values);
                }
            }
        }
        Ok(())
    }
}

impl Pack<'_> {
    /// The row of W at `offset` from the first, if there is one.
    fn row(&self, offset: usize) -> Option<usize> {
        Some(self.rows.start + offset).filter(|row| *row < self.rows.end)
    }

    /// Sets the scale of a channel given in f32 and returns what codes it, `None` where it is analog.
    #[inline(always)]
    fn coder<S: Isa>(&mut self, isa: S, offset: usize, row: usize, w: &[f32]) -> Result<Option<Coder<S>>, Error> {
        let largest = rows::largest_magnitude(isa, w);
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
            None if self.bits == 1 => rows::sum_magnitudes(isa, w) / self.k as f32,
            None => f32::from_bits(largest as u32) / levels(self.bits) as f32,
        };
        if self.scale.is_none() {
            // The sum of numbers that were finite when their maximum was looked for.
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

    /// Codes of the channel at `offset`, from codes; sets its scale.
    #[inline(always)]
    fn stored_codes(&mut self, offset: usize, row: usize, out: &mut [i8]) -> Result<(), Error> {
        let (bits, k) = (self.bits, self.k);
        match self.source {
            WeightSource::Codes(codes) => {
                // What is checked is what is used, should somebody write to them meanwhile.
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
            rows::codes_i8(isa, w, out, &coder);
        } else {
            out[k..].fill(0);
            self.stored_codes(offset, row, &mut out[..k])?;
        }
        if let Some(CodesMut::I8(saved)) = &mut self.codes {
            let stride = code_stride(k);
            let saved = &mut saved[offset * stride..(offset + 1) * stride];
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
                Some(coder) => rows::codes_f32(isa, w, out, &coder),
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
            saved.store(isa, offset, &out[..k]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Another thread may write a number over the NaN that a maximum has shown, before it is looked for.
    #[test]
    fn a_row_that_changes_between_two_looks() {
        let message = |w: &[f32]| not_finite(3, w).to_string();
        assert_eq!(message(&[1.0, f32::INFINITY, f32::NAN]), "weight[3, 1] = inf: allowed is a finite number");
        let changed = "weight[3] changed while it was read: allowed is memory that nobody writes to during the call";
        assert_eq!(message(&[1.0, 2.0]), changed);
        assert_eq!(not_finite(3, &[]).argument(), "weight");
    }
}
