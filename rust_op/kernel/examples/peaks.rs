//! The peak rates of this processor, as a C library for the benchmarks to load: a benchmark's ratio to a peak means
//! something only if both are measured in one process, alternately.
//!
//! - [`lumina_peak`]: one instruction of a product, repeated on registers, with enough independent ones to hide its
//!   latency.
//! - [`lumina_read`]: loads of whole vectors from memory that already exists.
//!
//! Neither measures time: the caller does, as for everything else.
#![allow(unsafe_code, reason = "instructions by name, and memory by pointer")]

use std::ffi::{CStr, c_char};
use std::hint::black_box;

/// Runs `rounds` rounds of the instruction called `name` and returns the number of operations in them (a multiplication
/// and an addition are two); 0 if this processor has no such instruction, or nothing here has that name.
///
/// Names: `fma.512`, `fma.256` (`vfmadd231ps`), `tdpbsud`, `vpdpbusd.512`, `vpdpwssd.512`, `vpmaddwd.512`,
/// `vpmaddwd.256`; `fmla.128`, `smlal.128`, `sdot.128`.
///
/// # Safety
/// `name` is a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lumina_peak(name: *const c_char, rounds: u64) -> u64 {
    // SAFETY: a C string, by this function's contract.
    let name = unsafe { CStr::from_ptr(name) };
    #[cfg(target_arch = "x86_64")]
    let operations = x86::peak(name.to_bytes(), rounds);
    #[cfg(target_arch = "aarch64")]
    let operations = aarch64::peak(name.to_bytes(), rounds);
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let operations = {
        let _ = name;
        0
    };
    operations * rounds
}

/// Reads `count` vectors of 64 bytes in order, `times` times; the result depends on all of them.
///
/// # Safety
/// `source` is valid for reads of `64 * count` bytes and aligned to 64.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lumina_read(source: *const [u64; 8], count: usize, times: u64) -> u64 {
    // SAFETY: readable and aligned by this function's contract; the black box, which makes the compiler read anew each
    // time, returns the same pointer.
    (0..times).fold(0, |result, _| result ^ unsafe { read(black_box(source), count) })
}

/// # Safety
/// As for [`lumina_read`].
unsafe fn read(source: *const [u64; 8], count: usize) -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: AVX-512 F is there; the memory is readable by this function's contract.
            return unsafe { x86::read_512(source, count) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: AVX2 is there; the memory is readable by this function's contract.
            return unsafe { x86::read_256(source, count) };
        }
    }
    // SAFETY: readable by this function's contract.
    let vectors = unsafe { std::slice::from_raw_parts(source, count) };
    let mut sums = [0u64; 8];
    for vector in vectors {
        for (sum, word) in sums.iter_mut().zip(vector) {
            *sum ^= word;
        }
    }
    sums.iter().fold(0, |a, b| a ^ b)
}

/// Independent sums: more than any processor needs to hide four or five cycles of latency at two instructions per
/// cycle.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const SUMS: usize = 12;

#[cfg(target_arch = "aarch64")]
mod aarch64 {
    use std::arch::aarch64::*;
    use std::arch::{asm, is_aarch64_feature_detected};
    use std::hint::black_box;

    use super::SUMS;

    /// `rounds` rounds of an instruction on independent sums; returns the operations of one round.
    macro_rules! repeat {
        ($rounds:expr, $instruction:literal, $operations:expr) => {{
            // SAFETY: NEON is part of aarch64.
            let (a, b) = black_box(unsafe { (vdupq_n_u8(1), vdupq_n_u8(1)) });
            // SAFETY: as above.
            let mut sums = [unsafe { vdupq_n_u8(0) }; SUMS];
            for _ in 0..$rounds {
                for sum in &mut sums {
                    // SAFETY: the caller has checked that the processor has the instruction, which touches no memory.
                    unsafe { asm!($instruction, inout(vreg) *sum, in(vreg) a, in(vreg) b, options(nomem, nostack)) };
                }
            }
            black_box(sums);
            $operations * SUMS as u64
        }};
    }

    pub fn peak(name: &[u8], rounds: u64) -> u64 {
        match name {
            b"fmla.128" => repeat!(rounds, "fmla {0:v}.4s, {1:v}.4s, {2:v}.4s", 2 * 4),
            b"smlal.128" => repeat!(rounds, "smlal {0:v}.8h, {1:v}.8b, {2:v}.8b", 2 * 8),
            b"sdot.128" if is_aarch64_feature_detected!("dotprod") => {
                repeat!(rounds, ".arch_extension dotprod\nsdot {0:v}.4s, {1:v}.16b, {2:v}.16b", 2 * 16)
            }
            _ => 0,
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::SUMS;

    /// Runs rounds of the instruction `name`, if the processor has it, and returns the number of operations per round.
    pub fn peak(name: &[u8], rounds: u64) -> u64 {
        match name {
            b"fma.512" if is_x86_feature_detected!("avx512f") => {
                // SAFETY: AVX-512 F is there.
                unsafe { fma_512(rounds) };
                2 * 16 * SUMS as u64
            }
            b"fma.256" if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") => {
                // SAFETY: AVX2 and FMA are there.
                unsafe { fma_256(rounds) };
                2 * 8 * SUMS as u64
            }
            b"tdpbsud" if may_use_tiles() => {
                // SAFETY: tiles may be used.
                unsafe { tdpbsud(rounds) };
                4 * 2 * 16 * 16 * 64
            }
            b"vpdpbusd.512" if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni") => {
                // SAFETY: AVX-512 F and VNNI are there.
                unsafe { vpdpbusd_512(rounds) };
                2 * 64 * SUMS as u64
            }
            b"vpdpwssd.512" if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni") => {
                // SAFETY: AVX-512 F and VNNI are there.
                unsafe { vpdpwssd_512(rounds) };
                2 * 32 * SUMS as u64
            }
            b"vpmaddwd.512" if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") => {
                // SAFETY: AVX-512 F and BW are there.
                unsafe { vpmaddwd_512(rounds) };
                2 * 32 * SUMS as u64
            }
            b"vpmaddwd.256" if is_x86_feature_detected!("avx2") => {
                // SAFETY: AVX2 is there.
                unsafe { vpmaddwd_256(rounds) };
                2 * 16 * SUMS as u64
            }
            _ => 0,
        }
    }

    /// # Safety
    /// The processor has AVX-512 F.
    #[target_feature(enable = "avx512f")]
    unsafe fn fma_512(rounds: u64) {
        let (a, b) = black_box((_mm512_set1_ps(1.000_1), _mm512_set1_ps(-0.999_9)));
        let mut sums = [_mm512_setzero_ps(); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(a, b, *sum);
            }
        }
        black_box(sums);
    }

    /// # Safety
    /// The processor has AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn fma_256(rounds: u64) {
        let (a, b) = black_box((_mm256_set1_ps(1.000_1), _mm256_set1_ps(-0.999_9)));
        let mut sums = [_mm256_setzero_ps(); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(a, b, *sum);
            }
        }
        black_box(sums);
    }

    /// # Safety
    /// The processor has AVX-512 F and VNNI.
    #[target_feature(enable = "avx512f,avx512vnni")]
    unsafe fn vpdpbusd_512(rounds: u64) {
        let (a, b) = black_box((_mm512_set1_epi8(3), _mm512_set1_epi8(-5)));
        let mut sums = [_mm512_setzero_si512(); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        black_box(sums);
    }

    /// # Safety
    /// The processor has AVX-512 F and VNNI.
    #[target_feature(enable = "avx512f,avx512vnni")]
    unsafe fn vpdpwssd_512(rounds: u64) {
        let (a, b) = black_box((_mm512_set1_epi16(3), _mm512_set1_epi16(-5)));
        let mut sums = [_mm512_setzero_si512(); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpwssd_epi32(*sum, a, b);
            }
        }
        black_box(sums);
    }

    /// Whether the processor has matrix tiles with products of bytes, and the system lets this process use them.
    fn may_use_tiles() -> bool {
        #[allow(unused_unsafe, reason = "safe functions in newer releases of Rust")]
        // SAFETY: every x86-64 processor has the instruction; leaf 7 is read only if leaf 0 reports it.
        let has = unsafe { __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx >> 24 & 3 == 3 };
        let mut result: i64 = -1;
        if has && cfg!(target_os = "linux") {
            // SAFETY: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) touches no memory; the kernel overwrites rcx
            // and r11.
            unsafe {
                asm!("syscall", inlateout("rax") 158i64 => result, in("rdi") 0x1023, in("rsi") 18,
                    lateout("rcx") _, lateout("r11") _, options(nostack));
            }
        }
        result == 0
    }

    /// # Safety
    /// The processor has matrix tiles, and this process may use them.
    unsafe fn tdpbsud(rounds: u64) {
        #[repr(C, align(64))]
        struct Configuration([u8; 64]);
        // Palette 1; eight tiles of 64 bytes in 16 rows.
        let mut configuration = Configuration([0; 64]);
        configuration.0[0] = 1;
        for tile in 0..8 {
            configuration.0[16 + 2 * tile] = 64;
            configuration.0[48 + tile] = 16;
        }
        // SAFETY: by this function's contract; the configuration, which zeroes all tiles, is valid in palette 1.
        unsafe {
            asm!(
                "ldtilecfg [{configuration}]",
                "2:",
                "tdpbsud tmm0, tmm4, tmm6",
                "tdpbsud tmm1, tmm4, tmm7",
                "tdpbsud tmm2, tmm5, tmm6",
                "tdpbsud tmm3, tmm5, tmm7",
                "dec {rounds}",
                "jnz 2b",
                "tilerelease",
                configuration = in(reg) &raw const configuration,
                rounds = inout(reg) rounds.max(1) => _,
                options(nostack),
            );
        }
    }

    /// The product alone: additions would take time in another unit.
    ///
    /// # Safety
    /// The processor has AVX-512 F and BW.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn vpmaddwd_512(rounds: u64) {
        let b = black_box(_mm512_set1_epi16(-5));
        let mut products = [_mm512_set1_epi16(3); SUMS];
        for _ in 0..rounds {
            for product in &mut products {
                *product = _mm512_madd_epi16(*product, b);
            }
        }
        black_box(products);
    }

    /// As [`vpmaddwd_512`].
    ///
    /// # Safety
    /// The processor has AVX2.
    #[target_feature(enable = "avx2")]
    unsafe fn vpmaddwd_256(rounds: u64) {
        let b = black_box(_mm256_set1_epi16(-5));
        let mut products = [_mm256_set1_epi16(3); SUMS];
        for _ in 0..rounds {
            for product in &mut products {
                *product = _mm256_madd_epi16(*product, b);
            }
        }
        black_box(products);
    }

    /// # Safety
    /// The processor has AVX-512 F; `source` is valid for reads of `64 * count` bytes and aligned to 64.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn read_512(source: *const [u64; 8], count: usize) -> u64 {
        let mut sums = [_mm512_setzero_si512(); 8];
        let whole = count / 8 * 8;
        for first in (0..whole).step_by(8) {
            for (index, sum) in sums.iter_mut().enumerate() {
                // SAFETY: vector first + index < count, readable and aligned by this function's contract.
                let vector = unsafe { _mm512_load_si512(source.add(first + index).cast()) };
                *sum = _mm512_xor_si512(*sum, vector);
            }
        }
        for index in whole..count {
            // SAFETY: index < count, readable and aligned by this function's contract.
            let vector = unsafe { _mm512_load_si512(source.add(index).cast()) };
            sums[0] = _mm512_xor_si512(sums[0], vector);
        }
        let total = sums.into_iter().reduce(|a, b| _mm512_xor_si512(a, b)).expect("eight sums");
        _mm512_reduce_or_epi64(total) as u64
    }

    /// # Safety
    /// The processor has AVX2; `source` is valid for reads of `64 * count` bytes and aligned to 64.
    #[target_feature(enable = "avx2")]
    pub unsafe fn read_256(source: *const [u64; 8], count: usize) -> u64 {
        let halves = source.cast::<__m256i>();
        let mut sums = [_mm256_setzero_si256(); 8];
        let whole = 2 * count / 8 * 8;
        for first in (0..whole).step_by(8) {
            for (index, sum) in sums.iter_mut().enumerate() {
                // SAFETY: half first + index < 2 * count, readable and aligned by this function's contract.
                let vector = unsafe { _mm256_load_si256(halves.add(first + index)) };
                *sum = _mm256_xor_si256(*sum, vector);
            }
        }
        for index in whole..2 * count {
            // SAFETY: index < 2 * count, readable and aligned by this function's contract.
            let vector = unsafe { _mm256_load_si256(halves.add(index)) };
            sums[0] = _mm256_xor_si256(sums[0], vector);
        }
        let total = sums.into_iter().reduce(|a, b| _mm256_xor_si256(a, b)).expect("eight sums");
        _mm256_extract_epi64::<0>(total) as u64 ^ _mm256_extract_epi64::<3>(total) as u64
    }
}
