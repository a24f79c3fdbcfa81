//! The list of tiers, and what the rest of the crate needs from one.

use super::amx::{TILE_ROWS, Tiles};
#[cfg(target_arch = "x86_64")]
use super::avx2::Avx2;
#[cfg(target_arch = "x86_64")]
use super::avx512::Avx512;
use super::isa::{Isa, Vectorized};
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
use super::neon::Neon;
use super::portable::Portable;
use crate::error::Error;

/// An instruction set that this processor has: holding a value is the permission to use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tier {
    token: Token,
    /// `Some` for the tier `amx`, which is `avx512` in everything else.
    tiles: Option<Tiles>,
}

/// Approximate multiply-adds of codes per nanosecond on the matrix tiles of one core.
const TILE_PRODUCTS_PER_NS: u64 = 1200;

/// What a tier's [`Isa`] says about itself.
struct Facts {
    name: &'static str,
    products_per_ns: (u64, u64),
    signed_codes: bool,
    magnitudes: bool,
    float_tile: (usize, usize),
    streamed_bits: &'static [u32],
    by_fours: u32,
    by_halves: bool,
}

impl Facts {
    const fn of<S: Isa>() -> Self {
        Facts {
            name: S::NAME,
            products_per_ns: S::PRODUCTS_PER_NS,
            signed_codes: S::SIGNED_CODES,
            magnitudes: S::MAGNITUDES,
            float_tile: S::FLOAT_TILE,
            streamed_bits: S::STREAMED_BITS,
            by_fours: S::BY_FOURS,
            by_halves: S::BY_HALVES,
        }
    }
}

macro_rules! tiers {
    ($($(#[$where:meta])* $variant:ident($isa:ty),)+) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        enum Token {
            $($(#[$where])* $variant($isa),)+
        }

        impl Tier {
            /// The tiers of this processor but `amx`, slowest first.
            fn without_tiles() -> Vec<Tier> {
                let mut tiers = Vec::new();
                $(
                    $(#[$where])*
                    tiers.extend(<$isa>::detect().map(|isa| Tier { token: Token::$variant(isa), tiles: None }));
                )+
                tiers
            }

            /// Runs `op` with the tier's instructions.
            pub(crate) fn vectorize<V: Vectorized>(self, op: V) -> V::Output {
                match self.token {
                    $($(#[$where])* Token::$variant(isa) => isa.vectorize(op),)+
                }
            }

            fn facts(self) -> &'static Facts {
                match self.token {
                    $($(#[$where])* Token::$variant(_) => const { &Facts::of::<$isa>() },)+
                }
            }
        }
    };
}

// Slowest first.
tiers! {
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512Bw(Avx512<false>),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512<true>),
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    Neon(Neon<false>),
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    NeonDotprod(Neon<true>),
}

impl Tier {
    /// The tiers of this processor, slowest first. Where it has matrix tiles, this asks the system for their use.
    pub fn available() -> Vec<Tier> {
        let mut tiers = Tier::without_tiles();
        let tiled = tiers.last().filter(|tier| tier.can_have_tiles()).copied();
        tiers.extend(tiled.and_then(|tier| Tiles::detect().map(|tiles| Tier { tiles: Some(tiles), ..tier })));
        tiers
    }

    /// The fastest tier, or the one that the environment variable `LUMINA_ISA` names.
    ///
    /// The use of matrix tiles makes the frames of a process's signals larger for good, so it is not asked for where
    /// another tier is named.
    ///
    /// # Errors
    /// `LUMINA_ISA` names a tier that this processor lacks.
    pub fn selected() -> Result<Tier, Error> {
        let named = std::env::var_os("LUMINA_ISA").map(|name| name.to_string_lossy().into_owned());
        if let Some(tier) = Tier::without_tiles().into_iter().find(|tier| named.as_deref() == Some(tier.name())) {
            return Ok(tier);
        }
        let available = Tier::available();
        match named {
            None => Ok(*available.last().expect("the portable tier")),
            Some(name) => available.iter().find(|tier| tier.name() == name).copied().ok_or_else(|| Error::Tier {
                name,
                available: available.iter().map(|tier| tier.name()).collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        if self.tiles.is_some() { "amx" } else { self.facts().name }
    }

    /// Whether its vector code is the one that matrix tiles are used with.
    fn can_have_tiles(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return matches!(self.token, Token::Avx512(_));
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// The permission to use matrix tiles.
    pub(crate) fn tiles(self) -> Option<Tiles> {
        self.tiles
    }

    /// The permission to use matrix tiles for integer products of `rows` rows, if there are enough of them for one tile.
    pub(crate) fn tiles_for(self, rows: usize) -> Option<Tiles> {
        self.tiles.filter(|_| rows >= TILE_ROWS)
    }

    /// [`Isa::PRODUCTS_PER_NS`] in a call of `m` rows.
    pub(crate) fn products_per_ns(self, m: usize) -> (u64, u64) {
        let (of_codes, of_floats) = self.facts().products_per_ns;
        (if self.tiles_for(m).is_some() { TILE_PRODUCTS_PER_NS } else { of_codes }, of_floats)
    }

    /// Whether panels of 8 bits hold signed codes.
    pub(crate) fn signed_codes(self) -> bool {
        self.facts().signed_codes
    }

    /// Whether products with them need the magnitudes of X's codes.
    pub(crate) fn magnitudes(self) -> bool {
        self.facts().magnitudes
    }

    /// [`Isa::BY_FOURS`].
    pub(crate) fn by_fours(self) -> u32 {
        self.facts().by_fours
    }

    /// [`Isa::BY_HALVES`], for `rows` rows.
    pub(crate) fn by_halves(self, rows: usize) -> bool {
        self.facts().by_halves || self.tiles_for(rows).is_some()
    }

    /// Rows of a float tile, and how many vectors wide it is.
    pub(crate) fn float_tile(self) -> (usize, usize) {
        self.facts().float_tile
    }

    /// [`Isa::STREAMED_BITS`].
    pub(crate) fn streamed_bits(self) -> &'static [u32] {
        self.facts().streamed_bits
    }
}
