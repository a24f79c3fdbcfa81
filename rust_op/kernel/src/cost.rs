//! Estimates of how long the parts of a call take on one thread, in nanoseconds. They decide whether work is handed to
//! other threads, and whether an interpreter is released meanwhile. Results do not depend on them.

use crate::microkernel::Tier;
use crate::params::Params;

/// Bytes of weights that a core reads from its caches per nanosecond.
const BYTES_PER_NS: usize = 100;
/// Products of a gradient per nanosecond.
const GRADIENT_PRODUCTS_PER_NS: usize = 64;

#[inline]
fn product(factors: &[usize]) -> usize {
    factors.iter().fold(1, |product: usize, factor| product.saturating_mul(*factor))
}

/// Quantising and laying out weights `[n, k]`.
pub fn weights_ns(n: usize, k: usize) -> u64 {
    (product(&[n, k]) / 5) as u64
}

/// A forward pass over weights of `weight_bytes` bytes. With few rows, reading these from the caches takes longer than
/// the products.
#[inline]
pub fn forward_ns(tier: Tier, params: &Params, (m, n, k): (usize, usize, usize), weight_bytes: usize) -> u64 {
    let (of_codes, of_floats) = tier.products_per_ns(m);
    let products = product(&[m, n, k]) as u64 / if params.is_integer() { of_codes } else { of_floats };
    let reading = (weight_bytes / BYTES_PER_NS) as u64;
    let noise = if params.noise.any() { noise_ns(product(&[m, n])) } else { 0 };
    products.max(reading).saturating_add(noise).saturating_add((product(&[m, n.saturating_add(k)]) / 4) as u64)
}

/// Converting X `[m, k]` alone.
pub(crate) fn dac_ns(m: usize, k: usize) -> u64 {
    (product(&[m, k]) / 4) as u64
}

/// Noise and ADC of Y `[m, n]` alone.
pub(crate) fn epilogue_ns(m: usize, n: usize) -> u64 {
    product(&[m, n]) as u64
}

/// Drawing `count` normals.
pub fn noise_ns(count: usize) -> u64 {
    (count / 2) as u64
}

/// A backward pass that computes `products` of its two products. The bias's gradient alone still reads dY.
pub fn backward_ns(products: usize, (m, n, k): (usize, usize, usize)) -> u64 {
    let products = product(&[products, m, n, k]) / GRADIENT_PRODUCTS_PER_NS;
    products.saturating_add(product(&[m, n])) as u64
}
