//! The instruction-set tiers.

use crate::error::Error;

/// An instruction set that this processor has: holding a value is the permission to use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Tier {
    /// Plain Rust.
    Portable,
}

impl Tier {
    /// The tiers of this processor, slowest first.
    pub fn available() -> Vec<Tier> {
        vec![Tier::Portable]
    }

    /// The fastest one, or the one that the environment variable `LUMINA_ISA` names.
    ///
    /// # Errors
    /// `LUMINA_ISA` names a tier that this processor lacks.
    pub fn selected() -> Result<Tier, Error> {
        let available = Tier::available();
        match std::env::var("LUMINA_ISA") {
            Err(_) => Ok(*available.last().expect("the portable tier")),
            Ok(name) => available.iter().find(|tier| tier.name() == name).copied().ok_or_else(|| Error::Tier {
                name,
                available: available.iter().map(|tier| tier.name()).collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Tier::Portable => "portable",
        }
    }
}
