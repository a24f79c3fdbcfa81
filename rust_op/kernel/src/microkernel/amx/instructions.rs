//! The instructions, in assembly, since their intrinsics are unstable in Rust. The compiler itself never uses tiles.
//!
//! | tiles | hold |
//! |---|---|
//! | 0, 1, 2, 3 | sums: rows 0..16 of columns 0..16 and of columns 16..32, then rows 16..32 of the same |
//! | 4, 5 | codes of rows 0..16, of rows 16..32 |
//! | 6, 7 | codes of columns 0..16, of columns 16..32 |

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::OnceLock;

use super::super::panels::BLOCK_BYTES;
use super::{Sums, TILE_CODES, TILE_ROWS};

/// Permission to use the tiles: the processor has them, and the operating system lets this process keep data in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tiles(());

impl Tiles {
    /// The permission, requested once per process.
    pub(crate) fn detect() -> Option<Self> {
        static GRANTED: OnceLock<bool> = OnceLock::new();
        GRANTED.get_or_init(|| has_tiles() && ask_permission()).then_some(Tiles(()))
    }

    /// Configures the calling thread's tiles until the value is dropped. A task does so once.
    pub(crate) fn configure(self) -> ConfiguredTiles {
        static CONFIGURATION: Configuration = Configuration::whole();
        // Whoever releases first would take them from the other.
        assert!(!CONFIGURED.replace(true), "a thread configures its tiles once");
        // SAFETY: `self` proves the instruction; the configuration is 64 bytes that palette 1 allows.
        unsafe {
            asm!(
                "ldtilecfg [{}]", in(reg) &raw const CONFIGURATION,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly),
            );
        }
        ConfiguredTiles(PhantomData)
    }
}

/// Whether the processor has tiles of the expected size, with products of bytes.
fn has_tiles() -> bool {
    const TILE_AND_INT8: u32 = 1 << 24 | 1 << 25;
    const PALETTE_LEAF: u32 = 0x1D;
    #[allow(unused_unsafe, reason = "safe functions in newer releases of Rust")]
    // SAFETY: every x86-64 processor has the instruction; only leaves that leaf 0 reports are read.
    unsafe {
        let last = __cpuid(0).eax;
        if last < PALETTE_LEAF || __cpuid_count(7, 0).edx & TILE_AND_INT8 != TILE_AND_INT8 {
            return false;
        }
        // Palette 1: EBX holds the number of tiles and the bytes per row, ECX the number of rows.
        let palette = __cpuid_count(PALETTE_LEAF, 1);
        palette.ebx >> 16 >= 8 && palette.ebx & 0xFFFF >= 64 && palette.ecx & 0xFFFF >= 16
    }
}

/// Asks Linux for permission to use tiles, which makes signal frames larger. Linux refuses if a thread has an alternate
/// signal stack that is too small for them, and in releases before 5.16.
#[cfg(target_os = "linux")]
fn ask_permission() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    let result: i64;
    // SAFETY: a system call that touches no memory of the process; the kernel overwrites rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn ask_permission() -> bool {
    false
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Configuration {
    /// Eight tiles of 16 rows of 64 bytes.
    const fn whole() -> Self {
        let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
        let mut tile = 0;
        while tile < 8 {
            row_bytes[tile] = TILE_CODES as u16;
            rows[tile] = TILE_ROWS as u8;
            tile += 1;
        }
        Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
    }
}

/// The calling thread's tiles, configured. The value cannot be sent to another thread.
pub(crate) struct ConfiguredTiles(PhantomData<*const ()>);

impl ConfiguredTiles {
    /// Writes the sums of 16 rows of signed codes, or of 32 if `two`, with a panel of unsigned codes into the rows of
    /// `sums`. Sums wrap.
    ///
    /// # Safety
    /// `codes` is valid for reads of `64 * steps` codes of each of the 16 or 32 rows, `stride` apart, and `panel` of
    /// `16 * steps` groups of [`BLOCK_BYTES`]; `steps` is not 0.
    #[inline(always)]
    pub(crate) unsafe fn sums(
        &self,
        codes: *const i8,
        stride: usize,
        two: bool,
        panel: *const u8,
        steps: usize,
        sums: &mut Sums,
    ) {
        debug_assert!(steps > 0);
        // SAFETY: `self` proves the instructions; what they read is valid by this method's contract; they write 16 or
        // 32 rows of 128 bytes to `sums`, which has 32.
        unsafe {
            if two {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "2:",
                    "tileloadd tmm6, [{panel} + {block}]",
                    "tileloadd tmm4, [{first} + {stride}]",
                    "tdpbsud tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{panel} + {block} + 64]",
                    "tdpbsud tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{second} + {stride}]",
                    "tdpbsud tmm2, tmm5, tmm6",
                    "tdpbsud tmm3, tmm5, tmm7",
                    "add {first}, 64",
                    "add {second}, 64",
                    "add {panel}, 2048",
                    "dec {steps}",
                    "jnz 2b",
                    "tilestored [{sums} + {block}], tmm0",
                    "tilestored [{sums} + {block} + 64], tmm1",
                    "tilestored [{sums} + {block} + 2048], tmm2",
                    "tilestored [{sums} + {block} + 2112], tmm3",
                    first = inout(reg) codes => _,
                    second = inout(reg) codes.add(TILE_ROWS * stride) => _,
                    panel = inout(reg) panel => _,
                    steps = inout(reg) steps => _,
                    stride = in(reg) stride,
                    block = in(reg) BLOCK_BYTES,
                    sums = in(reg) sums,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            } else {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "2:",
                    "tileloadd tmm6, [{panel} + {block}]",
                    "tileloadd tmm4, [{first} + {stride}]",
                    "tdpbsud tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{panel} + {block} + 64]",
                    "tdpbsud tmm1, tmm4, tmm7",
                    "add {first}, 64",
                    "add {panel}, 2048",
                    "dec {steps}",
                    "jnz 2b",
                    "tilestored [{sums} + {block}], tmm0",
                    "tilestored [{sums} + {block} + 64], tmm1",
                    first = inout(reg) codes => _,
                    panel = inout(reg) panel => _,
                    steps = inout(reg) steps => _,
                    stride = in(reg) stride,
                    block = in(reg) BLOCK_BYTES,
                    sums = in(reg) sums,
                    out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    }
}

thread_local! {
    /// Whether a [`ConfiguredTiles`] of this thread is alive.
    static CONFIGURED: Cell<bool> = const { Cell::new(false) };
}

impl Drop for ConfiguredTiles {
    fn drop(&mut self) {
        CONFIGURED.set(false);
        // SAFETY: the value was made with the permission to use tiles.
        unsafe {
            asm!(
                "tilerelease",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, nomem),
            );
        }
    }
}
