//! Standard normals by Box and Muller's method (Ann. Math. Statist. 29, 1958, doi:10.1214/aoms/1177706645), using only
//! operations that IEEE 754 defines exactly (+, *, fma, sqrt and conversions) and no library function.
//!
//! Columns come in groups of [`GROUP`]. For each, every lane of the block draws two words: A, then B.
//! As 16 words of 32 bits each, word e gives column e of the group `r cos` and column 16 + e `r sin`:
//!
//! - `u = fma(f32(A >> 1), 2^-31, 2^-32)`, in [2^-32, 1];
//! - `u = m 2^e` with m in [sqrt(1/2), sqrt(2)), `f = m - 1`;
//! - `r = sqrt(fma(e, -2 ln 2, f * H(f)))`, where H is [`LOG`] by Horner's rule;
//! - `x = f32(i32(B << 2)) * (pi/4 / 2^31)`: an angle in [-pi/4, pi/4) from the low 30 bits of B;
//! - `s = x * S(x^2)`, `c = C(x^2)` with the polynomials [`SIN`] and [`COS`];
//! - bit 31 of B flips the sign of c, bit 30 exchanges c and s: the four quarters of the circle.
//!
//! The largest |eps| is sqrt(64 ln 2) = 6.66. Compared with Box and Muller's method in exact arithmetic
//! (`tests/noise.rs`), each normal is within 5 units in the last place of the exact one for the same u (4.6 measured
//! over 2^28 pairs of words), and within 2.5e-4 of the exact one for the unrounded u = ((A >> 1) + 1/2) / 2^31, whose
//! rounding matters only near u = 1.

use crate::rng::{self, BLOCK};

/// Columns of one draw.
pub const GROUP: usize = 32;

/// -2 ln(1+f)/f on [sqrt(1/2)-1, sqrt(2)-1], lowest power first; relative error 3.0e-8.
pub const LOG: [f32; 9] = [
    -2.0,
    9.999_998e-1,
    -6.666_79e-1,
    5.000_351e-1,
    -3.992_414_5e-1,
    3.314_101_4e-1,
    -2.983_595e-1,
    2.861_506_3e-1,
    -1.746_969_8e-1,
];
/// -2 ln 2.
pub const MINUS_TWO_LN_2: f32 = -2.0 * std::f32::consts::LN_2;
/// sin(x)/x as a polynomial in x^2 on |x| <= pi/4; relative error 3.8e-9.
pub const SIN: [f32; 4] = [1.0, -1.666_665_5e-1, 8.332_16e-3, -1.951_528_2e-4];
/// cos(x) as a polynomial in x^2 on |x| <= pi/4; relative error 3.9e-8.
pub const COS: [f32; 4] = [1.0, -4.999_988_4e-1, 4.165_577_5e-2, -1.359_185_3e-3];
/// Radians of one unit of the angle's integer.
pub const ANGLE_STEP: f32 = std::f32::consts::FRAC_PI_4 / 2_147_483_648.0;
/// 2^-31.
pub const UNIFORM_STEP: f32 = 1.0 / 2_147_483_648.0;
/// 2^-32.
pub const UNIFORM_OFFSET: f32 = 1.0 / 4_294_967_296.0;
/// The bits of sqrt(1/2), the lower end of the interval of m.
pub const SQRT_HALF_BITS: i32 = 0x3F35_04F3;

fn horner(coefficients: &[f32], x: f32) -> f32 {
    coefficients.iter().rev().copied().reduce(|sum, c| sum.mul_add(x, c)).expect("a polynomial")
}

/// The two normals of the words A and B.
pub fn box_muller(a: u32, b: u32) -> (f32, f32) {
    let u = ((a >> 1) as f32).mul_add(UNIFORM_STEP, UNIFORM_OFFSET);
    let bits = u.to_bits() as i32;
    let exponent = (bits - SQRT_HALF_BITS) >> 23;
    let f = f32::from_bits((bits - (exponent << 23)) as u32) - 1.0;
    let r = (exponent as f32).mul_add(MINUS_TWO_LN_2, f * horner(&LOG, f)).sqrt();

    let x = ((b << 2) as i32) as f32 * ANGLE_STEP;
    let square = x * x;
    let sin = x * horner(&SIN, square);
    let cos = f32::from_bits(horner(&COS, square).to_bits() ^ (b & 0x8000_0000));
    if b & 0x4000_0000 == 0 { (r * cos, r * sin) } else { (r * sin, r * cos) }
}

/// eps of one row, from the call's key: `out[n]` is eps at column n.
pub fn fill_row(call_key: u64, row: u64, out: &mut [f32]) {
    fill_tile(call_key, row, 0, out);
}

/// eps of one tile of a row.
pub fn fill_tile(call_key: u64, row: u64, tile: u64, out: &mut [f32]) {
    for (block, columns) in out.chunks_mut(BLOCK).enumerate() {
        let mut lanes = rng::lanes(rng::block_key(call_key, row, rng::block_of_tile(tile, block as u64)));
        for group in columns.chunks_mut(GROUP) {
            let (a, b) = (rng::draw(&mut lanes), rng::draw(&mut lanes));
            for e in 0..GROUP / 2 {
                let (first, second) = box_muller(a[e], b[e]);
                for (column, value) in [(e, first), (e + GROUP / 2, second)] {
                    if let Some(slot) = group.get_mut(column) {
                        *slot = value;
                    }
                }
            }
        }
    }
}
