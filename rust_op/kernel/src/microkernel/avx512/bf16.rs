//! Products of pairs of bf16 (AVX-512 BF16), for the backward pass alone: `vcvtne2ps2bf16`, `vdpbf16ps`.

use std::arch::x86_64::*;
use std::sync::OnceLock;

use super::Avx512;
use crate::microkernel::form::{Form, Formed};
use crate::microkernel::isa::{Isa, LANES};

/// Permission to use AVX-512 BF16 as well: lanes are pairs of bf16, rounded to nearest, ties to even. Denormal operands
/// and sums become zeros: these instructions ignore the floating-point environment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bf16(Avx512<true>);

impl Bf16 {
    /// The permission, if this processor has the instructions and is faster with them than with floats.
    ///
    /// Measured: in the same time, `vdpbf16ps` does twice the work of `vfmadd231ps` on AMD's Zen 5, and half of it on
    /// Intel's Sapphire Rapids.
    pub(crate) fn detect(isa: Avx512<true>) -> Option<Self> {
        static FAST: OnceLock<bool> = OnceLock::new();
        let fast = *FAST.get_or_init(|| is_x86_feature_detected!("avx512bf16") && is_zen_5_or_later());
        fast.then_some(Bf16(isa))
    }

    /// Runs `op` with these instructions.
    pub(crate) fn vectorize<V: Formed>(self, op: V) {
        // SAFETY: `self` proves the features.
        unsafe { trampoline_bf16(self, op) }
    }
}

fn is_zen_5_or_later() -> bool {
    #[allow(unused_unsafe, reason = "a safe function in newer releases of Rust")]
    // SAFETY: every x86-64 processor has the instruction and these two leaves.
    let (vendor, version) = unsafe { (__cpuid(0), __cpuid(1)) };
    let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
    // The extended family is added to the base family.
    let family = (version.eax >> 8 & 0xF) + (version.eax >> 20 & 0xFF);
    name.as_flattened() == b"AuthenticAMD" && family >= 0x1A
}

/// # Safety
/// The processor has the enabled features, which a value of [`Bf16`] proves.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma")]
unsafe fn trampoline_bf16<V: Formed>(form: Bf16, op: V) {
    op.run(form.0, form);
}

impl Form<Avx512<true>> for Bf16 {
    const TERMS: usize = 2;

    #[inline(always)]
    fn zip(self, isa: Avx512<true>, first: __m512, second: __m512) -> __m512 {
        let halves = isa.bits(self.join(isa, first, second));
        let mut order = [0i16; 2 * LANES];
        for lane in 0..LANES {
            order[2 * lane] = lane as i16;
            order[2 * lane + 1] = (LANES + lane) as i16;
        }
        // SAFETY: `self` proves the instructions; the reference is to 64 bytes.
        unsafe { isa.from_bits(_mm512_permutexvar_epi16(_mm512_loadu_epi16(order.as_ptr()), halves)) }
    }
    #[inline(always)]
    fn join(self, isa: Avx512<true>, first: __m512, second: __m512) -> __m512 {
        // SAFETY: `self` proves the instruction; both types have the same size, and any bits are a value of either.
        unsafe { isa.from_bits(std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first))) }
    }
    #[inline(always)]
    fn multiply_add(self, isa: Avx512<true>, left: __m512, right: __m512, sum: __m512) -> __m512 {
        // SAFETY: `self` proves the instruction; both types have the same size, and any bits are a value of either.
        unsafe {
            let left = std::mem::transmute::<__m512i, __m512bh>(isa.bits(left));
            let right = std::mem::transmute::<__m512i, __m512bh>(isa.bits(right));
            _mm512_dpbf16_ps(sum, left, right)
        }
    }
}
