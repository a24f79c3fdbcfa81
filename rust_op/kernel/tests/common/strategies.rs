//! Random cases.

use lumina_kernel::{NoiseKey, Spec};
use proptest::prelude::*;

use super::{Case, Storage, small_random};

/// Values of X: ordinary ones, with special ones scattered among them.
fn x_value() -> impl Strategy<Value = f32> {
    prop_oneof![
        200 => -3.0f32..3.0,
        10 => Just(0.0f32),
        4 => Just(-0.0f32),
        2 => Just(1e-42f32),
        2 => Just(-3e38f32),
        1 => Just(f32::NAN),
        1 => Just(f32::INFINITY),
        1 => Just(f32::NEG_INFINITY),
    ]
}

fn rows(rows: usize, columns: usize, special: bool) -> BoxedStrategy<Vec<f32>> {
    if special {
        proptest::collection::vec(x_value(), rows * columns).boxed()
    } else {
        any::<u64>()
            .prop_map(move |seed| {
                let mut random = small_random(seed);
                (0..rows * columns).map(|_| 2.0 * random()).collect()
            })
            .boxed()
    }
}

fn weights(n: usize, k: usize) -> impl Strategy<Value = Vec<f32>> {
    (any::<u64>(), any::<bool>()).prop_map(move |(seed, zero_channel)| {
        let mut random = small_random(seed);
        let mut w: Vec<f32> = (0..n * k).map(|_| 0.2 * random()).collect();
        if zero_channel {
            w[..k].fill(0.0);
            w[0] = -0.0;
        }
        w
    })
}

/// Any parameters, with the given `input_bits` and `weight_bits`.
pub fn spec(n: usize, input_bits: i64, weight_bits: i64) -> impl Strategy<Value = Spec> {
    with_effects(first_version(n, input_bits, weight_bits), input_bits, weight_bits)
}

/// Half of `specs` with parameters that version 2 added.
pub fn with_effects(
    specs: impl Strategy<Value = Spec>,
    input_bits: i64,
    weight_bits: i64,
) -> impl Strategy<Value = Spec> {
    (specs, proptest::option::of(effects(input_bits, weight_bits))).prop_map(|(spec, effects)| match effects {
        Some(effects) => effects.of(spec),
        None => spec,
    })
}

/// The parameters of version 1.
fn first_version(n: usize, input_bits: i64, weight_bits: i64) -> impl Strategy<Value = Spec> {
    let output_bits = prop_oneof![Just(0i64), 2i64..=16, Just(8)];
    let input_range =
        if input_bits == 0 { Just(0.0f32).boxed() } else { prop_oneof![Just(0.0f32), Just(1.3), Just(1e-41)].boxed() };
    let output_range = prop_oneof![
        Just(vec![0.0f32]),
        Just(vec![0.7f32]),
        Just(vec![1e-41f32]),
        Just((0..n).map(|n| 0.2 + 0.1 * n as f32).collect::<Vec<_>>()),
    ];
    let level = || prop_oneof![2 => Just(0.0f32), 1 => 0.01f32..0.3];
    let stage = prop_oneof![Just("analog"), Just("digital")];
    (output_bits, input_range, output_range, level(), level(), level(), stage).prop_map(
        move |(output_bits, input_range, output_range, noise_relative, noise_additive, noise_shot, stage)| Spec {
            input_bits,
            weight_bits,
            output_bits,
            input_range,
            output_range,
            noise_relative,
            noise_additive,
            noise_shot,
            bias_stage: stage.to_owned(),
            ..Spec::default()
        },
    )
}

/// The parameters that version 2 added.
#[derive(Clone, Debug)]
struct Effects {
    tile_features: i64,
    output_bound: f32,
    noise_read: f32,
    photons: f32,
    detection: &'static str,
    photon_reference: &'static str,
    input_noise: (f32, f32),
    weight_levels: f64,
}

impl Effects {
    /// `spec` with these, and without what they exclude.
    fn of(self, spec: Spec) -> Spec {
        let bounded = self.output_bound > 0.0;
        let lit = self.photons > 0.0;
        let default = Spec::default();
        let largest = lumina_kernel::quantize::levels(spec.weight_bits.max(1) as u32);
        let weight_levels = if bounded || lit || self.noise_read > 0.0 {
            (self.weight_levels * f64::from(largest)).ceil() as i64
        } else {
            0
        };
        Spec {
            tile_features: self.tile_features,
            output_bound: self.output_bound,
            output_range: if bounded { default.output_range } else { spec.output_range },
            bias_stage: if bounded { "digital".to_owned() } else { spec.bias_stage },
            noise_read: self.noise_read,
            photons: self.photons,
            noise_shot: if lit { 0.0 } else { spec.noise_shot },
            detection: if lit { self.detection.to_owned() } else { default.detection },
            photon_reference: if lit { self.photon_reference.to_owned() } else { default.photon_reference },
            input_noise_relative: self.input_noise.0,
            input_noise_additive: self.input_noise.1,
            weight_levels,
            ..spec
        }
    }
}

fn effects(input_bits: i64, weight_bits: i64) -> impl Strategy<Value = Effects> {
    let (has_dac, has_codes) = (input_bits > 0, input_bits > 0 && weight_bits > 0);
    let tile = prop_oneof![
        2 => Just(0i64),
        3 => prop::sample::select(&[1i64, 2, 3, 4, 5, 7, 8, 12, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 128, 200]),
    ];
    let of_codes = |values: &'static [f32]| prop::sample::select(if has_codes { values } else { &[0.0] });
    let of_inputs = |values: &'static [f32]| prop::sample::select(if has_dac { values } else { &[0.0] });
    (
        tile,
        of_codes(&[0.0, 0.0, 0.05, 0.6, 20.0, 1e-38]),
        of_codes(&[0.0, 0.02, 0.3]),
        of_codes(&[0.0, 0.3, 100.0]),
        prop::sample::select(&["offset", "balanced"]),
        prop::sample::select(&["full_scale", "mean"]),
        (of_inputs(&[0.0, 0.0, 0.01, 0.3, 1.0]), of_inputs(&[0.0, 0.0, 0.02, 0.3, 1.0])),
        prop_oneof![Just(0.0), 0.0..1.0],
    )
        .prop_map(
            |(
                tile_features,
                output_bound,
                noise_read,
                photons,
                detection,
                photon_reference,
                input_noise,
                weight_levels,
            )| Effects {
                tile_features,
                output_bound,
                noise_read,
                photons,
                detection,
                photon_reference,
                input_noise,
                weight_levels,
            },
        )
}

/// Bits of both sides, for a product in i32 or in f32.
pub fn any_bits() -> impl Strategy<Value = (i64, i64)> {
    let input = prop_oneof![Just(0i64), 2i64..=16, 2i64..=8];
    let weight = prop_oneof![Just(0i64), 1i64..=16, prop_oneof![Just(1i64), Just(2), Just(4), Just(8)]];
    (input, weight)
}

pub fn case(m: usize, n: usize, k: usize, special: bool) -> impl Strategy<Value = Case> {
    any_bits().prop_flat_map(move |(input_bits, weight_bits)| {
        let storage = match weight_bits {
            0 => Just(Storage::F32).boxed(),
            1 | 2 | 4 => prop_oneof![
                Just(Storage::F32),
                Just(Storage::F32WithScale),
                Just(Storage::Codes),
                Just(Storage::Packed)
            ]
            .boxed(),
            3..=8 => prop_oneof![Just(Storage::F32), Just(Storage::F32WithScale), Just(Storage::Codes)].boxed(),
            _ => prop_oneof![Just(Storage::F32), Just(Storage::F32WithScale)].boxed(),
        };
        let bias = proptest::option::of(rows(1, n, false));
        let parts = (spec(n, input_bits, weight_bits), storage, rows(m, k, special), weights(n, k), bias);
        (parts, any::<u32>(), any::<u32>()).prop_map(move |((spec, storage, x, w, bias), seed, stream)| Case {
            m,
            n,
            k,
            spec,
            storage,
            x,
            w,
            bias,
            key: NoiseKey { seed: u64::from(seed), stream: u64::from(stream) },
        })
    })
}
