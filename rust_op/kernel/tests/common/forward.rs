//! A forward pass: a case, the result of the reference, and that of a tier.

use lumina_kernel::saved::{CodesMut, Saved, code_stride, mask_bits, mask_stride};
use lumina_kernel::{Executor, Layer, NoiseKey, Params, Serial, Spec, Tier, WeightSource, Weights, pack, reference};

use super::memory::Place;
use super::{assert_same, bits};

/// The form in which weights reach the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    F32,
    F32WithScale,
    Codes,
    Packed,
}

#[derive(Clone, Debug)]
pub struct Case {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub spec: Spec,
    pub storage: Storage,
    pub x: Vec<f32>,
    pub w: Vec<f32>,
    pub bias: Option<Vec<f32>>,
    pub key: NoiseKey,
}

/// Everything that a forward pass writes.
#[derive(Debug, Default, PartialEq)]
pub struct Outcome {
    pub y: Vec<u32>,
    pub x_step: Vec<u32>,
    pub x_codes: Vec<i32>,
    pub w_codes: Vec<i32>,
    pub w_scale: Vec<u32>,
    pub adc: Vec<bool>,
    pub dac: Vec<bool>,
}

impl Case {
    pub fn params(&self) -> Params {
        Params::new(&self.spec).expect("a valid case")
    }

    /// The weight as the reference sees it.
    pub fn reference_weight(&self) -> reference::Weight {
        let bits = self.params().weight_bits;
        match self.storage {
            Storage::F32WithScale if bits > 0 => {
                let scale: Vec<f32> = (0..self.n).map(|n| 0.01 + n as f32 * 0.003).collect();
                reference::quantize_weight(bits, self.k, &self.w, Some(&scale))
            }
            _ => reference::quantize_weight(bits, self.k, &self.w, None),
        }
    }

    pub fn expected(&self) -> (Outcome, reference::Forward) {
        let params = self.params();
        let weight = self.reference_weight();
        let forward = reference::forward(&params, &weight, self.bias.as_deref(), &self.x, self.k, self.key);
        let codes = |values: &[f32], bits: u32| {
            if bits == 0 { Vec::new() } else { values.iter().map(|c| *c as i32).collect() }
        };
        let outcome = Outcome {
            y: bits(&forward.y),
            x_step: bits(&forward.x_step),
            x_codes: codes(&forward.x_values, params.input_bits),
            w_codes: codes(&weight.values, params.weight_bits),
            w_scale: bits(&weight.scale),
            adc: if params.adc_can_saturate() { forward.adc_saturated.clone() } else { Vec::new() },
            dac: if params.input_range.is_some() { forward.dac_saturated.clone() } else { Vec::new() },
        };
        (outcome, forward)
    }

    pub fn run(&self, tier: Tier, executor: &dyn Executor) -> Outcome {
        self.run_at(Place::Heap, tier, executor)
    }

    /// The same, with everything that is read and written at `place`.
    pub fn run_at(&self, place: Place, tier: Tier, executor: &dyn Executor) -> Outcome {
        let params = self.params();
        let (m, n, k) = (self.m, self.n, self.k);
        let (wb, xb) = (params.weight_bits, params.input_code_bits());
        let tiles = params.tiles(k).len();
        let mut w8 = place.filled(77i8, if (1..=8).contains(&wb) { n * code_stride(k) } else { 0 });
        let mut w16 = place.filled(77i16, if wb > 8 { n * code_stride(k) } else { 0 });
        let mut x8 = place.filled(77i8, if (1..=8).contains(&xb) { m * code_stride(k) } else { 0 });
        let mut x16 = place.filled(77i16, if xb > 8 { m * code_stride(k) } else { 0 });

        let reference = self.reference_weight();
        let codes: Vec<i8> = reference.values.iter().map(|c| *c as i8).collect();
        let (codes, w, scale) = (place.put(&codes), place.put(&self.w), place.put(&reference.scale));
        let packed;
        let given = self.storage != Storage::F32 && wb > 0;
        let source = match self.storage {
            Storage::F32 | Storage::F32WithScale => WeightSource::F32(&w),
            Storage::Codes => WeightSource::Codes(&codes),
            Storage::Packed => {
                packed = place.put(&pack::pack_codes(wb, k, &codes));
                WeightSource::Packed(&packed)
            }
        };
        let w_codes = match wb {
            0 => None,
            1..=8 => Some(CodesMut::I8(&mut w8)),
            _ => Some(CodesMut::I16(&mut w16)),
        };
        let scale = given.then_some(&scale[..]);
        let weights = Weights::new(tier, executor, &params, (n, k), source, scale, w_codes).expect("valid weights");
        let w_scale = bits(weights.scale());
        let layer = Layer::new(weights, self.bias.as_deref()).expect("a valid layer");

        let (x, mut y) = (place.put(&self.x), place.filled(7.0f32, m * n));
        layer.forward(executor, &x, self.key, &mut y, None).expect("a valid call");
        let without_saving = bits(&y);

        let mut x_step = place.filled(7.0, m);
        let mut adc = place.filled(0xAAu8, m * tiles * mask_stride(n));
        let mut dac = place.filled(0xAAu8, m * mask_stride(k));
        let (adc_wanted, dac_wanted) = (params.adc_can_saturate(), params.input_range.is_some());
        let saved = Saved {
            x_codes: match xb {
                0 => None,
                1..=8 => Some(CodesMut::I8(&mut x8)),
                _ => Some(CodesMut::I16(&mut x16)),
            },
            x_step: Some(&mut x_step),
            adc_mask: adc_wanted.then_some(&mut adc[..]),
            dac_mask: dac_wanted.then_some(&mut dac[..]),
        };
        layer.forward(executor, &x, self.key, &mut y, Some(saved)).expect("a valid call");
        assert_eq!(without_saving, bits(&y), "saving changes nothing");

        let unpad = |rows8: &[i8], rows16: &[i16]| -> Vec<i32> {
            let stride = code_stride(k);
            let mut out = Vec::new();
            for row in rows8.chunks(stride) {
                out.extend(row[..k].iter().map(|c| i32::from(*c)));
                assert!(row[k..].iter().all(|c| *c == 0), "padding is 0");
            }
            for row in rows16.chunks(stride) {
                out.extend(row[..k].iter().map(|c| i32::from(*c)));
                assert!(row[k..].iter().all(|c| *c == 0), "padding is 0");
            }
            out
        };
        let unmask = |mask: &[u8], columns: usize, wanted: bool| -> Vec<bool> {
            if wanted { mask_bits(mask, columns).collect() } else { Vec::new() }
        };
        Outcome {
            y: bits(&y),
            x_step: bits(&x_step),
            x_codes: unpad(&x8, &x16),
            w_codes: unpad(&w8, &w16),
            w_scale,
            adc: unmask(&adc, n, adc_wanted),
            dac: unmask(&dac, k, dac_wanted),
        }
    }

    /// Asserts that every tier under every executor equals the reference.
    pub fn check(&self, executors: &[&dyn Executor]) {
        self.check_tiers(&Tier::available(), executors);
    }

    /// The same for some tiers.
    pub fn check_tiers(&self, tiers: &[Tier], executors: &[&dyn Executor]) {
        let (expected, _) = self.expected();
        for tier in tiers {
            for executor in executors {
                self.assert_same(*tier, &self.run(*tier, *executor), &expected);
            }
        }
    }

    /// Asserts that the result of a tier is that of the reference.
    pub fn assert_same(&self, tier: Tier, got: &Outcome, expected: &Outcome) {
        let place = || format!("{} {}x{}x{} {:?} {:?}", tier.name(), self.m, self.k, self.n, self.storage, self.spec);
        if got.y != expected.y {
            let bad = got.y.iter().zip(&expected.y).position(|(a, b)| a != b).expect("they differ");
            panic!(
                "y[{}, {}] = {:e} ({:#x}), reference {:e} ({:#x}): {}",
                bad / self.n,
                bad % self.n,
                f32::from_bits(got.y[bad]),
                got.y[bad],
                f32::from_bits(expected.y[bad]),
                expected.y[bad],
                place()
            );
        }
        assert_same("x_step", &got.x_step, &expected.x_step, &place);
        assert_same("x_codes", &got.x_codes, &expected.x_codes, &place);
        assert_same("w_codes", &got.w_codes, &expected.w_codes, &place);
        assert_same("w_scale", &got.w_scale, &expected.w_scale, &place);
        assert_same("adc mask", &got.adc, &expected.adc, &place);
        assert_same("dac mask", &got.dac, &expected.dac, &place);
    }
}
