//! Numbers at the ends of the range, and sizes at the ends of blocks: every tier equals the reference bit for bit.

mod common;

use common::{
    Backward, Case, PRECISIONS, Reversed, Storage, any_bits, assert_same, bits, modes, small_random, with_effects,
};
use lumina_kernel::Precision;
use lumina_kernel::executor::Serial;
use lumina_kernel::forward::fill_noise_row;
use lumina_kernel::noise::fill_row;
use lumina_kernel::params::OutputRange;
use lumina_kernel::{NoiseKey, Params, Spec, Tier};
use proptest::prelude::*;
use proptest::sample::select;

const EXTREMES: &[f32] = &[
    0.0,
    -0.0,
    f32::from_bits(1),
    -1e-42,
    f32::MIN_POSITIVE,
    1e-20,
    0.5,
    -0.5,
    1.5,
    2.5,
    127.0,
    -127.5,
    1e20,
    3e37,
    -3e37,
    f32::MAX,
];

fn value(special: bool) -> BoxedStrategy<f32> {
    let finite =
        prop_oneof![3 => select(EXTREMES), 3 => -2.0f32..2.0, 1 => (-8i32..8).prop_map(|half| half as f32 / 2.0)];
    if !special {
        return finite.boxed();
    }
    prop_oneof![60 => finite, 1 => select(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY][..])].boxed()
}

/// Weights whose channels differ in size; none is so large that its full scale overflows.
fn weights(n: usize, k: usize) -> impl Strategy<Value = Vec<f32>> {
    let channel = (select(&[1.0f32, 1.0, 1e-44, 1e-38, 1e-20, 1e20, 1e34][..]), any::<bool>());
    let channels = proptest::collection::vec((channel, proptest::collection::vec(-1.0f32..1.0, k)), n);
    channels.prop_map(|channels| {
        let scaled = |((size, halves), w): ((f32, bool), Vec<f32>)| {
            // Multiples of an eighth hit the ties of the quantiser.
            w.into_iter().map(move |w| size * if halves { (w * 8.0).round() / 8.0 } else { w })
        };
        channels.into_iter().flat_map(scaled).collect()
    })
}

fn spec(n: usize, input_bits: i64, weight_bits: i64) -> impl Strategy<Value = Spec> {
    const RANGES: &[f32] = &[1e-45, 1e-38, 1e-36, 0.5, 1.0, 127.0, 1e30, f32::MAX];
    const LEVELS: &[f32] = &[0.0, 0.0, -0.0, 1e-45, 0.1, 1e10, f32::MAX];
    let input_range = prop_oneof![Just(0.0f32), Just(-0.0), select(RANGES)];
    let output_range = prop_oneof![
        Just(vec![0.0f32]),
        select(RANGES).prop_map(|range| vec![range]),
        Just(vec![]).prop_map(move |_: Vec<f32>| { (0..n).map(|n| RANGES[n % RANGES.len()]).collect() })
    ];
    let output_bits = select(&[0i64, 2, 3, 8, 15, 16][..]);
    let stage = select(&["analog", "digital"][..]);
    let levels = (select(LEVELS), select(LEVELS), select(LEVELS));
    let specs = (output_bits, input_range, output_range, levels, stage).prop_map(
        move |(output_bits, input_range, output_range, (noise_relative, noise_additive, noise_shot), stage)| Spec {
            input_bits,
            weight_bits,
            output_bits,
            input_range: if input_bits == 0 { 0.0 } else { input_range },
            output_range,
            noise_relative,
            noise_additive,
            noise_shot,
            bias_stage: stage.to_owned(),
            ..Spec::default()
        },
    );
    with_effects(specs, input_bits, weight_bits)
}

fn case(m: usize, n: usize, k: usize, special: bool) -> impl Strategy<Value = Case> {
    use proptest::collection::vec;
    any_bits().prop_flat_map(move |(input_bits, weight_bits)| {
        let bias = proptest::option::of(vec(value(false), n));
        let parts = (spec(n, input_bits, weight_bits), vec(value(special), m * k), weights(n, k), bias);
        (parts, select(&[0u64, 1, i64::MAX as u64][..]), select(&[0u64, 1, i64::MAX as u64][..])).prop_map(
            move |((spec, x, w, bias), seed, stream)| Case {
                m,
                n,
                k,
                spec,
                storage: Storage::F32,
                x,
                w,
                bias,
                key: NoiseKey { seed, stream },
            },
        )
    })
}

fn check_backward(case: &Case, dy: &[f32]) {
    let pass = Backward::new(case, dy);
    for precision in PRECISIONS {
        let expected = pass.expected(precision);
        for tier in Tier::available() {
            let got = pass.run(tier, &Serial, precision, [true; 3]);
            pass.assert_same(&format!("{} {precision:?}", tier.name()), &got, &expected);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn extreme_numbers(
        (case, dy) in (select(&[1usize, 2, 5, 13, 17, 33][..]), select(&[1usize, 3, 17, 33, 40][..]), select(&[1usize, 3, 4, 17, 66][..]), any::<bool>())
            .prop_flat_map(|(m, n, k, special)| (case(m, n, k, special), proptest::collection::vec(value(special), m * n)))
    ) {
        case.check(&[&Serial]);
        check_backward(&case, &dy);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 20, ..ProptestConfig::default() })]

    /// The stride of rows of codes changes at 512 and then every 128; the key of the noise changes every 1024 columns.
    #[test]
    fn ends_of_blocks(
        case in (select(&[1usize, 2, 5, 17][..]), select(&[(33usize, 511usize), (3, 512), (31, 513), (17, 576), (33, 577), (2, 640), (3, 641), (1023, 7), (1024, 5), (1025, 4), (2049, 3)][..]))
            .prop_flat_map(|(m, (n, k))| common::case(m, n, k, false))
    ) {
        case.check(&[&Reversed]);
    }
}

/// A sample's result does not depend on the other rows or their number: the noise depends on the row's own index.
#[test]
fn a_batch_begins_as_a_shorter_one() {
    let (n, k) = (1100, 600);
    let mut random = common::small_random(8);
    let spec = Spec { input_bits: 8, weight_bits: 4, noise_relative: 0.1, noise_shot: 0.1, ..Spec::default() };
    let mut case = Case {
        m: 70,
        n,
        k,
        spec,
        storage: Storage::F32,
        x: (0..70 * k).map(|_| random()).collect(),
        w: (0..n * k).map(|_| random()).collect(),
        bias: None,
        key: NoiseKey { seed: 1, stream: 2 },
    };
    for tier in Tier::available() {
        case.m = 70;
        let whole = case.run(tier, &Serial).y;
        let mut shorter = case.clone();
        for m in [1, 5, 64, 65] {
            (shorter.m, shorter.x) = (m, case.x[..m * k].to_vec());
            assert_same("y", &shorter.run(tier, &Serial).y, &whole[..m * n], &|| format!("{} m = {m}", tier.name()));
        }
    }
}

#[test]
fn a_denormal_range_is_a_range_where_the_caller_flushes_denormals() {
    let spec = Spec { input_bits: 8, input_range: 1e-41, output_range: vec![1e-41], ..Spec::default() };
    let params = modes::within(modes::FLUSH, || Params::new(&spec)).expect("valid");
    assert_eq!(params.input_range, Some(1e-41));
    assert_eq!(params.output_range, OutputRange::Layer(1e-41));
}

/// The weights' full scale of 5e-39 is denormal but not 0, so their codes are not all 0.
#[test]
fn denormal_weights_have_codes_in_the_gradient_where_the_caller_flushes_denormals() {
    let (m, n, k) = (3, 4, 20);
    let mut random = small_random(11);
    let case = Case {
        m,
        n,
        k,
        spec: Spec { input_bits: 8, weight_bits: 2, output_bits: 0, ..Spec::default() },
        storage: Storage::F32,
        x: (0..m * k).map(|_| random()).collect(),
        w: (0..n * k).map(|_| 5e-39 * random().signum()).collect(),
        bias: None,
        key: NoiseKey::default(),
    };
    let pass = Backward::new(&case, &[1e30; 12]);
    let expected = pass.expected(Precision::Highest);
    assert!(expected.x.iter().any(|dx| *dx != 0.0));
    for tier in Tier::available() {
        let got = modes::within(modes::FLUSH, || pass.run(tier, &Serial, Precision::Highest, [true; 3]));
        pass.assert_same(tier.name(), &got, &expected);
    }
}

/// Results are the same in whatever modes the caller computes, and the modes are afterwards what they were.
#[test]
fn the_callers_floating_point_modes_change_nothing() {
    let (m, n, k) = (40, 33, 65);
    let mut random = small_random(6);
    let mut values = |count, size: f32| -> Vec<f32> { (0..count).map(|_| size * random()).collect() };
    let (mut x, w, bias) = (values(m * k, 1e-20), values(n * k, 1e-20), values(n, 1e-40));
    x[5 * k + 3] = -f32::NAN;
    let dy = values(m * n, 1e-20);
    for (input_bits, weight_bits) in [(8, 8), (8, 4), (4, 1), (12, 12), (0, 0)] {
        let case = Case {
            m,
            n,
            k,
            spec: Spec { input_bits, weight_bits, output_bits: 0, noise_relative: 0.1, ..Spec::default() },
            storage: Storage::F32,
            x: x.clone(),
            w: w.clone(),
            bias: Some(bias.clone()),
            key: NoiseKey { seed: 3, stream: 9 },
        };
        let (expected, _) = case.expected();
        assert!(expected.y.iter().any(|bits| *bits & 0x7F80_0000 == 0 && *bits << 1 != 0), "the case has denormals");
        let pass = Backward::new(&case, &dy);
        let gradients = PRECISIONS.map(|precision| (precision, pass.expected(precision)));
        let mut noise = vec![0.0; 70];
        fill_row(11, 3, &mut noise);
        for tier in Tier::available() {
            for word in modes::all() {
                let what = format!("{} in modes {word:#x}", tier.name());
                let place = || what.clone();
                let got = modes::within(word, || case.run(tier, &Serial));
                assert_same("y", &got.y, &expected.y, &place);
                assert_same("w_scale", &got.w_scale, &expected.w_scale, &place);
                for (precision, gradients) in &gradients {
                    let got = modes::within(word, || pass.run(tier, &Serial, *precision, [true; 3]));
                    pass.assert_same(&what, &got, gradients);
                }
                let mut eps = vec![7.0; noise.len()];
                modes::within(word, || fill_noise_row(tier, 11, 3, &mut eps));
                assert_same("noise", &bits(&eps), &bits(&noise), &place);
            }
        }
    }
}

/// The modes do what they are named after; otherwise the tests above would show nothing.
#[test]
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn modes_change_what_the_tests_compute() {
    use std::hint::black_box;
    let tiny = || black_box(1e-39f32) * black_box(1.0f32);
    assert_eq!((modes::within(0, tiny), modes::within(modes::FLUSH, tiny)), (1e-39, 0.0));
    let third = || black_box(1.0f32) / black_box(3.0f32);
    let thirds = [modes::within(modes::UPWARD, third), modes::within(modes::TOWARDS_ZERO, third)];
    assert_eq!(thirds.map(f32::to_bits), [0x3EAA_AAAB, 0x3EAA_AAAA]);
}
