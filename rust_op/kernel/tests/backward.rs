//! The gradients of every tier equal the scalar reference's bit for bit.

mod common;

use common::{Case, Reversed, Threads, assert_same, bits, case, small_random};
use lumina_kernel::backward::{Inputs, Operand, Outputs, backward};
use lumina_kernel::executor::{Executor, Serial};
use lumina_kernel::forward::mask_stride;
use lumina_kernel::weights::code_stride;
use lumina_kernel::{Tier, reference};
use proptest::prelude::*;

/// What the forward pass saves, laid out as it is.
struct SavedCase {
    x8: Vec<i8>,
    x16: Vec<i16>,
    w8: Vec<i8>,
    w16: Vec<i16>,
    adc: Option<Vec<u8>>,
    dac: Option<Vec<u8>>,
}

fn pad<T: Copy + Default>(values: &[f32], k: usize, convert: impl Fn(f32) -> T) -> Vec<T> {
    let mut out = Vec::new();
    for row in values.chunks(k) {
        out.extend(row.iter().map(|value| convert(*value)));
        out.resize(out.len() + code_stride(k) - k, T::default());
    }
    out
}

fn mask(bits: &[bool], columns: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for row in bits.chunks(columns) {
        let mut bytes = vec![0u8; mask_stride(columns)];
        row.iter().enumerate().for_each(|(i, bit)| bytes[i / 8] |= u8::from(*bit) << (i % 8));
        out.extend(bytes);
    }
    out
}

fn check(case: &Case, dy_seed: u64, executors: &[&dyn Executor]) {
    let params = case.params();
    let weight = case.reference_weight();
    let forward = reference::forward(&params, &weight, case.bias.as_deref(), &case.x, case.k, case.key);
    let mut random = small_random(dy_seed);
    let dy: Vec<f32> = (0..case.m * case.n).map(|_| random()).collect();
    let expected = reference::backward(&params, &weight, &forward, &dy, case.k);

    let (xb, wb) = (params.input_bits, params.weight_bits);
    let wide = |bits: u32| bits > 8;
    let saved = SavedCase {
        x8: if (1..=8).contains(&xb) { pad(&forward.x_values, case.k, |c| c as i8) } else { Vec::new() },
        x16: if wide(xb) { pad(&forward.x_values, case.k, |c| c as i16) } else { Vec::new() },
        w8: if (1..=8).contains(&wb) { pad(&weight.values, case.k, |c| c as i8) } else { Vec::new() },
        w16: if wide(wb) { pad(&weight.values, case.k, |c| c as i16) } else { Vec::new() },
        adc: params.adc_can_saturate().then(|| mask(&forward.adc_saturated, case.n)),
        dac: params.input_range.is_some().then(|| mask(&forward.dac_saturated, case.k)),
    };
    let operand = |bits, f32s, i8s, i16s| match bits {
        0 => Operand::F32(f32s),
        1..=8 => Operand::I8(i8s),
        _ => Operand::I16(i16s),
    };
    let inputs = Inputs {
        dy: &dy,
        x: operand(xb, &case.x, &saved.x8, &saved.x16),
        x_step: &forward.x_step,
        weight: operand(wb, &case.w, &saved.w8, &saved.w16),
        weight_scale: &weight.scale,
        adc_mask: saved.adc.as_deref(),
        dac_mask: saved.dac.as_deref(),
        k: case.k,
    };
    for tier in Tier::available() {
        for executor in executors {
            let place = || format!("{} {}x{}x{} {:?}", tier.name(), case.m, case.k, case.n, case.spec);
            let (mut dx, mut dw, mut db) = (vec![7.0; case.m * case.k], vec![7.0; case.n * case.k], vec![7.0; case.n]);
            let outputs = Outputs { x: Some(&mut dx), weight: Some(&mut dw), bias: Some(&mut db) };
            backward(tier, *executor, &params, &inputs, outputs).expect("a valid call");
            assert_same("dx", &bits(&dx), &bits(&expected.x), &place);
            assert_same("dw", &bits(&dw), &bits(&expected.weight), &place);
            assert_same("db", &bits(&db), &bits(&expected.bias), &place);

            // Each output alone.
            let (mut dx, mut dw, mut db) = (vec![7.0; case.m * case.k], vec![7.0; case.n * case.k], vec![7.0; case.n]);
            let run = |outputs| backward(tier, *executor, &params, &inputs, outputs).expect("a valid call");
            run(Outputs { x: Some(&mut dx), ..Outputs::default() });
            run(Outputs { weight: Some(&mut dw), ..Outputs::default() });
            run(Outputs { bias: Some(&mut db), ..Outputs::default() });
            assert_same("dx alone", &bits(&dx), &bits(&expected.x), &place);
            assert_same("dw alone", &bits(&dw), &bits(&expected.weight), &place);
            assert_same("db alone", &bits(&db), &bits(&expected.bias), &place);
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

    /// Sums cut into several blocks, several tasks of rows.
    #[test]
    fn long_sums_continue_their_chains(
        case in prop_oneof![
            case(1500, 20, 40, false),
            case(30, 1300, 36, false),
            case(900, 400, 3, true),
            // Several tasks that share a strip, one row left over.
            case(193, 390, 70, true),
            case(26, 33, 1700, false),
        ],
        dy_seed in any::<u64>(),
    ) {
        check(&case, dy_seed, &[&Threads::new(3), &Reversed]);
    }
}
