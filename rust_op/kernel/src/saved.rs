//! What a forward pass saves for a backward pass, and its layout in memory.

use crate::error::Error;

/// Bytes of one row of `columns` mask bits.
pub const fn mask_stride(columns: usize) -> usize {
    columns.div_ceil(16) * 2
}

/// Elements from one row of `k` codes to the next: a multiple of 4, with padding of 0. For long rows it is an odd
/// multiple of 64 (a cache line of 8-bit codes), so that rows do not all fall into the same cache sets.
pub const fn code_stride(k: usize) -> usize {
    if k < 512 { k.next_multiple_of(4) } else { k.div_ceil(64) / 2 * 128 + 64 }
}

/// The type of integers that holds codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeType {
    /// 8 bits, for codes of 1..8 bits.
    I8,
    /// 16 bits, for codes of 9..16 bits.
    I16,
}

/// The type that holds codes of `bits` bits; `None` where there are none: 0 bits mean analog.
pub const fn code_type(bits: u32) -> Option<CodeType> {
    match bits {
        0 => None,
        1..=8 => Some(CodeType::I8),
        _ => Some(CodeType::I16),
    }
}

/// What a backward pass needs from a forward pass, in the caller's memory.
#[derive(Debug, Default)]
pub struct Saved<'a> {
    /// `[M, code_stride(K)]`: DAC codes, in their [`code_type`]; `None` where X is analog, or nothing needs them.
    pub x_codes: Option<CodesMut<'a>>,
    /// `[M]`: s_x, NaN in rows that are NaN throughout; `None` where nothing needs it.
    pub x_step: Option<&'a mut [f32]>,
    /// `[M, tiles, mask_stride(N)]`: bit n is set where a tile's ADC saturated; `None` where it cannot.
    pub adc_mask: Option<&'a mut [u8]>,
    /// `[M, mask_stride(K)]`: bit k is set where the DAC saturated; `None` where it cannot, or
    /// nothing needs it.
    pub dac_mask: Option<&'a mut [u8]>,
}

impl<'a> Saved<'a> {
    /// Splits off the first `count` rows, of `n` outputs and `k` inputs in `tiles` tiles, or all rows if there are fewer.
    pub(crate) fn take_rows(&mut self, count: usize, (n, k): (usize, usize), tiles: usize) -> Saved<'a> {
        Saved {
            x_codes: self.x_codes.as_mut().map(|codes| codes.take_rows(count, k)),
            x_step: self.x_step.as_mut().map(|steps| take_first(steps, count)),
            adc_mask: self.adc_mask.as_mut().map(|mask| take_first(mask, count * tiles * mask_stride(n))),
            dac_mask: self.dac_mask.as_mut().map(|mask| take_first(mask, count * mask_stride(k))),
        }
    }
}

/// Codes to keep for a backward pass, in rows of [`code_stride`].
#[derive(Debug)]
pub enum CodesMut<'a> {
    /// As [`CodeType::I8`].
    I8(&'a mut [i8]),
    /// As [`CodeType::I16`].
    I16(&'a mut [i16]),
}

impl<'a> CodesMut<'a> {
    /// Checks that this is memory for `rows` rows of `k` codes of `bits` bits.
    pub(crate) fn check(&self, name: &'static str, rows: usize, k: usize, bits: u32) -> Result<(), Error> {
        let (held, length) = match self {
            CodesMut::I8(codes) => (CodeType::I8, codes.len()),
            CodesMut::I16(codes) => (CodeType::I16, codes.len()),
        };
        if code_type(bits) != Some(held) {
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

    /// Splits off the first `rows` rows of `k` codes, or all rows if there are fewer.
    pub(crate) fn take_rows(&mut self, rows: usize, k: usize) -> CodesMut<'a> {
        let length = rows * code_stride(k);
        match self {
            CodesMut::I8(codes) => CodesMut::I8(take_first(codes, length)),
            CodesMut::I16(codes) => CodesMut::I16(take_first(codes, length)),
        }
    }

    /// Row `row`, where a row has `k` codes.
    #[inline(always)]
    pub(crate) fn row(&mut self, row: usize, k: usize) -> CodesMut<'_> {
        let stride = code_stride(k);
        match self {
            CodesMut::I8(codes) => CodesMut::I8(&mut codes[row * stride..(row + 1) * stride]),
            CodesMut::I16(codes) => CodesMut::I16(&mut codes[row * stride..(row + 1) * stride]),
        }
    }
}

/// The bits of a mask of `columns` columns, row by row.
pub fn mask_bits(mask: &[u8], columns: usize) -> impl Iterator<Item = bool> {
    let rows = mask.chunks_exact(mask_stride(columns));
    rows.flat_map(move |row| (0..columns).map(move |column| row[column / 8] >> (column % 8) & 1 == 1))
}

/// Bits `column..column + 16` of a row of mask bits; bits past its end are 0.
#[inline(always)]
pub(crate) fn mask_word(row: &[u8], column: usize) -> u16 {
    let bytes = row.get(column / 8..).unwrap_or_default();
    let word = match bytes.first_chunk::<4>() {
        Some(bytes) => u32::from_le_bytes(*bytes),
        None => {
            let mut padded = [0; 4];
            padded[..bytes.len()].copy_from_slice(bytes);
            u32::from_le_bytes(padded)
        }
    };
    (word >> (column % 8)) as u16
}

/// Row `row` of a mask of `columns` columns.
#[inline(always)]
pub(crate) fn mask_row(mask: &mut [u8], row: usize, columns: usize) -> &mut [u8] {
    let stride = mask_stride(columns);
    &mut mask[row * stride..(row + 1) * stride]
}

/// Splits the first `count` elements off `rest`, or all if there are fewer.
pub(crate) fn take_first<'a, T>(rest: &mut &'a mut [T], count: usize) -> &'a mut [T] {
    let count = count.min(rest.len());
    rest.split_off_mut(..count).expect("no more than there are")
}

/// Checks that the array called `name` has the expected number of elements.
pub(crate) fn check_length(name: &'static str, length: usize, expected: usize) -> Result<(), Error> {
    if length == expected { Ok(()) } else { Err(Error::Length { name, length, allowed: expected.to_string() }) }
}
