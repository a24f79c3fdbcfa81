//! Every tier and every way of cutting a call equals the scalar reference bit for bit.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Case, Reversed, Shuffled, Storage, Threads, case, small_random};
use lumina_kernel::executor::{Executor, Serial};
use lumina_kernel::{NoiseKey, Spec, Tier};
use proptest::prelude::*;

/// Below, at and above the sizes of tiles (1, 2, 4, 6, 8, 12, 16, 32 rows; 16, 32 columns; 4, 8, 16, 32, 64 k).
const ROWS: &[usize] = &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 16, 17, 20, 31, 32, 33, 45, 130];
const COLUMNS: &[usize] = &[1, 2, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 100];
const DEPTHS: &[usize] = &[1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 129];

const MANY_COLUMNS: &[usize] = &[96, 97, 127, 128, 129, 159, 160, 161, 255, 256, 257, 300];

fn shape() -> impl Strategy<Value = (usize, usize, usize)> {
    use proptest::sample::select;
    (select(ROWS), select(COLUMNS), select(DEPTHS))
}

fn any_case() -> impl Strategy<Value = Case> {
    (shape(), any::<bool>()).prop_flat_map(|((m, n, k), special)| case(m, n, k, special))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_tier_equals_the_reference(case in any_case()) {
        case.check(&[&Serial]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 20, ..ProptestConfig::default() })]

    /// Enough work to be cut by columns, or enough rows for several tasks.
    #[test]
    fn large_calls_equal_the_reference(
        case in prop_oneof![case(1, 1100, 600, false), case(5, 300, 520, true), case(33, 200, 129, false), case(100, 90, 70, true)],
        threads in prop_oneof![Just(1usize), Just(2), Just(3), Just(7)],
    ) {
        let fastest: Vec<_> = Tier::available().into_iter().rev().take(3).collect();
        case.check_tiers(&fastest, &[&Threads::new(threads), &Reversed, &Shuffled(threads as u64)]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, max_shrink_iters: 100, ..ProptestConfig::default() })]

    /// Below, at and above the panels that a single row meets side by side.
    #[test]
    fn a_row_with_many_panels_equals_the_reference(
        case in (prop_oneof![4 => Just(1usize), 1 => Just(2)], prop::sample::select(MANY_COLUMNS), prop::sample::select(DEPTHS), any::<bool>())
            .prop_flat_map(|(m, n, k, special)| case(m, n, k, special)),
    ) {
        case.check(&[&Serial]);
    }
}

/// Sums of codes beyond the integers that floats hold: exact all the same.
#[test]
fn many_tiles_at_the_full_scale_of_a_wide_adc() {
    let k = 65_536;
    let mut random = small_random(7);
    for (output_bits, tile_features, saturated) in [(16, 1, true), (16, 1, false), (16, 127, false), (12, 3, true)] {
        let spec = Spec {
            input_bits: 8,
            weight_bits: 8,
            output_bits,
            output_range: vec![if saturated { 1e-3 } else { 1.0 }],
            tile_features,
            noise_additive: 0.05,
            ..Spec::default()
        };
        let case = Case {
            m: 1,
            n: 2,
            k,
            spec,
            storage: Storage::F32,
            x: (0..k).map(|_| if saturated { 1.0 } else { random() }).collect(),
            w: (0..2 * k).map(|_| if saturated { 1.0 } else { random() }).collect(),
            bias: None,
            key: NoiseKey { seed: 1, stream: 2 },
        };
        case.check(&[&Serial]);
    }
}

#[test]
fn all_codes_at_their_largest() {
    let signs = [(1.0, 1.0), (1.0, -1.0), (-1.0, -1.0)];
    // The longest rows, then enough rows for every tile: both take sums of 16 bits to their limit.
    for (m, k, bits) in [
        (5, 131_072, &[1, 2, 4, 8][..]),
        (17, 131_072, &[4, 8]),
        (13, 1100, &[1, 2, 3, 4, 7, 8]),
        (33, 1100, &[1, 2, 4, 8]),
    ] {
        for (x_sign, w_sign) in signs {
            for weight_bits in bits.iter().copied() {
                let case = Case {
                    m,
                    n: 3,
                    k,
                    spec: Spec { input_bits: 8, weight_bits, output_bits: 0, ..Spec::default() },
                    storage: Storage::F32,
                    x: vec![x_sign; m * k],
                    w: vec![w_sign; 3 * k],
                    bias: None,
                    key: NoiseKey::default(),
                };
                case.check(&[&Serial]);
            }
        }
    }
}

/// The longest row whose products with packed codes are summed where they are, and longer ones.
#[test]
fn a_long_row_with_all_codes_at_their_largest() {
    for k in [65_536, 65_540, 131_072] {
        for weight_bits in [4, 8] {
            for w in [1.0, -1.0] {
                let case = Case {
                    m: 1,
                    n: 130,
                    k,
                    spec: Spec { input_bits: 8, weight_bits, output_bits: 0, ..Spec::default() },
                    storage: Storage::F32,
                    x: vec![1.0; k],
                    w: vec![w; 130 * k],
                    bias: None,
                    key: NoiseKey::default(),
                };
                let fastest: Vec<_> = Tier::available().into_iter().rev().take(2).collect();
                case.check_tiers(&fastest, &[&Serial]);
            }
        }
    }
}

/// So many weights that a processor with matrix tiles reads them for more rows at a time; less than a tile of rows is
/// left over.
#[test]
fn many_weights_and_many_rows() {
    let mut random = small_random(7);
    let (m, n, k) = (133, 1400, 1200);
    let case = Case {
        m,
        n,
        k,
        spec: Spec { input_bits: 8, weight_bits: 8, ..Spec::default() },
        storage: Storage::F32,
        x: (0..m * k).map(|_| random()).collect(),
        w: (0..n * k).map(|_| random()).collect(),
        bias: None,
        key: NoiseKey::default(),
    };
    let (expected, _) = case.expected();
    for tier in Tier::available() {
        assert_eq!(case.run(tier, &Threads::new(2)).y, expected.y, "{}", tier.name());
    }
}

#[test]
fn threads_change_nothing() {
    let mut random = small_random(5);
    let (m, n, k) = (70, 130, 90);
    for (input_bits, weight_bits) in [(8, 8), (4, 2), (0, 0)] {
        let case = Case {
            m,
            n,
            k,
            spec: Spec { input_bits, weight_bits, noise_relative: 0.1, noise_additive: 0.05, ..Spec::default() },
            storage: Storage::F32,
            x: (0..m * k).map(|_| random()).collect(),
            w: (0..n * k).map(|_| random()).collect(),
            bias: Some((0..n).map(|_| random()).collect()),
            key: NoiseKey { seed: 3, stream: 9 },
        };
        case.check(&[
            &Serial,
            &Reversed,
            &Shuffled(1),
            &Threads::new(1),
            &Threads::new(2),
            &Threads::new(3),
            &Threads::new(7),
        ]);
    }
}

/// Runs tasks one after another, says that its threads are worthwhile from three times the time to wake one on, and
/// counts how often it is called.
#[derive(Default)]
struct Worthwhile(AtomicUsize);

impl Executor for Worthwhile {
    fn run(&self, _at_most: usize, work: &(dyn Fn() + Sync)) {
        self.0.fetch_add(1, Ordering::Relaxed);
        work();
    }

    fn threads(&self) -> usize {
        4
    }

    fn worthwhile_ns(&self, wake_ns: u64) -> u64 {
        3 * wake_ns
    }
}

#[test]
fn only_large_calls_are_handed_to_other_threads() {
    let mut random = small_random(8);
    for ((m, n, k), handed) in [((1, 16, 16), false), ((16, 40, 32), false), ((200, 300, 512), true)] {
        let case = Case {
            m,
            n,
            k,
            spec: Spec { input_bits: 8, weight_bits: 8, noise_additive: 0.1, ..Spec::default() },
            storage: Storage::F32,
            x: (0..m * k).map(|_| random()).collect(),
            w: (0..n * k).map(|_| random()).collect(),
            bias: None,
            key: NoiseKey { seed: 3, stream: 9 },
        };
        for tier in Tier::available() {
            let executor = Worthwhile::default();
            case.run(tier, &executor);
            assert_eq!(executor.0.into_inner() > 0, handed, "{m} x {k} x {n}, {}", tier.name());
        }
    }
}

/// Whether the operating system lets this process use matrix tiles: ARCH_REQ_XCOMP_PERM for XFEATURE_XTILEDATA.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn may_use_tiles() -> bool {
    #[allow(unsafe_code, reason = "a system call")]
    // SAFETY: the call touches no memory of the process.
    unsafe {
        libc::syscall(libc::SYS_arch_prctl, 0x1023, 18) == 0
    }
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn may_use_tiles() -> bool {
    false
}

#[test]
fn a_tier_that_the_processor_has_was_tested() {
    let names: Vec<_> = Tier::available().iter().map(|tier| tier.name()).collect();
    println!("tiers tested: {}", names.join(", "));
    assert!(names.contains(&"portable"));
    #[cfg(target_arch = "x86_64")]
    {
        assert_eq!(names.contains(&"avx2"), is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"));
        let has = is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl");
        assert_eq!(names.contains(&"avx512bw"), has);
        let has_vnni = has && is_x86_feature_detected!("avx512vnni");
        assert_eq!(names.contains(&"avx512"), has_vnni);
        let has_tiles = std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains(" amx_int8"));
        assert_eq!(names.contains(&"amx"), has_vnni && has_tiles && may_use_tiles());
    }
    #[cfg(target_arch = "aarch64")]
    {
        assert!(names.contains(&"neon"));
        #[allow(unsafe_code, reason = "the C library's function is not known to be safe")]
        // SAFETY: the function has no precondition.
        let has_dot_products = unsafe { libc::getauxval(libc::AT_HWCAP) } & libc::HWCAP_ASIMDDP != 0;
        assert_eq!(names.contains(&"neon_dotprod"), has_dot_products);
    }
}
