//! Cases, executors and comparisons that the equality tests share.
#![allow(dead_code, unused_imports, reason = "each test binary uses only a part")]

mod backward;
mod executors;
mod forward;
pub mod memory;
pub mod modes;
mod strategies;

pub use backward::{Backward, PRECISIONS};
pub use executors::{Reversed, Shuffled, Threads};
pub use forward::{Case, Outcome, Storage};
pub use strategies::{any_bits, case, spec, with_effects};

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Asserts that two arrays are equal, naming the first element that differs.
pub fn assert_same<T: PartialEq + std::fmt::Debug>(name: &str, got: &[T], expected: &[T], place: &dyn Fn() -> String) {
    assert_eq!(got.len(), expected.len(), "length of {name}: {}", place());
    if let Some(bad) = got.iter().zip(expected).position(|(a, b)| a != b) {
        panic!("{name}[{bad}] = {:?}, reference {:?}: {}", got[bad], expected[bad], place());
    }
}

pub fn small_random(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        state = lumina_kernel::rng::mix(state);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}
