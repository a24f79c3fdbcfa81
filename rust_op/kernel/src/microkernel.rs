//! The instruction-set tiers, the loops over their vectors, and the unsafe code that both need.
//!
//! A loop is written once, generic over [`isa::Isa`], and compiled once for each tier: [`Tier::vectorize`] enters a
//! function with the tier's instructions switched on, into which everything that it calls is inlined.
#![allow(unsafe_code, reason = "vector instructions and shared memory are used here and nowhere else")]
#![allow(clippy::needless_range_loop, reason = "lanes and rows index several arrays at once")]
#![allow(clippy::wrong_self_convention, reason = "self is the permission to use an instruction set, not an operand")]

pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod buffer;
pub(crate) mod form;
pub(crate) mod gauss;
pub(crate) mod isa;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon;
pub(crate) mod output;
pub(crate) mod panels;
mod portable;
pub(crate) mod row_ops;
pub(crate) mod tier;
pub(crate) mod tile;

pub use tier::Tier;
