//! Nothing beyond an array is read or written: every array of a call ends, or begins, at a page that must not be
//! touched.

mod common;

use common::memory::{Place, on_fault_say, signal_of};
use common::{Backward, Case, PRECISIONS, Reversed, bits, case};
use lumina_kernel::executor::{Executor, Serial};
use lumina_kernel::forward::fill_noise_row;
use lumina_kernel::noise::fill_row;
use lumina_kernel::{Layer, NoiseKey, Params, Spec, Tier, WeightSource, Weights};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// Around the sizes of tiles, and between them.
const SIZES: &[usize] = &[1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 15, 16, 17, 23, 31, 32, 33, 37, 48, 63, 64, 65, 70];

const GUARDED: [Place; 2] = [Place::BeforeGuard, Place::AfterGuard];

fn any_case() -> impl Strategy<Value = Case> {
    use proptest::sample::select;
    let rows = prop_oneof![Just(0usize), select(SIZES)];
    (rows, select(SIZES), select(SIZES), any::<bool>()).prop_flat_map(|(m, n, k, special)| case(m, n, k, special))
}

/// Shapes that are cut by columns, and shapes whose rows are cut into several tasks.
fn large_case() -> impl Strategy<Value = Case> {
    prop_oneof![case(1, 1100, 601, false), case(5, 301, 523, true), case(33, 201, 129, false), case(101, 91, 71, true)]
}

fn check(case: &Case, executor: &dyn Executor) {
    let (forward, _) = case.expected();
    let pass = Backward::seeded(case, 1);
    let gradients = PRECISIONS.map(|precision| (precision, pass.expected(precision)));
    for tier in Tier::available() {
        for place in GUARDED {
            let (name, Case { m, n, k, spec, storage, .. }) = (tier.name(), case);
            on_fault_say(format!("{name} {place:?} {m}x{k}x{n} {storage:?} {spec:?}"));
            case.assert_same(tier, &case.run_at(place, tier, executor), &forward);
            for (precision, gradients) in &gradients {
                let got = pass.run_at(place, tier, executor, *precision, [true; 3]);
                pass.assert_same(&format!("{name} {precision:?}"), &got, gradients);
            }
        }
    }
}

/// The same cases each time: a process that has crashed cannot report its case.
fn config(cases: u32) -> ProptestConfig {
    let rng_seed = RngSeed::Fixed(7);
    ProptestConfig { cases, rng_seed, max_shrink_iters: 0, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(300))]

    #[test]
    fn nothing_beyond_an_array_is_touched(case in any_case()) {
        check(&case, &Serial);
    }
}

proptest! {
    #![proptest_config(config(12))]

    #[test]
    fn nothing_beyond_the_arrays_of_a_large_call_is_touched(case in large_case()) {
        check(&case, &Reversed);
    }
}

#[test]
fn the_noise_alone() {
    for (tier, place) in Tier::available().into_iter().flat_map(|tier| GUARDED.map(|place| (tier, place))) {
        for columns in (0..70).chain([1023, 1024, 1025, 2049]) {
            on_fault_say(format!("{} {place:?} noise of {columns}", tier.name()));
            let (mut eps, mut expected) = (place.filled(7.0, columns), vec![7.0; columns]);
            fill_noise_row(tier, 11, 3, &mut eps);
            fill_row(11, 3, &mut expected);
            assert_eq!(bits(&eps), bits(&expected), "{} {columns}", tier.name());
        }
    }
}

/// A layer of a single output and input, whose bias is one element.
#[test]
fn the_smallest_arrays() {
    for tier in Tier::available() {
        for place in GUARDED {
            on_fault_say(format!("{} {place:?} 1x1x1", tier.name()));
            let params = Params::new(&Spec { noise_additive: 0.1, ..Spec::default() }).expect("valid");
            let (w, x) = (place.put(&[2.0f32]), place.put(&[3.0f32]));
            let weights =
                Weights::new(tier, &Serial, &params, (1, 1), WeightSource::F32(&w), None, None).expect("valid");
            let layer = Layer::new(weights, Some(&place.put(&[1.0f32]))).expect("valid");
            let mut y = place.filled(0.0f32, 1);
            layer.forward(&Serial, &x, NoiseKey::default(), &mut y, None).expect("valid");
            assert!(y[0].is_finite());
        }
    }
}

/// The guard pages are there, on the side where they should be, and only there.
#[test]
fn a_step_beyond_ends_the_process() {
    for (place, beyond) in [(Place::BeforeGuard, 5), (Place::AfterGuard, -1)] {
        let array = place.put(&[1.0f32, 2.0, 3.0, 4.0, 5.0]);
        let first = array.as_ptr();
        let read = |offset: isize| {
            #[allow(unsafe_code, reason = "reads where nothing may be read")]
            // SAFETY: reads within the array, or in a child process that the read ends.
            signal_of(|| unsafe {
                std::hint::black_box(first.wrapping_offset(offset).read_volatile());
            })
        };
        assert_eq!([0, 4].map(read), [None, None]);
        assert!([libc::SIGSEGV, libc::SIGBUS].map(Some).contains(&read(beyond)), "{place:?}");
    }
}
