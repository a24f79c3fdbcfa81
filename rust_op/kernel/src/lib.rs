//! The kernel of the `OpticalLinear` operator: `y = ADC(DAC(x) . W + b + noise)`.
//!
//! The way of the data: [`schema`] (names, bounds) -> [`params`] (checked) -> [`rng`], [`noise`],
//! [`quantize`], [`pack`] -> [`microkernel`] -> [`forward`], [`backward`](mod@backward). [`reference`](mod@reference) is the
//! definition that all of it must equal bit for bit. No thread is started here: see [`executor`].

pub mod error;
pub mod executor;
mod float_env;
pub mod forward;
pub mod microkernel;
pub mod noise;
pub mod pack;
pub mod params;
pub mod quantize;
pub mod reference;
pub mod rng;
pub mod schema;
pub mod weights;

pub use error::Error;
pub use executor::{Executor, Serial};
pub use forward::{Layer, Saved};
pub use microkernel::Tier;
pub use microkernel::backward;
pub use microkernel::backward::backward;
pub use params::{BiasStage, Params, Spec};
pub use rng::NoiseKey;
pub use weights::{WeightSource, Weights};

/// The version of this crate.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
