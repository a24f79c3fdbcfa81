//! The floating-point environment of a task: round to nearest even, denormals kept.
//!
//! Hosts change it (`torch.set_flush_denormal`, ONNX Runtime's `session.set_denormal_as_zero`), each on some threads
//! only, but results must not depend on the thread that a task runs on.
#![allow(unsafe_code, reason = "the floating-point control register is read and written here and nowhere else")]

/// Sets the calling thread's environment; dropping the guard restores the previous one.
pub(crate) struct FloatEnv {
    #[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code))]
    previous: Option<Word>,
    // The register belongs to the thread: the guard must be dropped on the thread that made it.
    _thread: std::marker::PhantomData<*const ()>,
}

#[cfg(target_arch = "x86_64")]
mod register {
    use std::arch::asm;

    /// MXCSR.
    pub type Word = u32;
    /// Denormals-are-zero, rounding control, flush-to-zero.
    const CONTROL: Word = 1 << 6 | 3 << 13 | 1 << 15;

    pub fn read() -> Word {
        let mut word: Word = 0;
        // SAFETY: stores the control register to a valid address; SSE is part of x86-64.
        unsafe { asm!("stmxcsr [{}]", in(reg) &mut word, options(nostack, preserves_flags)) };
        word
    }

    pub fn write(word: Word) {
        // SAFETY: `word` was read from this register, with or without CONTROL cleared; no exception is unmasked.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &word, options(nostack, preserves_flags)) };
    }

    pub fn canonical(word: Word) -> Word {
        word & !CONTROL
    }
}

#[cfg(target_arch = "aarch64")]
mod register {
    use std::arch::asm;

    /// FPCR.
    pub type Word = u64;
    /// Flush inputs (FIZ), alternate handling (AH), rounding mode, flush-to-zero, default NaN.
    const CONTROL: Word = 1 | 1 << 1 | 3 << 22 | 1 << 24 | 1 << 25;

    pub fn read() -> Word {
        let word: Word;
        // SAFETY: reads a register that user code may read.
        unsafe { asm!("mrs {}, fpcr", out(reg) word, options(nomem, nostack, preserves_flags)) };
        word
    }

    pub fn write(word: Word) {
        // SAFETY: `word` was read from this register, with or without CONTROL cleared; no exception is unmasked.
        unsafe { asm!("msr fpcr, {}", in(reg) word, options(nomem, nostack, preserves_flags)) };
    }

    pub fn canonical(word: Word) -> Word {
        word & !CONTROL
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod register {
    /// No control register is known here, so Rust's default environment is assumed.
    pub type Word = ();
    pub fn read() -> Word {}
    pub fn write(_word: Word) {}
    pub fn canonical(_word: Word) -> Word {}
}

use register::Word;

impl FloatEnv {
    /// Sets the canonical environment.
    pub(crate) fn canonical() -> Self {
        let word = register::read();
        let wanted = register::canonical(word);
        let previous = (word != wanted).then(|| {
            register::write(wanted);
            word
        });
        FloatEnv { previous, _thread: std::marker::PhantomData }
    }
}

impl Drop for FloatEnv {
    fn drop(&mut self) {
        if let Some(word) = self.previous {
            register::write(word);
        }
    }
}
