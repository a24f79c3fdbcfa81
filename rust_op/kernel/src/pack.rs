//! Weight codes as a model file stores them: low bits first, rows padded with zero bits.

use crate::error::Error;
use crate::quantize::levels;

/// Numbers of bits whose codes are packed several to a byte.
pub const PACKED_BITS: [u32; 3] = [1, 2, 4];

/// Bytes of one row of `k` codes of 1, 2 or 4 bits. Any `k` is valid, since it may come from a file.
pub const fn packed_row_bytes(bits: u32, k: usize) -> usize {
    k.div_ceil(8 / bits as usize)
}

/// The stored form of `code`: c + 2^(b-1); with one bit, 0 for -1 and 1 for +1.
fn stored(bits: u32, code: i8) -> u8 {
    if bits == 1 { (code > 0) as u8 } else { (i32::from(code) + (1 << (bits - 1))) as u8 }
}

/// The code of a stored form.
#[inline(always)]
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
#[inline(always)]
pub fn unpack_row(bits: u32, row: usize, packed: &[u8], codes: &mut [i8]) -> Result<(), Error> {
    let valid = match bits {
        4 => unpack::<4, 2>(packed, codes),
        2 => unpack::<2, 4>(packed, codes),
        _ => unpack::<1, 8>(packed, codes),
    };
    if valid { Ok(()) } else { Err(not_allowed(bits, row, packed, codes.len())) }
}

/// Unpacks a row; false if something in it is not allowed. It is inlined, so that it is compiled for its caller's
/// instruction set.
#[inline(always)]
fn unpack<const BITS: u32, const PER_BYTE: usize>(packed: &[u8], codes: &mut [i8]) -> bool {
    let mask = ((1u16 << BITS) - 1) as u8;
    let (whole, rest) = codes.as_chunks_mut::<PER_BYTE>();
    let (bytes, last) = packed.split_at(whole.len());
    let mut lowest = mask;
    for (byte, group) in bytes.iter().zip(whole) {
        for (slot, out) in group.iter_mut().enumerate() {
            let value = (byte >> (slot as u32 * BITS)) & mask;
            lowest = lowest.min(value);
            *out = code(BITS, value);
        }
    }
    let mut unread = last.first().copied().unwrap_or(0);
    for out in rest {
        lowest = lowest.min(unread & mask);
        *out = code(BITS, unread & mask);
        unread >>= BITS;
    }
    unread == 0 && (BITS == 1 || lowest > 0)
}

/// The error for a row of `k` codes that [`unpack`] did not allow: its first bad code or padding bit.
#[cold]
fn not_allowed(bits: u32, row: usize, packed: &[u8], k: usize) -> Error {
    let per_byte = 8 / bits as usize;
    let mask = ((1u16 << bits) - 1) as u8;
    let stored = |column: usize| (packed[column / per_byte] >> ((column % per_byte) as u32 * bits)) & mask;
    let error = |column, value, allowed| Error::Element { name: "weight", index: vec![row, column], value, allowed };
    if let Some(column) = (0..k).find(|column| bits > 1 && stored(*column) == 0) {
        return error(column, format!("-{}", 1 << (bits - 1)), "a code -L..L with L = 2^(weight_bits-1)-1");
    }
    let mut padding = (k..packed.len() * per_byte).map(|column| (column, stored(column)));
    match padding.find(|(_, value)| *value != 0) {
        Some((column, value)) => error(column, value.to_string(), "0 in the bits that fill up a row"),
        None => Error::Changed { name: "weight", row },
    }
}

/// Checks that the int8 codes of row `row` are within -L..L of `bits` bits; with one bit, that they are -1 or +1.
#[inline(always)]
pub fn check_codes(bits: u32, row: usize, codes: &[i8]) -> Result<(), Error> {
    let levels = levels(bits);
    let (mut largest, mut smallest) = (0, u8::MAX);
    for code in codes {
        largest = largest.max(code.unsigned_abs());
        smallest = smallest.min(code.unsigned_abs());
    }
    if i32::from(largest) <= levels && (bits > 1 || smallest > 0) {
        return Ok(());
    }
    Err(code_not_allowed(bits, row, codes))
}

/// The error for a row in which a code that is not allowed was seen: the first such code.
#[cold]
fn code_not_allowed(bits: u32, row: usize, codes: &[i8]) -> Error {
    let bad = |code: i8| i32::from(code).abs() > levels(bits) || (bits == 1 && code == 0);
    match codes.iter().copied().enumerate().find(|(_, code)| bad(*code)) {
        Some((column, code)) => Error::Element {
            name: "weight",
            index: vec![row, column],
            value: code.to_string(),
            allowed: "a code -L..L with L = 2^(weight_bits-1)-1 (-1 or +1 with weight_bits 1)",
        },
        None => Error::Changed { name: "weight", row },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Another thread may overwrite a bad code after it was seen and before it is located.
    #[test]
    fn rows_that_change_between_two_looks() {
        let changed = "weight[2] changed while it was read: allowed is memory that nobody writes to during the call";
        for bits in PACKED_BITS {
            assert_eq!(code_not_allowed(bits, 2, &[1, -1, 1]).to_string(), changed);
            // Three codes end within a byte, eight at the end of one.
            for k in [3, 8] {
                let packed = pack_codes(bits, k, &vec![1; k]);
                assert_eq!(not_allowed(bits, 2, &packed, k).to_string(), changed, "{bits} bits, {k} codes");
            }
        }
    }
}
