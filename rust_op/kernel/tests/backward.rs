//! The gradients of every tier equal the scalar reference's bit for bit.

mod common;

use common::{Backward, Case, PRECISIONS, Reversed, Shuffled, Storage, Threads, case, small_random};
use lumina_kernel::Precision;
use lumina_kernel::executor::{Executor, Serial};
use lumina_kernel::precision::Block;
use lumina_kernel::reference::{self, Gradients};
use lumina_kernel::{NoiseKey, Spec, Tier};
use proptest::prelude::*;

fn check(case: &Case, dy_seed: u64, executors: &[&dyn Executor]) {
    check_pass(&Backward::seeded(case, dy_seed), executors);
}

fn check_pass(pass: &Backward, executors: &[&dyn Executor]) {
    for precision in PRECISIONS {
        let expected = pass.expected(precision);
        for tier in Tier::available() {
            for executor in executors {
                let what = format!("{} {precision:?}", tier.name());
                let run = |wanted| pass.run(tier, *executor, precision, wanted);
                pass.assert_same(&what, &run([true; 3]), &expected);
                let [x, weight, bias] = [[true, false, false], [false, true, false], [false, false, true]].map(run);
                let alone = Gradients { x: x.x, weight: weight.weight, bias: bias.bias };
                pass.assert_same(&format!("{what} each alone"), &alone, &expected);
                assert!(x.weight.iter().chain(&x.bias).chain(&bias.x).chain(&bias.weight).all(|value| *value == 7.0));
            }
        }
    }
}

const SIZES: &[usize] = &[1, 2, 3, 5, 6, 7, 11, 12, 13, 15, 16, 17, 31, 32, 33, 47, 65, 97];

fn any_case() -> impl Strategy<Value = Case> {
    use proptest::sample::select;
    let rows = prop_oneof![Just(0usize), select(SIZES)];
    (rows, select(SIZES), select(SIZES), any::<bool>()).prop_flat_map(|(m, n, k, special)| case(m, n, k, special))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, max_shrink_iters: 100, ..ProptestConfig::default() })]

    #[test]
    fn every_tier_equals_the_reference(case in any_case(), dy_seed in any::<u64>()) {
        check(&case, dy_seed, &[&Serial, &Reversed]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 4, ..ProptestConfig::default() })]

    /// Sums are cut into several blocks, and rows into several tasks.
    #[test]
    fn long_sums_continue_their_chains(
        case in prop_oneof![
            case(1500, 20, 40, false),
            case(30, 1300, 36, false),
            case(1100, 400, 3, true),
            case(1024, 7, 40, false),
            case(5, 2048, 33, false),
            // Several tasks share a strip, and one row is left over.
            case(193, 390, 70, true),
            case(26, 33, 1700, false),
        ],
        dy_seed in any::<u64>(),
    ) {
        check(&case, dy_seed, &[&Threads::new(3), &Reversed]);
    }
}

/// An executor that claims to have two threads.
struct SaysTwo<E>(E);

impl<E: Executor> Executor for SaysTwo<E> {
    fn run(&self, at_most: usize, work: &(dyn Fn() + Sync)) {
        self.0.run(at_most, work);
    }

    fn threads(&self) -> usize {
        2
    }

    fn order(&self, count: usize) -> Option<Vec<usize>> {
        self.0.order(count)
    }
}

/// Some of the gradients; the others are 7, as a run leaves what is not wanted.
fn only(wanted: [bool; 3], gradients: &Gradients) -> Gradients {
    let pick = |wanted: bool, values: &[f32]| if wanted { values.to_vec() } else { vec![7.0; values.len()] };
    Gradients {
        x: pick(wanted[0], &gradients.x),
        weight: pick(wanted[1], &gradients.weight),
        bias: pick(wanted[2], &gradients.bias),
    }
}

/// Enough rows and terms for a strip of two parts of two blocks, and enough columns that two threads do not cut it
/// further: once for dW, with the bias's gradient, and once for dX. Both masks have bits set in each part.
#[test]
fn strips_of_several_parts() {
    let terms = 1025;
    // With codes of 8 bits AVX2 multiplies in pairs, with 4 bits by fours.
    for ((m, n, k), bits, alone) in [
        ((terms, 193, 481), 8, [false, true, true]),
        ((193, terms, 481), 8, [true, false, false]),
        ((terms, 193, 481), 4, [false, true, true]),
        ((193, terms, 481), 4, [true, false, false]),
    ] {
        let mut random = small_random(m as u64);
        let mut values = |count| -> Vec<f32> { (0..count).map(|_| 2.0 * random()).collect() };
        let (x, w, mut dy) = (values(m * k), values(n * k), values(m * n));
        dy[m / 2 * n + n - 1] = -f32::NAN;
        dy[(m - 1) * n + 1] = f32::INFINITY;
        let spec = Spec {
            input_bits: bits,
            weight_bits: bits,
            output_bits: 6,
            input_range: 1.3,
            output_range: vec![9.0],
            ..Spec::default()
        };
        let case = Case { m, n, k, spec, storage: Storage::F32, x, w, bias: None, key: NoiseKey::default() };
        let pass = Backward::new(&case, &dy);
        for (mask, columns) in [(&pass.forward.adc_saturated, n), (&pass.forward.dac_saturated, k)] {
            for row in [0, 95, 96, m - 1] {
                let row = &mask[row * columns..][..columns];
                assert!(row.contains(&true) && row.contains(&false), "{m} x {k} x {n}");
            }
        }
        let results = PRECISIONS.map(|precision| (precision, pass.expected(precision)));
        for tier in Tier::available() {
            let runs: [(&dyn Executor, _); 5] = [
                (&Serial, alone),
                (&SaysTwo(Reversed), alone),
                (&SaysTwo(Shuffled(1)), alone),
                (&Threads::new(2), alone),
                (&SaysTwo(Threads::new(8)), [true; 3]),
            ];
            for (executor, wanted) in runs {
                for (precision, gradients) in &results {
                    let got = pass.run(tier, executor, *precision, wanted);
                    pass.assert_same(tier.name(), &got, &only(wanted, gradients));
                }
            }
        }
    }
}

/// No forward pass accepts such weights: they were written after it.
#[test]
fn weights_that_are_not_finite_give_nan() {
    let (m, n, k) = (3, 5, 70);
    let mut random = small_random(7);
    let mut values = |count| -> Vec<f32> { (0..count).map(|_| random()).collect() };
    let (x, w, dy) = (values(m * k), values(n * k), values(m * n));
    for weight_bits in [1, 2, 8, 9, 16] {
        let spec = Spec { input_bits: 8, weight_bits, output_bits: 0, ..Spec::default() };
        let case = Case {
            m,
            n,
            k,
            spec,
            storage: Storage::F32,
            x: x.clone(),
            w: w.clone(),
            bias: None,
            key: NoiseKey::default(),
        };
        let mut pass = Backward::new(&case, &dy);
        for tier in Tier::available() {
            for precision in PRECISIONS {
                pass.case.w.clone_from(&w);
                let mut expected = pass.run(tier, &Serial, precision, [true; 3]);
                let bad = [(0, 0, f32::NAN), (2, 31, f32::INFINITY), (4, 64, -f32::INFINITY), (1, 69, -f32::NAN)];
                for (row, column, value) in bad {
                    pass.case.w[row * k + column] = value;
                    expected.x.iter_mut().skip(column).step_by(k).for_each(|dx| *dx = reference::NAN);
                }
                let what = format!("{} {precision:?} {weight_bits} bits", tier.name());
                pass.assert_same(&what, &pass.run(tier, &Serial, precision, [true; 3]), &expected);
            }
        }
    }
}

/// A product's exact elements, and by how much they may be off.
struct Exact {
    sums: Vec<f64>,
    /// The sums of the magnitudes of their terms.
    magnitudes: Vec<f64>,
    bounds: Vec<f64>,
}

/// Products of `left`, of a term, a row and a tile of columns, and `right` `[terms][k]`, in f64, with the bound in the documentation of
/// `Precision`.
fn exact(
    left: impl Fn(usize, usize, usize) -> f64,
    right: &[f32],
    (terms, rows, tile, k): (usize, usize, usize, usize),
    block: Option<Block>,
) -> Exact {
    let mut exact = Exact { sums: Vec::new(), magnitudes: Vec::new(), bounds: Vec::new() };
    let largest = right.iter().fold(0.0f64, |largest, value| largest.max(f64::from(value.abs())));
    let t = terms as f64;
    for row in 0..rows {
        for column in 0..k {
            let left: Vec<f64> = (0..terms).map(|term| left(term, row, column / tile)).collect();
            let right: Vec<f64> = (0..terms).map(|term| f64::from(right[term * k + column])).collect();
            let sum: f64 = left.iter().zip(&right).map(|(v, c)| v * c).sum();
            // An overflow reaches the sum even if the code is 0.
            let overflows = left.iter().any(|v| v.abs() > 1e38);
            let magnitude: f64 = left.iter().zip(&right).map(|(v, c)| (v * c).abs()).sum();
            let magnitude = if overflows { f64::INFINITY } else { magnitude };
            let bound = match block {
                None => (t + 2.0) * 2f64.powi(-23) * magnitude + t * 2f64.powi(-125) * (1.0 + largest),
                Some(Block { levels, terms }) => {
                    let blocks = left.chunks(terms).zip(right.chunks(terms)).map(|(left, right)| {
                        let largest = left.iter().fold(0.0f64, |largest, v| largest.max(v.abs()));
                        largest * right.iter().map(|c| c.abs()).sum::<f64>() / f64::from(2 * levels - 1)
                    });
                    let rounded = (2 * left.chunks(terms).count() + 8) as f64 * 2f64.powi(-24) * magnitude;
                    blocks.sum::<f64>() + rounded + t * 2f64.powi(-112) * (1.0 + largest)
                }
            };
            exact.sums.push(sum);
            exact.magnitudes.push(magnitude);
            exact.bounds.push(bound);
        }
    }
    exact
}

impl Exact {
    /// Asserts that `got` is within the bound, and returns the largest error relative to the magnitudes of the terms.
    fn check(&self, name: &str, got: &[f32], masked: &[bool]) -> f64 {
        let mut worst = 0.0f64;
        for (index, got) in got.iter().enumerate() {
            if masked.get(index) == Some(&true) {
                assert_eq!(got.to_bits(), 0, "{name}[{index}] is masked");
                continue;
            }
            let (sum, magnitude, bound) = (self.sums[index], self.magnitudes[index], self.bounds[index]);
            assert!(got.is_nan() || !sum.is_nan(), "{name}[{index}] = {got}, exact {sum}");
            if magnitude.is_nan() || magnitude > 1e38 {
                continue;
            }
            let error = (f64::from(*got) - sum).abs();
            assert!(error <= bound, "{name}[{index}] = {got:e}, exact {sum:e}, off by {error:e}, allowed {bound:e}");
            worst = worst.max(if magnitude > 1e-30 { error / magnitude } else { 0.0 });
        }
        worst
    }
}

/// Checks that the reference keeps each precision's bound, and that every tier equals the reference. Returns the largest
/// relative errors of dX and of dW at each precision.
fn check_precisions(case: &Case, dy: &[f32], executors: &[&dyn Executor]) -> [[f64; 2]; 3] {
    let (m, n, k) = (case.m, case.n, case.k);
    let pass = Backward::new(case, dy);
    check_pass(&pass, executors);
    let (tile, tiles) = (pass.params.tile(k), pass.params.tiles(k).len());
    let passed = |row: usize, column: usize, tile: usize| {
        let saturated = pass.forward.adc_saturated[(row * tiles + tile) * n + column];
        if saturated { 0.0 } else { f64::from(dy[row * n + column]) }
    };
    let for_x = |term: usize, row: usize, tile| passed(row, term, tile) * f64::from(pass.weight.scale[term]);
    let for_weight = |term: usize, row: usize, tile| passed(term, row, tile) * f64::from(pass.forward.x_step[term]);
    PRECISIONS.map(|precision| {
        let for_x = exact(for_x, &pass.weight.values, (n, m, tile, k), precision.block(pass.params.weight_bits));
        let for_weight =
            exact(for_weight, &pass.forward.x_values, (m, n, tile, k), precision.block(pass.params.input_bits));
        let got = pass.expected(precision);
        [
            for_x.check(&format!("{precision:?} dx"), &got.x, &pass.forward.dac_saturated),
            for_weight.check(&format!("{precision:?} dw"), &got.weight, &[]),
        ]
    })
}

/// dY: ordinary numbers, with others scattered among them.
fn gradient(length: usize) -> impl Strategy<Value = Vec<f32>> {
    let value = prop_oneof![
        60 => -1.0f32..1.0,
        4 => Just(0.0f32),
        4 => Just(-0.0f32),
        4 => -1e-36f32..1e-36,
        4 => Just(1e-40f32),
        2 => Just(1.5e-45f32),
        2 => 1e30f32..1e33,
    ];
    let special = prop_oneof![Just(f32::NAN), Just(f32::INFINITY), Just(f32::NEG_INFINITY), Just(f32::MAX)];
    (proptest::collection::vec(value, length), proptest::option::of((any::<prop::sample::Index>(), special))).prop_map(
        |(mut dy, special)| {
            if let Some((index, special)) = special
                && !dy.is_empty()
            {
                let index = index.index(dy.len());
                dy[index] = special;
            }
            dy
        },
    )
}

fn any_case_and_gradient() -> impl Strategy<Value = (Case, Vec<f32>)> {
    any_case().prop_flat_map(|case| {
        let length = case.m * case.n;
        (Just(case), gradient(length))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, max_shrink_iters: 100, ..ProptestConfig::default() })]

    #[test]
    fn every_precision_keeps_its_bound((case, dy) in any_case_and_gradient()) {
        check_precisions(&case, &dy, &[&Reversed]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, max_shrink_iters: 4, ..ProptestConfig::default() })]

    /// Sums are cut into several blocks, some with an odd number of terms; a strip has several tasks.
    #[test]
    fn long_sums_keep_their_bound(
        case in prop_oneof![case(2051, 20, 40, false), case(193, 390, 70, false), case(26, 2100, 65, false)],
        dy_seed in any::<u64>(),
    ) {
        let mut random = small_random(dy_seed);
        let dy: Vec<f32> = (0..case.m * case.n).map(|_| random()).collect();
        check_precisions(&case, &dy, &[&Threads::new(3), &Reversed]);
    }

    /// Fewer bits do round, by what their number lets expect: of 6 terms, the largest is rounded least.
    #[test]
    fn fewer_bits_round_more(dy_seed in any::<u64>()) {
        let (m, n, k) = (5, 6, 32);
        let mut random = small_random(dy_seed);
        let mut values = |count| -> Vec<f32> { (0..count).map(|_| random()).collect() };
        let spec = Spec { input_bits: 8, weight_bits: 8, output_bits: 0, ..Spec::default() };
        let (x, w, dy) = (values(m * k), values(n * k), values(m * n));
        let case = Case { m, n, k, spec, storage: Storage::F32, x, w, bias: None, key: NoiseKey::default() };
        let [highest, bits16, bits8] = check_precisions(&case, &dy, &[]);
        for side in 0..2 {
            prop_assert!(highest[side] < 1e-6 && 1e-6 < bits16[side] && bits16[side] < 1e-3 && 1e-3 < bits8[side]);
        }
    }

    /// Beside a term that is much larger, the others are rounded to its step; what is tiny throughout becomes 0.
    #[test]
    fn outliers_and_tiny_gradients(dy_seed in any::<u64>(), exponent in -149i32..0, outlier in 1f32..1e4) {
        let (m, n, k) = (70, 66, 33);
        let mut random = small_random(dy_seed);
        let mut values = |count| -> Vec<f32> { (0..count).map(|_| random()).collect() };
        let spec = Spec { input_bits: 8, weight_bits: 4, output_bits: 0, ..Spec::default() };
        let (x, w, mut dy) = (values(m * k), values(n * k), values(m * n));
        dy.iter_mut().for_each(|dy| *dy = (f64::from(*dy) * 2f64.powi(exponent)) as f32);
        dy[17 * n + 5] *= outlier;
        let case = Case { m, n, k, spec, storage: Storage::F32, x, w, bias: None, key: NoiseKey::default() };
        check_precisions(&case, &dy, &[&Serial]);
    }
}

/// Codes that are rounded up to twice their terms, and one rounding for each of many blocks.
#[test]
fn many_blocks_keep_the_bound() {
    let (m, n, k) = (400 * 512, 1, 1);
    let mut x = vec![0.0f32; m];
    let mut dy = vec![0.0f32; m];
    dy[0] = 32639.0;
    for (index, (dy, x)) in dy.iter_mut().zip(&mut x).enumerate().skip(1) {
        if index < 512 {
            (*dy, *x) = (0.5f32.next_up(), if index <= 64 { 65.0 } else { 64.0 });
        } else if index % 512 == 0 {
            (*dy, *x) = (0.50001 / 256.0, 1.0);
        }
    }
    // A code of X stands for 1.
    let spec = Spec { input_bits: 8, weight_bits: 8, output_bits: 0, input_range: 127.0, ..Spec::default() };
    let w = vec![1.0];
    let case = Case { m, n, k, spec, storage: Storage::F32, x, w, bias: None, key: NoiseKey::default() };
    check_precisions(&case, &dy, &[&Serial]);
}

/// No sum of a block's products overflows, in 32 bits or, with codes of up to 4 bits, in 16 on the way.
#[test]
fn blocks_at_their_largest() {
    let k = 33;
    for bits in [2, 4, 8] {
        for ((m, n), sign) in [((1024, 3), 1.0), ((1024, 3), -1.0), ((3, 1024), 1.0), ((3, 1024), -1.0)] {
            let spec = Spec { input_bits: bits, weight_bits: bits, output_bits: 0, ..Spec::default() };
            let (x, w, dy) = (vec![sign; m * k], vec![sign; n * k], vec![-1.0; m * n]);
            let case = Case { m, n, k, spec, storage: Storage::F32, x, w, bias: None, key: NoiseKey::default() };
            check_pass(&Backward::new(&case, &dy), &[&Serial]);
        }
    }
}

#[test]
fn precisions_have_names() {
    let named = ["highest", "high", "medium", "8 bits"].map(|name| Precision::from_name(name).expect("a name"));
    assert_eq!(named, [Precision::Highest, Precision::Bits16, Precision::Bits16, Precision::Bits8]);
    assert_eq!(Precision::default(), Precision::Highest);
    let refused = Precision::from_name("low").expect_err("no name");
    assert_eq!(refused.to_string(), "precision = \"low\": allowed is \"highest\", \"high\", \"medium\" or \"8 bits\"");
}
