//! The floating-point modes of the calling thread, which a host may have changed before it calls the kernel.
#![allow(unsafe_code, reason = "there is no safe way to set the register")]

#[cfg(target_arch = "x86_64")]
mod register {
    use std::arch::asm;

    /// MXCSR.
    pub type Word = u32;
    /// Exceptions are masked.
    const DEFAULT: Word = 0x1F80;
    const FLUSH_TO_ZERO: Word = 1 << 15;
    const DENORMALS_ARE_ZERO: Word = 1 << 6;
    pub const FLUSH: Word = FLUSH_TO_ZERO | DENORMALS_ARE_ZERO;
    pub const DOWNWARD: Word = 1 << 13;
    pub const UPWARD: Word = 2 << 13;
    pub const OTHERS: &[Word] = &[FLUSH_TO_ZERO, DENORMALS_ARE_ZERO];

    pub fn write(modes: Word) {
        // SAFETY: only modes differ from the default.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &(DEFAULT | modes), options(nostack, preserves_flags)) };
    }

    pub fn read() -> Word {
        let mut word: Word = 0;
        // SAFETY: stores the register to a valid address.
        unsafe { asm!("stmxcsr [{}]", in(reg) &mut word, options(nostack, preserves_flags)) };
        // The others say which exceptions are masked, and which there were.
        word & (FLUSH | DOWNWARD | UPWARD)
    }
}

#[cfg(target_arch = "aarch64")]
mod register {
    use std::arch::asm;

    /// FPCR.
    pub type Word = u64;
    pub const FLUSH: Word = 1 << 24;
    pub const DOWNWARD: Word = 2 << 22;
    pub const UPWARD: Word = 1 << 22;
    /// FZ16 and AHP, for numbers of 16 bits; DN, default NaN; FIZ and AH, which processors have from Armv8.7 on.
    pub const OTHERS: &[Word] = &[1 << 19, 1 << 26, 1 << 25, 1, 1 << 1];

    pub fn write(modes: Word) {
        // SAFETY: no exception is trapped.
        unsafe { asm!("msr fpcr, {}", in(reg) modes, options(nostack, preserves_flags)) };
    }

    pub fn read() -> Word {
        let word: Word;
        // SAFETY: reads a register that user code may read.
        unsafe { asm!("mrs {}, fpcr", out(reg) word, options(nostack, preserves_flags)) };
        word
    }
}

/// No register is known here.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod register {
    pub type Word = u32;
    pub const FLUSH: Word = 0;
    pub const DOWNWARD: Word = 0;
    pub const UPWARD: Word = 0;
    pub const OTHERS: &[Word] = &[];

    pub fn write(_modes: Word) {}

    pub fn read() -> Word {
        0
    }
}

pub use register::{DOWNWARD, FLUSH, UPWARD, Word};

pub const TOWARDS_ZERO: Word = UPWARD | DOWNWARD;

/// Each mode alone, and all together.
pub fn all() -> Vec<Word> {
    let mut modes = vec![FLUSH, DOWNWARD, UPWARD, TOWARDS_ZERO];
    modes.extend(register::OTHERS);
    modes.push(modes.iter().fold(0, |all, mode| all | mode));
    modes
}

/// Calls `call` in these modes, as far as the processor has them, and asserts that it leaves them as they are.
#[track_caller]
pub fn within<R>(modes: Word, call: impl FnOnce() -> R) -> R {
    register::write(modes);
    let before = register::read();
    // Nothing of the call may be moved to where the modes are others.
    let result = std::hint::black_box(call());
    let after = register::read();
    register::write(0);
    assert_eq!(after, before, "floating-point modes after the call, and before it");
    result
}
