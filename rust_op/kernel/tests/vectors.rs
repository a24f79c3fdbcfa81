//! The golden vectors against the scalar reference and against the kernels of every tier of this processor.

use lumina_kernel::Precision;
use lumina_kernel::backward::{Factor, Inputs, Operand, Outputs, Weight, backward};
use lumina_kernel::params::{BiasStage, Params, Spec};
use lumina_kernel::rng::{self, NoiseKey};
use lumina_kernel::saved::mask_stride;
use lumina_kernel::saved::{CodesMut, code_stride};
use lumina_kernel::{Layer, Saved, Serial, Tier, WeightSource, Weights, noise, pack, reference};
use serde_json::Value;

#[path = "../examples/vectors.rs"]
mod writer;

fn read(name: &str) -> Value {
    let text = std::fs::read_to_string(writer::folder().join(name)).expect("a golden file");
    serde_json::from_str(&text).expect("JSON")
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("{name} in {value}"))
}

fn number(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or_else(|| panic!("{name} in {value}"))
}

fn floats(text: &str) -> Vec<f32> {
    text.split_whitespace().map(|digits| f32::from_bits(u32::from_str_radix(digits, 16).expect("bits"))).collect()
}

fn decimals<T: std::str::FromStr>(text: &str) -> Vec<T> {
    text.split_whitespace().map(|digits| digits.parse().ok().expect("a decimal")).collect()
}

fn words(text: &str) -> Vec<u64> {
    text.split_whitespace().map(|digits| u64::from_str_radix(digits, 16).expect("bits")).collect()
}

#[track_caller]
fn assert_same_bits(name: &str, actual: &[f32], expected: &[f32]) {
    assert_eq!(actual.len(), expected.len(), "{name}: length");
    let different: Vec<_> = (0..actual.len()).filter(|i| actual[*i].to_bits() != expected[*i].to_bits()).collect();
    if let Some(first) = different.first() {
        let (got, wanted) = (actual[*first], expected[*first]);
        panic!("{name}: {} of {} differ, first at {first}: {got} is not {wanted}", different.len(), actual.len());
    }
}

struct Case {
    name: String,
    params: Params,
    key: NoiseKey,
    n: usize,
    k: usize,
    x: Vec<f32>,
    weight: Vec<f32>,
    scale: Option<Vec<f32>>,
    bias: Option<Vec<f32>>,
}

impl Case {
    fn read(value: &Value) -> Self {
        let params = &value["params"];
        let int = |name: &str| params[name].as_i64().expect(name);
        let float = |name: &str| floats(text(params, name))[0];
        // Parameters of version 2 are left out at their defaults.
        let has = |name: &str| params.get(name).is_some();
        let later_int = |name| if has(name) { int(name) } else { 0 };
        let later_float = |name| if has(name) { float(name) } else { 0.0 };
        let later_text = |name, default: String| if has(name) { text(params, name).to_owned() } else { default };
        let default = Spec::default();
        let spec = Spec {
            input_bits: int("input_bits"),
            weight_bits: int("weight_bits"),
            output_bits: int("output_bits"),
            input_range: float("input_range"),
            output_range: floats(text(params, "output_range")),
            noise_relative: float("noise_relative"),
            noise_additive: float("noise_additive"),
            noise_shot: float("noise_shot"),
            bias_stage: text(params, "bias_stage").to_owned(),
            tile_features: later_int("tile_features"),
            output_bound: later_float("output_bound"),
            noise_read: later_float("noise_read"),
            photons: later_float("photons"),
            detection: later_text("detection", default.detection),
            photon_reference: later_text("photon_reference", default.photon_reference),
            input_noise_relative: later_float("input_noise_relative"),
            input_noise_additive: later_float("input_noise_additive"),
            weight_levels: later_int("weight_levels"),
        };
        let optional = |name: &str| value[name].as_str().map(floats);
        Case {
            name: text(value, "name").to_owned(),
            params: Params::new(&spec).expect("allowed parameters"),
            key: NoiseKey { seed: number(value, "seed"), stream: number(value, "stream") },
            n: number(value, "n") as usize,
            k: number(value, "k") as usize,
            x: floats(text(value, "x")),
            weight: floats(text(value, "weight")),
            scale: optional("weight_scale"),
            bias: optional("bias"),
        }
    }

    fn m(&self) -> usize {
        self.x.len() / self.k
    }

    fn layer(&self, tier: Tier, source: WeightSource<'_>, scale: Option<&[f32]>) -> Layer {
        let weights = Weights::new(tier, &Serial, &self.params, (self.n, self.k), source, scale, None)
            .unwrap_or_else(|error| panic!("{}: {error}", self.name));
        Layer::new(weights, self.bias.as_deref()).expect("a layer")
    }

    fn run(&self, layer: &Layer) -> Vec<f32> {
        let mut y = vec![7.0; self.m() * self.n];
        layer.forward(&Serial, &self.x, self.key, &mut y, None).expect("a forward pass");
        y
    }
}

#[test]
fn the_files_are_what_the_example_writes() {
    for (name, content) in writer::files() {
        let committed = std::fs::read_to_string(writer::folder().join(name)).expect("a golden file");
        assert!(committed == content, "{name} differs from what `cargo run -p lumina-kernel --example vectors` writes");
    }
}

#[test]
fn generator() {
    let file = read("rng.json");
    for pair in file["mix"].as_array().expect("a list") {
        assert_eq!(rng::mix(words(pair[0].as_str().unwrap())[0]), words(pair[1].as_str().unwrap())[0]);
    }
    for block in file["blocks"].as_array().expect("a list") {
        let key = NoiseKey { seed: number(block, "seed"), stream: number(block, "stream") };
        let block_key = rng::block_key(rng::call_key(key), number(block, "row"), number(block, "block"));
        assert_eq!(block_key, words(text(block, "key"))[0]);
        let mut lanes = rng::lanes(block_key);
        let drawn: Vec<u32> = (0..4).flat_map(|_| rng::draw(&mut lanes)).collect();
        let expected: Vec<u32> =
            words(text(block, "words")).into_iter().flat_map(|word| [word as u32, (word >> 32) as u32]).collect();
        assert_eq!(drawn, expected);
    }
}

#[test]
fn gaussian() {
    let file = read("noise.json");
    for line in file["box_muller"].as_array().expect("a list") {
        let line = words(line.as_str().expect("a line"));
        let (first, second) = noise::box_muller(line[0] as u32, line[1] as u32);
        assert_eq!((u64::from(first.to_bits()), u64::from(second.to_bits())), (line[2], line[3]), "{line:x?}");
    }
    for row in file["rows"].as_array().expect("a list") {
        let key = NoiseKey { seed: number(row, "seed"), stream: number(row, "stream") };
        let mut eps = vec![0.0; number(row, "columns") as usize];
        noise::fill_row(rng::call_key(key), number(row, "row"), &mut eps);
        let expected = floats(text(row, "eps"));
        let start = number(row, "start") as usize;
        assert_same_bits(&format!("noise {key:?}"), &eps[start..start + expected.len()], &expected);
    }
}

/// The elements of the lists in `files`.
fn elements(files: [&str; 2]) -> impl Iterator<Item = Value> + use<> {
    files.map(read).into_iter().flat_map(|file| file.as_array().expect("a list").clone())
}

#[test]
fn gaussian_of_tiles_and_inputs() {
    let file = read("noise-2.json");
    for (place, row) in ["tiles", "inputs"]
        .into_iter()
        .flat_map(|place| file[place].as_array().expect("a list").iter().map(move |row| (place, row)))
    {
        let key = rng::call_key(NoiseKey { seed: number(row, "seed"), stream: number(row, "stream") });
        let mut eps = vec![0.0; number(row, "columns") as usize];
        if place == "tiles" {
            noise::fill_tile(key, number(row, "row"), number(row, "tile"), &mut eps);
        } else {
            noise::fill_row(key ^ rng::INPUT_KEY, number(row, "row"), &mut eps);
        }
        assert_same_bits(place, &eps[number(row, "start") as usize..], &floats(text(row, "eps")));
    }
}

#[test]
fn forward() {
    for value in &elements(["forward.json", "forward-2.json"]).collect::<Vec<_>>() {
        let case = Case::read(value);
        let expected = floats(text(value, "y"));
        let bits = case.params.weight_bits;
        let plain = reference::quantize_weight(bits, case.k, &case.weight, case.scale.as_deref());
        let y = reference::forward(&case.params, &plain, case.bias.as_deref(), &case.x, case.k, case.key).y;
        assert_same_bits(&case.name, &y, &expected);

        for tier in Tier::available() {
            let name = |storage| format!("{}, {storage}, {}", case.name, tier.name());
            let layer = case.layer(tier, WeightSource::F32(&case.weight), case.scale.as_deref());
            assert_same_bits(&name("f32"), &case.run(&layer), &expected);
            if bits == 0 {
                continue;
            }
            let scale = floats(text(value, "scale"));
            assert_same_bits(&name("scale"), layer.weights().scale(), &scale);
            if bits <= 8 {
                let codes: Vec<i8> = decimals(text(value, "codes"));
                let layer = case.layer(tier, WeightSource::Codes(&codes), Some(&scale));
                assert_same_bits(&name("codes"), &case.run(&layer), &expected);
            }
            if pack::PACKED_BITS.contains(&bits) {
                let packed: Vec<u8> = decimals(text(value, "packed"));
                let layer = case.layer(tier, WeightSource::Packed(&packed), Some(&scale));
                assert_same_bits(&name("packed"), &case.run(&layer), &expected);
            }
        }
    }
}

/// Memory for codes that a kernel writes: rows of [`code_stride`] in the width for `bits`; none if `bits` is 0.
enum Codes {
    None,
    I8(Vec<i8>),
    I16(Vec<i16>),
}

impl Codes {
    fn new(bits: u32, rows: usize, k: usize) -> Self {
        let length = rows * code_stride(k);
        match bits {
            0 => Codes::None,
            1..=8 => Codes::I8(vec![99; length]),
            _ => Codes::I16(vec![99; length]),
        }
    }

    fn target(&mut self) -> Option<CodesMut<'_>> {
        match self {
            Codes::None => None,
            Codes::I8(codes) => Some(CodesMut::I8(codes)),
            Codes::I16(codes) => Some(CodesMut::I16(codes)),
        }
    }

    fn operand<'a>(&'a self, analog: &'a [f32]) -> Operand<'a> {
        match self {
            Codes::None => Operand::F32(analog),
            Codes::I8(codes) => Operand::I8(codes),
            Codes::I16(codes) => Operand::I16(codes),
        }
    }
}

#[test]
fn gradient() {
    for value in &elements(["backward.json", "backward-2.json"]).collect::<Vec<_>>() {
        let case = Case::read(value);
        let (m, n, k) = (case.m(), case.n, case.k);
        let (dy, dx, dw, db) = (
            floats(text(value, "dy")),
            floats(text(value, "dx")),
            floats(text(value, "dw")),
            floats(text(value, "db")),
        );
        let plain = reference::quantize_weight(case.params.weight_bits, k, &case.weight, case.scale.as_deref());
        let saved = reference::forward(&case.params, &plain, case.bias.as_deref(), &case.x, k, case.key);
        let precision = value["precision"].as_str().unwrap_or("highest");
        let precision = Precision::from_name(precision).expect("a precision");
        let gradients = reference::backward(&case.params, &plain, &saved, &dy, k, precision);
        assert_same_bits(&format!("{}: dX of the reference", case.name), &gradients.x, &dx);
        assert_same_bits(&format!("{}: dW of the reference", case.name), &gradients.weight, &dw);
        assert_same_bits(&format!("{}: db of the reference", case.name), &gradients.bias, &db);

        for tier in Tier::available() {
            let name = |what| format!("{}: {what}, {}", case.name, tier.name());
            let mut x_codes = Codes::new(case.params.input_bits, m, k);
            let shape = (n, k);
            let source = WeightSource::F32(&case.weight);
            let scale = case.scale.as_deref();
            let weights = Weights::new(tier, &Serial, &case.params, shape, source, scale, None)
                .unwrap_or_else(|error| panic!("{}: {error}", case.name));
            let w_scale = weights.scale().to_vec();
            let layer = Layer::new(weights, case.bias.as_deref()).expect("a layer");

            let tiles = case.params.tiles(k).len();
            let dac_saturates = case.params.input_range.is_some();
            let (mut x_step, mut y) = (vec![7.0; m], vec![7.0; m * n]);
            let mut adc_mask = case.params.adc_can_saturate().then(|| vec![0xFF; m * tiles * mask_stride(n)]);
            let mut dac_mask = dac_saturates.then(|| vec![0xFF; m * mask_stride(k)]);
            let to_save = Saved {
                x_codes: x_codes.target(),
                x_step: Some(&mut x_step),
                adc_mask: adc_mask.as_deref_mut(),
                dac_mask: dac_mask.as_deref_mut(),
            };
            layer.forward(&Serial, &case.x, case.key, &mut y, Some(to_save)).expect("a forward pass");
            assert_same_bits(&name("y"), &y, &saved.y);
            assert_same_bits(&name("s_x"), &x_step, &saved.x_step);

            let inputs = Inputs {
                shape: (m, n, k),
                dy: &dy,
                x: Some(Factor { values: x_codes.operand(&case.x), steps: &x_step }),
                weight: Some(Weight { values: &case.weight, scale: &w_scale }),
                adc_mask: adc_mask.as_deref(),
                dac_mask: dac_mask.as_deref(),
            };
            let (mut got_x, mut got_w, mut got_b) = (vec![7.0; m * k], vec![7.0; n * k], vec![7.0; n]);
            let outputs = Outputs { x: Some(&mut got_x), weight: Some(&mut got_w), bias: Some(&mut got_b) };
            backward(tier, &Serial, &case.params, precision, &inputs, outputs).expect("a backward pass");
            assert_same_bits(&name("dX"), &got_x, &dx);
            assert_same_bits(&name("dW"), &got_w, &dw);
            assert_same_bits(&name("db"), &got_b, &db);
        }
    }
}

#[test]
fn both_bias_stages_are_there() {
    let cases: Vec<Case> = read("backward.json").as_array().expect("a list").iter().map(Case::read).collect();
    for stage in [BiasStage::Analog, BiasStage::Digital] {
        assert!(cases.iter().any(|case| case.params.bias_stage == stage && case.params.adc_can_saturate()));
    }
}
