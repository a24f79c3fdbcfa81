//! The noise: its words against `rand_xoshiro`, its normals against Box and Muller's method in f64, and its statistics.
//!
//! Everything is drawn from fixed seeds, so a test either always passes or always fails. A statistic may be off by
//! five standard errors, which a sound generator exceeds once in 1.7 million.

use std::f64::consts::{LN_2, PI, SQRT_2};

use lumina_kernel::params::{Params, Spec};
use lumina_kernel::rng::{self, NoiseKey};
use lumina_kernel::{Layer, Serial, Tier, WeightSource, Weights, noise};
use rand_core::{Rng, SeedableRng};
use rand_xoshiro::{SplitMix64, Xoshiro256PlusPlus};

fn row(seed: u64, stream: u64, row: u64, columns: usize) -> Vec<f32> {
    let mut eps = vec![0.0; columns];
    noise::fill_row(rng::call_key(NoiseKey { seed, stream }), row, &mut eps);
    eps
}

/// The first output of SplitMix64 started at `x`, from the library.
fn first_output(x: u64) -> u64 {
    SplitMix64::from_seed(x.to_le_bytes()).next_u64()
}

/// The lanes of a block as the documentation of `rng` describes them: 32 outputs of SplitMix64, four per lane.
fn documented_lanes(key: NoiseKey, row: u64, block: u64) -> Vec<Xoshiro256PlusPlus> {
    let hash = first_output(first_output(first_output(first_output(key.seed) ^ key.stream) ^ row) ^ block);
    let mut outputs = SplitMix64::from_seed(hash.to_le_bytes());
    (0..8)
        .map(|_| {
            let mut state = [0; 32];
            state.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&outputs.next_u64().to_le_bytes()));
            Xoshiro256PlusPlus::from_seed(state)
        })
        .collect()
}

const KEYS: [(u64, u64, u64); 6] =
    [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (u64::MAX >> 1, u64::MAX >> 1, 1 << 40), (0xDEAD_BEEF, 77, 5)];

#[test]
fn lanes_are_those_of_rand_xoshiro() {
    for (seed, stream, row) in KEYS {
        let key = NoiseKey { seed, stream };
        for block in 0..3 {
            let mut lanes = rng::lanes(rng::block_key(rng::call_key(key), row, block));
            let mut documented = documented_lanes(key, row, block);
            for _ in 0..70 {
                let words = rng::draw(&mut lanes);
                for (pair, lane) in words.chunks_exact(2).zip(&mut documented) {
                    assert_eq!(u64::from(pair[0]) | u64::from(pair[1]) << 32, lane.next_u64());
                }
            }
        }
    }
}

/// eps of a row, assembled from the documented lanes.
fn documented_row(key: NoiseKey, row: u64, columns: usize) -> Vec<f32> {
    let mut eps = Vec::new();
    for block in 0..columns.div_ceil(1024) as u64 {
        let mut lanes = documented_lanes(key, row, block);
        let mut draw = || -> Vec<u32> {
            let words = lanes.iter_mut().map(Rng::next_u64);
            words.flat_map(|word| [word as u32, (word >> 32) as u32]).collect()
        };
        for _ in 0..1024 / 32 {
            let (a, b) = (draw(), draw());
            let normals: Vec<_> = a.iter().zip(&b).map(|(a, b)| noise::box_muller(*a, *b)).collect();
            eps.extend(normals.iter().map(|pair| pair.0));
            eps.extend(normals.iter().map(|pair| pair.1));
        }
    }
    eps.truncate(columns);
    eps
}

/// A layer whose output is its noise: z = 0, sigma = 1, no ADC.
fn noise_of_kernel(tier: Tier, key: NoiseKey, rows: usize, columns: usize) -> Vec<f32> {
    let spec = Spec { output_bits: 0, output_range: vec![1.0], noise_additive: 1.0, ..Spec::default() };
    let params = Params::new(&spec).expect("allowed parameters");
    let zeros = vec![0.0; columns];
    let weights = Weights::new(tier, &Serial, &params, (columns, 1), WeightSource::F32(&zeros), None, None);
    let layer = Layer::new(weights.expect("weights"), None).expect("a layer");
    let mut y = vec![0.0; rows * columns];
    layer.forward(&Serial, &vec![0.0; rows], key, &mut y, None).expect("a forward pass");
    y
}

#[test]
fn kernels_draw_the_documented_noise() {
    for tier in Tier::available() {
        for columns in (1..70).chain([95, 127, 128, 129, 500, 1000, 1023, 1024, 1025, 1055, 1056, 2047, 2049, 3100]) {
            let key = NoiseKey { seed: 3 * columns as u64, stream: 11 };
            let rows = 3;
            let y = noise_of_kernel(tier, key, rows, columns);
            for (m, y) in y.chunks_exact(columns).enumerate() {
                let expected = documented_row(key, m as u64, columns);
                let same = y.iter().zip(&expected).all(|(y, e)| y.to_bits() == e.to_bits());
                assert!(same, "{}: row {m} of {columns} columns", tier.name());
            }
        }
    }
}

/// The largest errors of the Gaussian on pairs of words.
#[derive(Debug, Default)]
struct Errors {
    /// Against f64 from the same u in f32, in units in the last place of the result.
    ulp: f64,
    /// Against f64 from u = ((A >> 1) + 1/2) / 2^31, absolute.
    absolute: f64,
    largest: f64,
}

fn errors(pairs: impl Iterator<Item = (u32, u32)>) -> Errors {
    let mut worst = Errors::default();
    for (a, b) in pairs {
        let exact_u = (f64::from(a >> 1) + 0.5) / 2.0f64.powi(31);
        let quarter_turn = f64::from((b << 2) as i32) / 2.0f64.powi(31) * (PI / 4.0);
        let (sin, cos) = quarter_turn.sin_cos();
        let cos = if b >> 31 == 1 { -cos } else { cos };
        let (first, second) = if b >> 30 & 1 == 0 { (cos, sin) } else { (sin, cos) };
        let rounded_u = f64::from(((a >> 1) as f32).mul_add(noise::UNIFORM_STEP, noise::UNIFORM_OFFSET));
        let got = noise::box_muller(a, b);
        for (got, direction) in [(got.0, first), (got.1, second)] {
            let wanted = (-2.0 * rounded_u.ln()).sqrt() * direction;
            let exact = (-2.0 * exact_u.ln()).sqrt() * direction;
            let got = f64::from(got);
            let ulp = 2.0f64.powi(wanted.abs().max(f64::from(f32::MIN_POSITIVE)).log2().floor() as i32 - 23);
            worst.ulp = worst.ulp.max((got - wanted).abs() / ulp);
            worst.absolute = worst.absolute.max((got - exact).abs());
            worst.largest = worst.largest.max(got.abs());
        }
    }
    worst
}

/// Pairs of words of a fixed sequence.
fn random_pairs(count: u64) -> impl Iterator<Item = (u32, u32)> {
    let mut source = SplitMix64::from_seed(9u64.to_le_bytes());
    (0..count).map(move |_| source.next_u64()).map(|word| (word as u32, (word >> 32) as u32))
}

#[test]
fn gaussian_is_box_muller() {
    let corners: Vec<u32> = (0..32)
        .flat_map(|bit| [1u32 << bit, (1u32 << bit) - 1, (1u32 << bit) + 1, !(1u32 << bit), u32::MAX << bit])
        .chain((0..4096).map(|step| step << 20))
        .chain((0..600).map(|step| u32::MAX - step))
        .collect();
    let at_corners = corners.iter().flat_map(|a| corners.iter().step_by(7).map(move |b| (*a, *b)));
    let worst = errors(at_corners.chain(random_pairs(1 << 22)));
    println!("{worst:?}");
    assert!(worst.ulp < 5.0, "{worst:?}");
    assert!(worst.absolute < 2.5e-4, "{worst:?}");
    assert_eq!(worst.largest as f32, (64.0 * LN_2).sqrt() as f32);
}

/// P(|x| > `t`) of the normal distribution.
fn two_tails(t: f64) -> f64 {
    libm::erfc(t / SQRT_2)
}

#[track_caller]
fn within(name: &str, value: f64, expected: f64, standard_error: f64) {
    let distance = (value - expected) / standard_error;
    println!("{name}: {value:.6} ({distance:+.2} standard errors)");
    assert!(distance.abs() < 5.0, "{name} is {value}, expected {expected}: {distance:.1} standard errors");
}

/// Moments, tails and the Kolmogorov-Smirnov distance of `x`.
#[track_caller]
fn assert_normal(name: &str, x: &[f32]) {
    let n = x.len() as f64;
    let moment = |power: i32| x.iter().map(|x| f64::from(*x).powi(power)).sum::<f64>() / n;
    let mean = moment(1);
    let central = |power: i32| x.iter().map(|x| (f64::from(*x) - mean).powi(power)).sum::<f64>() / n;
    let variance = central(2);
    within(&format!("{name}: mean"), mean, 0.0, (1.0 / n).sqrt());
    within(&format!("{name}: variance"), variance, 1.0, (2.0 / n).sqrt());
    within(&format!("{name}: skewness"), central(3) / variance.powf(1.5), 0.0, (6.0 / n).sqrt());
    within(&format!("{name}: kurtosis"), central(4) / variance.powi(2), 3.0, (24.0 / n).sqrt());
    for t in [1.0, 2.0, 3.0, 4.0] {
        let p = two_tails(t);
        for (side, sign) in [("above", 1.0), ("below", -1.0)] {
            let share = x.iter().filter(|x| sign * f64::from(**x) > t).count() as f64 / n;
            within(&format!("{name}: {side} {t} sigma"), share, p / 2.0, (p / 2.0 / n).sqrt());
        }
    }
    let mut sorted = x.to_vec();
    sorted.sort_unstable_by(f32::total_cmp);
    let distance = sorted.iter().enumerate().fold(0.0f64, |worst, (rank, x)| {
        let cdf = 0.5 * libm::erfc(-f64::from(*x) / SQRT_2);
        worst.max((cdf - rank as f64 / n).abs()).max((cdf - (rank + 1) as f64 / n).abs())
    });
    // P(sqrt(n) D > t) = 2 exp(-2 t^2) (Kolmogorov): 2.745 is as rare as five standard errors.
    let scaled = distance * n.sqrt();
    println!("{name}: KS {scaled:.3}");
    assert!(scaled < 2.745, "{name}: sqrt(n) D of the Kolmogorov-Smirnov test is {scaled}");
}

/// The correlation of `x` and `y`, and of their squares, which would show a shared radius.
#[track_caller]
fn assert_independent(name: &str, x: &[f32], y: &[f32]) {
    assert_eq!(x.len(), y.len());
    let n = x.len() as f64;
    let correlation =
        |f: fn(f64) -> f64| x.iter().zip(y).map(|(x, y)| f(f64::from(*x)) * f(f64::from(*y))).sum::<f64>() / n;
    within(&format!("{name}: correlation"), correlation(|x| x), 0.0, (1.0 / n).sqrt());
    let squares = correlation(|x| (x * x - 1.0) / SQRT_2);
    within(&format!("{name}: correlation of squares"), squares, 0.0, (1.0 / n).sqrt());
    let signs = correlation(f64::signum);
    within(&format!("{name}: correlation of signs"), signs, 0.0, (1.0 / n).sqrt());
}

#[test]
fn four_million_are_normal() {
    let x: Vec<f32> = (0..2048).flat_map(|m| row(2024, 0, m, 2048)).collect();
    assert_normal("2048 rows of 2048", &x);
}

#[test]
fn normal_along_every_axis() {
    let count = 1 << 18;
    assert_normal("one row", &row(1, 0, 0, count));
    let first = |values: &mut dyn Iterator<Item = Vec<f32>>| -> Vec<f32> { values.map(|row| row[0]).collect() };
    assert_normal("column 0 of rows", &first(&mut (0..count as u64).map(|m| row(1, 0, m, 1))));
    assert_normal("column 0 of streams", &first(&mut (0..count as u64).map(|s| row(1, s, 0, 1))));
    assert_normal("column 0 of seeds", &first(&mut (0..count as u64).map(|s| row(s, 0, 0, 1))));
    assert_normal("column 17 of rows", &(0..count as u64).map(|m| row(1, 0, m, 18)[17]).collect::<Vec<_>>());
    let last_of_blocks: Vec<f32> = (0..256).flat_map(|m| row(5, 0, m, 1024 * 64)).skip(1023).step_by(1024).collect();
    assert_normal("last column of blocks", &last_of_blocks);
}

#[test]
fn rows_and_columns_are_independent() {
    let (rows, columns) = (1024u64, 1024);
    let matrix: Vec<Vec<f32>> = (0..rows).map(|m| row(11, 3, m, columns)).collect();
    let flat: Vec<f32> = matrix.concat();
    for lag in [1, 2, 3, 16, 512, 1023] {
        let count = (rows as usize - lag) * columns;
        assert_independent(&format!("rows {lag} apart"), &flat[..count], &flat[lag * columns..]);
    }
    for lag in [1, 2, 4, 8, 15, 16, 17, 31, 32, 33, 64, 512] {
        let left: Vec<f32> = matrix.iter().flat_map(|row| &row[..columns - lag]).copied().collect();
        let right: Vec<f32> = matrix.iter().flat_map(|row| &row[lag..]).copied().collect();
        assert_independent(&format!("columns {lag} apart"), &left, &right);
    }
    let transposed: Vec<f32> = (0..columns).flat_map(|n| matrix.iter().map(move |row| row[n])).collect();
    let differing = |(i, _): &(usize, &f32)| i / columns != i % columns;
    let left: Vec<f32> = flat.iter().enumerate().filter(differing).map(|(_, x)| *x).collect();
    let right: Vec<f32> = transposed.iter().enumerate().filter(differing).map(|(_, x)| *x).collect();
    // Each pair (m, n), (n, m) occurs twice, which makes the standard error sqrt(2) times as large; half the pairs are
    // enough.
    assert_independent("row and column exchanged", &left[..left.len() / 2], &right[..right.len() / 2]);
    let blocks: Vec<f32> = (0..256).flat_map(|m| row(11, 3, m, 2048)).collect();
    let left: Vec<f32> = blocks.chunks(2048).flat_map(|row| &row[..1024]).copied().collect();
    let right: Vec<f32> = blocks.chunks(2048).flat_map(|row| &row[1024..]).copied().collect();
    assert_independent("blocks", &left, &right);
}

#[test]
fn streams_and_seeds_are_independent() {
    let draw = |seed: u64, stream: u64| -> Vec<f32> { (0..256).flat_map(|m| row(seed, stream, m, 1024)).collect() };
    let base = draw(6, 9);
    for step in [1u64, 2, 3, 1 << 16, 1 << 32, 1 << 62] {
        assert_independent(&format!("streams {step} apart"), &base, &draw(6, 9 + step));
        assert_independent(&format!("seeds {step} apart"), &base, &draw(6 + step, 9));
    }
    assert_independent("seed and stream exchanged", &base, &draw(9, 6));
    assert_independent("seed and stream moved alike", &base, &draw(7, 10));
    let golden = rng::GOLDEN >> 1;
    assert_independent("seeds an increment apart", &base, &draw(6 + golden, 9));
    let shifted: Vec<f32> = (1..257).flat_map(|m| row(6, 8, m, 1024)).collect();
    assert_independent("next row of the stream before", &base, &shifted);
}
