//! The instruction-set tiers, the loops over their vectors, and all the unsafe code of this crate.
//!
//! A loop is written once, generic over [`isa::Isa`], and compiled once for each tier: [`Tier::vectorize`] enters a
//! function with the tier's instructions switched on, into which everything that it calls is inlined.
#![allow(unsafe_code, reason = "the fence: vector instructions and shared memory are used here and nowhere else")]
#![allow(clippy::needless_range_loop, reason = "lanes and rows index several arrays at once")]
#![allow(clippy::wrong_self_convention, reason = "self is the permission to use an instruction set, not an operand")]

pub mod backward;
pub(crate) mod buffer;
pub(crate) mod dac;
pub(crate) mod epilogue;
pub(crate) mod form;
pub(crate) mod gauss;
pub(crate) mod isa;
pub(crate) mod panels;
pub(crate) mod rows;
pub(crate) mod tile;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
pub(crate) mod product;

use crate::error::Error;
use crate::executor::{Executor, run_each};
use crate::rng::{self, NoiseKey};
#[cfg(target_arch = "x86_64")]
use avx512::Bf16;
#[cfg(not(target_arch = "x86_64"))]
use form::Bf16;
use isa::{Isa, Vectorized};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Portable(portable::Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512Bw(avx512::Avx512<false>),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512<true>),
}

/// An instruction set that this processor has: holding a value is the permission to use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tier(Token);

impl Tier {
    /// The tiers of this processor, slowest first.
    pub fn available() -> Vec<Tier> {
        #[allow(unused_mut, reason = "only x86-64 has more than one")]
        let mut tiers = vec![Tier(Token::Portable(portable::Portable))];
        #[cfg(target_arch = "x86_64")]
        {
            tiers.extend(avx2::Avx2::new().map(|token| Tier(Token::Avx2(token))));
            tiers.extend(avx512::Avx512::new().map(|token| Tier(Token::Avx512Bw(token))));
            tiers.extend(avx512::Avx512::new().map(|token| Tier(Token::Avx512(token))));
        }
        tiers
    }

    /// The fastest one, or the one that the environment variable `LUMINA_ISA` names.
    ///
    /// # Errors
    /// `LUMINA_ISA` names a tier that this processor lacks.
    pub fn selected() -> Result<Tier, Error> {
        let available = Tier::available();
        match std::env::var_os("LUMINA_ISA").map(|name| name.to_string_lossy().into_owned()) {
            None => Ok(*available.last().expect("the portable tier")),
            Some(name) => available.iter().find(|tier| tier.name() == name).copied().ok_or_else(|| Error::Tier {
                name,
                available: available.iter().map(|tier| tier.name()).collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// Multiply-adds that a core does in a nanosecond, about: of codes, and of floats.
    pub(crate) fn products_per_ns(self) -> (u64, u64) {
        match self.0 {
            Token::Portable(_) => (2, 1),
            #[cfg(target_arch = "x86_64")]
            Token::Avx2(_) => (80, 50),
            #[cfg(target_arch = "x86_64")]
            Token::Avx512Bw(_) => (70, 50),
            #[cfg(target_arch = "x86_64")]
            Token::Avx512(_) => (400, 100),
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self.0 {
            Token::Portable(_) => "portable",
            #[cfg(target_arch = "x86_64")]
            Token::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Token::Avx512Bw(_) => "avx512bw",
            #[cfg(target_arch = "x86_64")]
            Token::Avx512(_) => "avx512",
        }
    }

    /// Whether the tier multiplies bf16, on this processor faster than floats.
    pub fn multiplies_bf16(self) -> bool {
        self.bf16().is_some()
    }

    /// The permission to multiply bf16, where that is faster than floats.
    pub(crate) fn bf16(self) -> Option<Bf16> {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Token::Avx512(isa) => Bf16::new(isa),
            _ => None,
        }
    }

    /// Runs `op` with the tier's instructions.
    pub(crate) fn vectorize<V: Vectorized>(self, op: V) -> V::Output {
        match self.0 {
            Token::Portable(isa) => isa.vectorize(op),
            #[cfg(target_arch = "x86_64")]
            Token::Avx2(isa) => isa.vectorize(op),
            #[cfg(target_arch = "x86_64")]
            Token::Avx512Bw(isa) => isa.vectorize(op),
            #[cfg(target_arch = "x86_64")]
            Token::Avx512(isa) => isa.vectorize(op),
        }
    }

    /// Whether panels of 8 bits hold signed codes, whose products need the magnitudes of X's codes.
    pub(crate) fn signed_codes(self) -> bool {
        struct Signed;
        impl Vectorized for Signed {
            type Output = bool;
            #[inline(always)]
            fn run<S: Isa>(self, _isa: S) -> bool {
                S::SIGNED_CODES
            }
        }
        self.vectorize(Signed)
    }

    /// Rows of a float tile, and how many vectors wide it is.
    pub(crate) fn float_tile(self) -> (usize, usize) {
        struct Tile;
        impl Vectorized for Tile {
            type Output = (usize, usize);
            #[inline(always)]
            fn run<S: Isa>(self, _isa: S) -> (usize, usize) {
                S::FLOAT_TILE
            }
        }
        self.vectorize(Tile)
    }
}

/// The normals of one row, as [`crate::noise::fill_row`] gives them.
pub fn fill_noise_row(tier: Tier, call_key: u64, row: u64, out: &mut [f32]) {
    struct Fill<'a> {
        call_key: u64,
        row: u64,
        out: &'a mut [f32],
    }
    impl Vectorized for Fill<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Isa>(self, isa: S) {
            gauss::fill_row(isa, self.call_key, self.row, self.out);
        }
    }
    let _environment = crate::float_env::FloatEnv::canonical();
    tier.vectorize(Fill { call_key, row, out });
}

/// Normals of a task of [`fill_noise`], at least: some microseconds of work.
const NORMALS_PER_TASK: usize = 32_768;

/// The normals that a call with this key adds to rows of `columns`, from its first row on.
pub fn fill_noise(tier: Tier, executor: &dyn Executor, key: NoiseKey, columns: usize, out: &mut [f32]) {
    let (call_key, rows_per_task) = (rng::call_key(key), NORMALS_PER_TASK.div_ceil(columns));
    let work_ns = (out.len() / 2) as u64;
    let tasks = out.chunks_mut(rows_per_task * columns).enumerate();
    run_each(executor, work_ns, tasks, |(index, rows)| {
        for (row, out) in rows.chunks_exact_mut(columns).enumerate() {
            fill_noise_row(tier, call_key, (index * rows_per_task + row) as u64, out);
        }
    });
}
