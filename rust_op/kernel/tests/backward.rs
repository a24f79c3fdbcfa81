//! The gradients of every tier equal the scalar reference's bit for bit.

mod common;

use common::{Backward, Case, Reversed, Shuffled, Storage, Threads, case, small_random};
use lumina_kernel::backward::Precision;
use lumina_kernel::executor::{Executor, Serial};
use lumina_kernel::reference::{self, Gradients};
use lumina_kernel::{NoiseKey, Spec, Tier};
use proptest::prelude::*;

fn check(case: &Case, dy_seed: u64, executors: &[&dyn Executor]) {
    let pass = Backward::seeded(case, dy_seed);
    let expected = pass.expected();
    for tier in Tier::available() {
        for executor in executors {
            let run = |wanted| pass.run(tier, *executor, Precision::Highest, wanted);
            pass.assert_same(tier.name(), &run([true; 3]), &expected);
            let (x, weight, bias) = (run([true, false, false]), run([false, true, false]), run([false, false, true]));
            let alone = Gradients { x: x.x, weight: weight.weight, bias: bias.bias };
            pass.assert_same(&format!("{} each alone", tier.name()), &alone, &expected);
            assert!(x.weight.iter().chain(&x.bias).chain(&bias.x).chain(&bias.weight).all(|value| *value == 7.0));
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
    #![proptest_config(ProptestConfig { cases: 500, max_shrink_iters: 100, ..ProptestConfig::default() })]

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
    // A lane holds two terms where a tier multiplies bf16.
    let terms = if Tier::available().iter().any(|tier| tier.multiplies_bf16()) { 2049 } else { 1025 };
    for ((m, n, k), alone) in [((terms, 193, 481), [false, true, true]), ((193, terms, 481), [true, false, false])] {
        let mut random = small_random(m as u64);
        let mut values = |count| -> Vec<f32> { (0..count).map(|_| 2.0 * random()).collect() };
        let (x, w, mut dy) = (values(m * k), values(n * k), values(m * n));
        dy[m / 2 * n + n - 1] = -f32::NAN;
        dy[(m - 1) * n + 1] = f32::INFINITY;
        let spec = Spec {
            input_bits: 8,
            weight_bits: 8,
            output_bits: 6,
            input_range: 1.3,
            output_range: vec![9.0],
            ..Spec::default()
        };
        let case = Case { m, n, k, spec, storage: Storage::F32, x, w, bias: None, key: NoiseKey::default() };
        let pass = Backward::new(&case, &dy);
        for (mask, columns) in [(&pass.forward.adc_saturated, n), (&pass.forward.dac_saturated, k)] {
            for row in [0, 143, 144, m - 1] {
                let row = &mask[row * columns..][..columns];
                assert!(row.contains(&true) && row.contains(&false), "{m} x {k} x {n}");
            }
        }
        let expected = pass.expected();
        for tier in Tier::available() {
            let mut results = vec![(Precision::Highest, expected.clone())];
            if tier.multiplies_bf16() {
                results.push((Precision::Medium, pass.run(tier, &Serial, Precision::Medium, [true; 3])));
            }
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
            for precision in [Precision::Highest, Precision::Medium] {
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

/// A product's exact elements, the sums of the magnitudes of their terms, the number of terms, and the largest
/// magnitude in the right operand.
struct Exact {
    sums: Vec<f64>,
    magnitudes: Vec<f64>,
    terms: usize,
    largest: f64,
}

/// Products of `left` `[terms][rows]` and `right` `[terms][k]`, in f64.
fn exact(left: impl Fn(usize, usize) -> f64, right: &[f32], (terms, rows, k): (usize, usize, usize)) -> Exact {
    let (mut sums, mut magnitudes) = (vec![0.0; rows * k], vec![0.0; rows * k]);
    for row in 0..rows {
        for term in 0..terms {
            for column in 0..k {
                let product = left(term, row) * f64::from(right[term * k + column]);
                sums[row * k + column] += product;
                // An overflow reaches the sum even if the code is 0.
                let overflows = left(term, row).abs() > 1e38;
                magnitudes[row * k + column] += if overflows { f64::INFINITY } else { product.abs() };
            }
        }
    }
    let largest = right.iter().fold(0.0f64, |largest, value| largest.max(f64::from(value.abs())));
    Exact { sums, magnitudes, terms, largest }
}

impl Exact {
    /// Asserts that `got` is within the bound in the documentation of `Precision` for `r`, and returns the largest
    /// error relative to the magnitudes of the terms.
    fn check(&self, name: &str, got: &[f32], masked: &[bool], r: f64) -> f64 {
        let (t, epsilon) = (self.terms as f64, 2f64.powi(-23));
        let mut worst = 0.0f64;
        for (index, got) in got.iter().enumerate() {
            if masked.get(index) == Some(&true) {
                assert_eq!(got.to_bits(), 0, "{name}[{index}] is masked");
                continue;
            }
            let (sum, magnitude) = (self.sums[index], self.magnitudes[index]);
            assert!(got.is_nan() || !sum.is_nan(), "{name}[{index}] = {got}, exact {sum}");
            if magnitude.is_nan() || magnitude > 1e38 {
                continue;
            }
            let error = (f64::from(*got) - sum).abs();
            let bound = (r + (t + 2.0) * epsilon) * magnitude + t * 2f64.powi(-125) * (1.0 + self.largest);
            assert!(error <= bound, "{name}[{index}] = {got:e}, exact {sum:e}, off by {error:e}, allowed {bound:e}");
            worst = worst.max(if magnitude > 1e-30 { error / magnitude } else { 0.0 });
        }
        worst
    }
}

/// Checks the precisions below "highest" on every tier, and returns the largest relative errors of dX and of dW at
/// "medium" on each.
fn check_precisions(case: &Case, dy: &[f32], executors: &[&dyn Executor]) -> Vec<(Tier, [f64; 2])> {
    let (m, n, k) = (case.m, case.n, case.k);
    let pass = Backward::new(case, dy);
    let passed = |row: usize, column: usize| {
        let index = row * n + column;
        if pass.forward.adc_saturated[index] { 0.0 } else { f64::from(dy[index]) }
    };
    let for_x = |term: usize, row: usize| passed(row, term) * f64::from(pass.weight.scale[term]);
    let for_weight = |term: usize, row: usize| passed(term, row) * f64::from(pass.forward.x_step[term]);
    let for_x = exact(for_x, &pass.weight.values, (n, m, k));
    let for_weight = exact(for_weight, &pass.forward.x_values, (m, n, k));
    let errors = |tier| check_precisions_of(&pass, tier, executors, [&for_x, &for_weight]);
    Tier::available().into_iter().map(|tier| (tier, errors(tier))).collect()
}

fn check_precisions_of(
    pass: &Backward,
    tier: Tier,
    executors: &[&dyn Executor],
    [for_x, for_weight]: [&Exact; 2],
) -> [f64; 2] {
    let highest = pass.run(tier, &Serial, Precision::Highest, [true; 3]);
    let high = pass.run(tier, &Serial, Precision::High, [true; 3]);
    pass.assert_same("high", &high, &highest);

    let medium = pass.run(tier, &Serial, Precision::Medium, [true; 3]);
    for executor in executors {
        pass.assert_same("executor", &pass.run(tier, *executor, Precision::Medium, [true; 3]), &medium);
        let alone = pass.run(tier, *executor, Precision::Medium, [false, true, false]);
        pass.assert_same("dw alone", &Gradients { weight: alone.weight, ..medium.clone() }, &medium);
    }
    let mut expected = medium.clone();
    // Products of codes of more than 8 bits or of analog values, and the bias's gradient, are as at "highest".
    let rounds = |bits: u32| tier.multiplies_bf16() && (1..=8).contains(&bits);
    expected.bias.clone_from(&highest.bias);
    if !rounds(pass.params.weight_bits) {
        expected.x.clone_from(&highest.x);
    }
    if !rounds(pass.params.input_bits) {
        expected.weight.clone_from(&highest.weight);
    }
    pass.assert_same("medium", &medium, &expected);

    for_x.check("highest dx", &highest.x, &pass.forward.dac_saturated, 0.0);
    for_weight.check("highest dw", &highest.weight, &[], 0.0);
    let r = 2f64.powi(-8);
    [
        for_x.check("medium dx", &medium.x, &pass.forward.dac_saturated, r),
        for_weight.check("medium dw", &medium.weight, &[], r),
    ]
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
    #![proptest_config(ProptestConfig { cases: 500, max_shrink_iters: 100, ..ProptestConfig::default() })]

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

    /// "medium" does round where the tier multiplies bf16.
    #[test]
    fn medium_rounds_where_that_is_faster(dy_seed in any::<u64>()) {
        let (m, n, k) = (5, 6, 32);
        let mut random = small_random(dy_seed);
        let mut values = |count| -> Vec<f32> { (0..count).map(|_| random()).collect() };
        let spec = Spec { input_bits: 8, weight_bits: 8, output_bits: 0, ..Spec::default() };
        let (x, w, dy) = (values(m * k), values(n * k), values(m * n));
        let case = Case { m, n, k, spec, storage: Storage::F32, x, w, bias: None, key: NoiseKey::default() };
        for (tier, worst) in check_precisions(&case, &dy, &[]) {
            prop_assert_eq!(worst.map(|worst| worst > 2f64.powi(-13)), [tier.multiplies_bf16(); 2]);
        }
    }
}

#[test]
fn precisions_have_names() {
    let named = ["highest", "high", "medium"].map(|name| Precision::from_name(name).expect("a name"));
    assert_eq!(named, [Precision::Highest, Precision::High, Precision::Medium]);
    assert_eq!(Precision::default(), Precision::Highest);
    let refused = Precision::from_name("low").expect_err("no name");
    assert_eq!(refused.to_string(), "precision = \"low\": allowed is \"highest\", \"high\" or \"medium\"");
}
