//! Weight codes as a model file stores them: low bits first, rows padded with zero bits.

use crate::error::Error;
use crate::quantize::levels;

/// Bits whose codes are packed several to a byte.
pub const PACKED_BITS: [u32; 3] = [1, 2, 4];

/// Bytes of one row of `k` codes of 1, 2 or 4 bits, for any `k`: it may come from a file.
pub const fn packed_row_bytes(bits: u32, k: usize) -> usize {
    k.div_ceil(8 / bits as usize)
}

/// The stored form of `code`: c + 2^(b-1), with one bit 0 for -1 and 1 for +1.
fn stored(bits: u32, code: i8) -> u8 {
    if bits == 1 { (code > 0) as u8 } else { (i32::from(code) + (1 << (bits - 1))) as u8 }
}

/// The code of a stored form.
fn code(bits: u32, stored: u8) -> i8 {
    if bits == 1 { 2 * stored as i8 - 1 } else { stored as i8 - (1 << (bits - 1)) as i8 }
}

/// Packs rows of `k` codes of 1, 2 or 4 bits.
pub fn pack_codes(bits: u32, k: usize, codes: &[i8]) -> Vec<u8> {
    let mut packed = Vec::with_capacity(codes.len() / k * packed_row_bytes(bits, k));
    let per_byte = 8 / bits as usize;
    for row in codes.chunks_exact(k) {
        for group in row.chunks(per_byte) {
            let byte =
                group.iter().enumerate().fold(0, |byte, (slot, c)| byte | stored(bits, *c) << (slot as u32 * bits));
            packed.push(byte);
        }
    }
    packed
}

/// Unpacks row `row` of codes of 1, 2 or 4 bits.
///
/// # Errors
/// A code of -2^(b-1), which the quantiser never gives, or a padding bit that is set.
pub fn unpack_row(bits: u32, row: usize, packed: &[u8], codes: &mut [i8]) -> Result<(), Error> {
    let per_byte = 8 / bits as usize;
    let mask = ((1u16 << bits) - 1) as u8;
    for (index, byte) in packed.iter().enumerate() {
        for slot in 0..per_byte {
            let column = index * per_byte + slot;
            let value = (byte >> (slot as u32 * bits)) & mask;
            let error =
                |value: String, allowed| Error::Element { name: "weight", index: vec![row, column], value, allowed };
            match codes.get_mut(column) {
                Some(_) if bits > 1 && value == 0 => {
                    return Err(error(format!("-{}", 1 << (bits - 1)), "a code -L..L with L = 2^(weight_bits-1)-1"));
                }
                Some(out) => *out = code(bits, value),
                None if value != 0 => return Err(error(value.to_string(), "0 in the bits that fill up a row")),
                None => {}
            }
        }
    }
    Ok(())
}

/// Checks that int8 codes of row `row` are within -L..L of `bits` bits, with one bit -1 or +1.
pub fn check_codes(bits: u32, row: usize, codes: &[i8]) -> Result<(), Error> {
    let levels = levels(bits);
    let allowed = |c: i8| if bits == 1 { c == 1 || c == -1 } else { i32::from(c).abs() <= levels };
    match codes.iter().position(|c| !allowed(*c)) {
        None => Ok(()),
        Some(bad) => Err(Error::Element {
            name: "weight",
            index: vec![row, bad],
            value: codes[bad].to_string(),
            allowed: "a code -L..L with L = 2^(weight_bits-1)-1 (-1 or +1 with weight_bits 1)",
        }),
    }
}
