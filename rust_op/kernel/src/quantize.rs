//! The symmetric mid-tread quantiser of DAC, weights and ADC, and the default weight scale.

use crate::error::Error;

/// Largest code of `bits` bits: L = 2^(bits-1) - 1, and 1 for the two codes of a single bit.
pub const fn levels(bits: u32) -> i32 {
    if bits == 1 { 1 } else { (1 << (bits - 1)) - 1 }
}

/// `q(v) = step * rne(clamp(v * inv, -L, L))` for one full scale.
///
/// Where `inv` is not finite (a full scale of 0, or a tiny one) every code is 0: `inv` and `limit` are
/// then 0, so that branchless loops give 0 as well.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quantizer {
    /// Codes per unit of signal: L / range.
    pub inv: f32,
    /// Signal per code: range / L.
    pub step: f32,
    /// L, or 0 where every code is 0.
    pub limit: f32,
}

impl Quantizer {
    /// The quantiser with codes -`levels`..`levels` over a full scale of +-`range`.
    pub fn new(levels: i32, range: f32) -> Self {
        let limit = levels as f32;
        Quantizer::of(limit / range, range / limit, limit)
    }

    /// The quantiser with codes -`limit`..`limit`. With an `inv` of 0, that of a full scale which overflows, codes are 0.
    pub fn of(inv: f32, step: f32, limit: f32) -> Self {
        if inv.is_finite() && inv != 0.0 {
            Quantizer { inv, step, limit }
        } else {
            Quantizer { inv: 0.0, step, limit: 0.0 }
        }
    }

    /// The code of `v`, which must not be NaN.
    pub fn code(&self, v: f32) -> i32 {
        if self.limit == 0.0 {
            return 0;
        }
        (v * self.inv).clamp(-self.limit, self.limit).round_ties_even() as i32
    }
}

/// Lanes in which the contract sums |w| for the 1-bit scale.
const MEAN_LANES: usize = 16;

/// The default `weight_scale` of one output channel `w` of K weights: max|w| / L, or with one bit
/// mean|w|, summed in 16 lanes (lane j adds k = j, j+16, ... ascending; then lanes j and j+8, j+4,
/// j+2, j+1 are added, and the sum is divided by K).
pub fn default_scale(w: &[f32], bits: u32) -> f32 {
    if bits == 1 {
        let mut lanes = [0.0f32; MEAN_LANES];
        for (index, value) in w.iter().enumerate() {
            lanes[index % MEAN_LANES] += value.abs();
        }
        for half in [8, 4, 2, 1] {
            for j in 0..half {
                lanes[j] += lanes[j + half];
            }
        }
        lanes[0] / w.len() as f32
    } else {
        w.iter().fold(0.0f32, |max, value| max.max(value.abs())) / levels(bits) as f32
    }
}

/// The quantiser of a weight channel with step `scale`: full scale `scale * L`, in f32.
pub fn weight_quantizer(bits: u32, scale: f32) -> Quantizer {
    let levels = levels(bits);
    Quantizer::new(levels, scale * levels as f32)
}

/// The code of one weight; with one bit, its sign.
pub fn weight_code(bits: u32, quantizer: &Quantizer, w: f32) -> i32 {
    match bits {
        1 if w >= 0.0 => 1,
        1 => -1,
        _ => quantizer.code(w),
    }
}

const SCALE_ALLOWED: &str = "a finite number >= 0 whose full scale (weight_scale * L) is finite in 32 bits";

/// Whether `scale` is at least 0 and gives its channel a finite full scale.
fn scale_is_allowed(scale: f32, levels: i32) -> bool {
    scale >= 0.0 && (scale * levels as f32).is_finite()
}

/// Checks `weight_scale`: 1 or N numbers >= 0 whose full scales are finite.
pub fn check_scale(scale: &[f32], n: usize, levels: i32) -> Result<(), Error> {
    if scale.len() != 1 && scale.len() != n {
        return Err(Error::Length {
            name: "weight_scale",
            length: scale.len(),
            allowed: format!("1, or one for each of the N = {n} outputs"),
        });
    }
    // One read of each element: the one that is named is the one that was refused, whoever writes there meanwhile.
    match scale.iter().copied().enumerate().find(|(_, scale)| !scale_is_allowed(*scale, levels)) {
        Some((bad, value)) => Err(Error::element("weight_scale", vec![bad], value, SCALE_ALLOWED)),
        None => Ok(()),
    }
}

/// Checks the default scale of channel `row`: with weights close to the largest float, its full scale may overflow.
pub fn check_default_scale(bits: u32, row: usize, scale: f32) -> Result<(), Error> {
    if scale_is_allowed(scale, levels(bits)) {
        Ok(())
    } else {
        Err(Error::element("weight_scale", vec![row], scale, SCALE_ALLOWED))
    }
}

/// Checks that every element of a row-major array of rows of `row` elements is finite.
pub fn check_finite(name: &'static str, values: &[f32], row: Option<usize>) -> Result<(), Error> {
    // One read of each element, as in `check_scale`.
    match values.iter().copied().enumerate().find(|(_, value)| !value.is_finite()) {
        Some((bad, value)) => {
            let index = row.map_or_else(|| vec![bad], |row| vec![bad / row, bad % row]);
            Err(Error::element(name, index, value, "a finite number"))
        }
        None => Ok(()),
    }
}
