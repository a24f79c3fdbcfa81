//! Estimates of how long the parts of a call take on one thread, in nanoseconds. They decide whether work is handed to
//! other threads, and whether an interpreter is released meanwhile. Results do not depend on them.
//!
//! Products take what a tier says ([`Tier::products_per_ns`]). The other rates, and the time to wake a thread, are those of
//! desktop and server processors that multiply [`REFERENCE`] floats per nanosecond or more; on a slower tier they are
//! slower in proportion. So a Cortex-A72 is taken to be 8 times slower, a Cortex-A76 2.6 times.

use crate::executor::Work;
use crate::microkernel::Tier;
use crate::params::Params;

/// Multiply-adds of floats per nanosecond, on one core, of the slowest tier to which the rates below apply: `avx2`.
const REFERENCE: u64 = 50;
/// Bytes of weights that a core reads from its caches per nanosecond.
const BYTES_PER_NS: usize = 100;
/// Products of a gradient per nanosecond.
const GRADIENT_PRODUCTS_PER_NS: usize = 64;
/// Until an idle thread that has been woken runs: the system's call, an interrupt, and leaving an idle state.
const WAKE_NS: u64 = 6_000;
/// The longest that is assumed: idle states of processors that are slower still are not deeper.
const LONGEST_WAKE_NS: u64 = 50_000;

#[inline]
fn product(factors: &[usize]) -> usize {
    factors.iter().fold(1, |product: usize, factor| product.saturating_mul(*factor))
}

/// `ns` at the reference's rates, on `tier`.
#[inline]
fn on(tier: Tier, ns: usize) -> u64 {
    let (_, of_floats) = tier.products_per_ns(1);
    if of_floats >= REFERENCE { ns as u64 } else { (ns as u64).saturating_mul(REFERENCE) / of_floats }
}

/// Waking another thread.
#[inline]
pub fn wake_ns(tier: Tier) -> u64 {
    on(tier, WAKE_NS as usize).min(LONGEST_WAKE_NS)
}

/// What waking a thread has to be worth, for `ns` of work.
#[inline]
pub(crate) fn work(tier: Tier, ns: u64) -> Work {
    Work { ns, wake_ns: wake_ns(tier) }
}

/// Quantising and laying out weights `[n, k]`.
pub fn weights_ns(tier: Tier, n: usize, k: usize) -> u64 {
    on(tier, product(&[n, k]) / 5)
}

/// A forward pass over weights of `weight_bytes` bytes. With few rows, reading these from the caches takes longer than
/// the products.
#[inline]
pub fn forward_ns(tier: Tier, params: &Params, (m, n, k): (usize, usize, usize), weight_bytes: usize) -> u64 {
    let (of_codes, of_floats) = tier.products_per_ns(m);
    let products = product(&[m, n, k]) as u64 / if params.is_integer() { of_codes } else { of_floats };
    let reading = on(tier, weight_bytes / BYTES_PER_NS);
    // Each tile has noise and an ADC of its own.
    let converted = n.saturating_mul(params.tiles(k).len());
    let noise = if params.noise.any() { noise_ns(tier, product(&[m, converted])) } else { 0 };
    let input_noise = if params.input_noise.any() { noise_ns(tier, product(&[m, k])) } else { 0 };
    let elements = on(tier, product(&[m, converted.saturating_add(k)]) / 4);
    products.max(reading).saturating_add(noise).saturating_add(input_noise).saturating_add(elements)
}

/// Converting X `[m, k]` alone.
pub(crate) fn dac_ns(tier: Tier, m: usize, k: usize) -> u64 {
    on(tier, product(&[m, k]) / 4)
}

/// Noise and ADC of Y `[m, n]` alone.
pub(crate) fn epilogue_ns(tier: Tier, m: usize, n: usize) -> u64 {
    on(tier, product(&[m, n]))
}

/// Drawing `count` normals.
pub fn noise_ns(tier: Tier, count: usize) -> u64 {
    on(tier, count / 2)
}

/// A backward pass that computes `products` of its two products. The bias's gradient alone still reads dY.
pub fn backward_ns(tier: Tier, products: usize, (m, n, k): (usize, usize, usize)) -> u64 {
    let products = product(&[products, m, n, k]) / GRADIENT_PRODUCTS_PER_NS;
    on(tier, products.saturating_add(product(&[m, n])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slower_tiers_are_slower_in_everything() {
        let tiers = Tier::available();
        for pair in tiers.windows(2) {
            let [slow, fast] = [pair[0], pair[1]];
            assert!(work(slow, 0).wake_ns >= work(fast, 0).wake_ns);
            assert!(noise_ns(slow, 1 << 20) >= noise_ns(fast, 1 << 20));
            assert!(weights_ns(slow, 1 << 10, 1 << 10) >= weights_ns(fast, 1 << 10, 1 << 10));
        }
        for tier in tiers {
            assert!((WAKE_NS..=LONGEST_WAKE_NS).contains(&work(tier, 0).wake_ns), "{}", tier.name());
            let expected = match tier.name() {
                "portable" | "neon" => LONGEST_WAKE_NS,
                "neon_dotprod" => 15_789,
                _ => WAKE_NS,
            };
            assert_eq!(work(tier, 0).wake_ns, expected, "{}", tier.name());
        }
    }
}
