//! The kernel of the `OpticalLinear` operator: `y = ADC(DAC(x) . W + b + noise)`.
//!
//! A module uses only those above it in this list (`tests/layers.rs` checks that):
//!
//! - [`schema`] (names, bounds), [`rng`], [`error`], [`quantize`], [`pack`], [`params`] (checked), [`precision`] and
//!   [`noise`] define what is computed; [`reference`](mod@reference) computes it one scalar at a time, and everything
//!   below must equal it bit for bit.
//! - [`executor`]: who runs the tasks of a call. No thread is started here.
//! - [`saved`]: what a forward pass hands to a backward pass, and its layout.
//! - `microkernel`: the tiers, and the loops over their vectors. [`cost`]: estimates of how long a call takes.
//! - [`weights`], laid out for a tier; then [`forward`] and [`backward`](mod@backward), side by side.

pub mod backward;
pub mod cost;
pub mod error;
pub mod executor;
mod float_env;
pub mod forward;
mod microkernel;
pub mod noise;
pub mod pack;
pub mod params;
pub mod precision;
pub mod quantize;
pub mod reference;
pub mod rng;
pub mod saved;
pub mod schema;
pub mod weights;

pub use backward::backward;
pub use error::Error;
pub use executor::{Executor, Serial};
pub use forward::Layer;
pub use microkernel::Tier;
pub use params::{BiasStage, Params, Spec};
pub use precision::Precision;
pub use rng::NoiseKey;
pub use saved::Saved;
pub use weights::{WeightSource, Weights};

/// The version of this crate.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
