//! Writes the golden vectors, `tests/vectors/*.json`, from the scalar reference:
//! `cargo run -p lumina-kernel --example vectors`. The format is described in `tests/vectors/README.md`.

use std::path::PathBuf;

use lumina_kernel::Precision;
use lumina_kernel::params::{Params, Spec};
use lumina_kernel::quantize::levels;
use lumina_kernel::reference::{self, Weight};
use lumina_kernel::rng::{self, NoiseKey};
use lumina_kernel::{noise, pack};
use serde_json::{Value, json};

/// Where the files are.
pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors")
}

/// Floats as the hexadecimal digits of their bits, separated by spaces.
pub fn hex(values: &[f32]) -> String {
    values.iter().map(|value| format!("{:08x}", value.to_bits())).collect::<Vec<_>>().join(" ")
}

fn hex_codes(values: impl Iterator<Item = i64>) -> String {
    values.map(|value| value.to_string()).collect::<Vec<_>>().join(" ")
}

/// Uniform numbers of a fixed sequence; any sequence would do.
struct Source(u64);

impl Source {
    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        rng::mix(self.0)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.word() % end as u64) as usize
    }

    fn pick<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }

    /// In [-1, 1).
    fn float(&mut self) -> f32 {
        (self.word() as i32 >> 8) as f32 / 8_388_608.0
    }

    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }
}

#[derive(Clone)]
struct Case {
    name: String,
    spec: Spec,
    k: usize,
    x: Vec<f32>,
    weight: Vec<f32>,
    scale: Option<Vec<f32>>,
    bias: Option<Vec<f32>>,
    key: NoiseKey,
}

impl Case {
    fn new(name: impl Into<String>, spec: Spec, k: usize, x: Vec<f32>, weight: Vec<f32>) -> Self {
        Case { name: name.into(), spec, k, x, weight, scale: None, bias: None, key: NoiseKey { seed: 1, stream: 2 } }
    }

    fn n(&self) -> usize {
        self.weight.len() / self.k
    }

    fn quantized(&self) -> (Params, Weight) {
        let params = Params::new(&self.spec).unwrap_or_else(|error| panic!("{}: {error}", self.name));
        params.check_shape(self.n(), self.k).unwrap_or_else(|error| panic!("{}: {error}", self.name));
        let weight = reference::quantize_weight(params.weight_bits, self.k, &self.weight, self.scale.as_deref());
        (params, weight)
    }

    fn forward(&self) -> reference::Forward {
        let (params, weight) = self.quantized();
        reference::forward(&params, &weight, self.bias.as_deref(), &self.x, self.k, self.key)
    }

    /// Whether one of the operands of a gradient is codes of up to 8 bits.
    fn has_codes(&self) -> bool {
        [self.spec.input_bits, self.spec.weight_bits].iter().any(|bits| (1..=8).contains(bits))
    }

    fn common(&self) -> Value {
        json!({
            "name": self.name,
            "params": parameters(&self.spec),
            "seed": self.key.seed,
            "stream": self.key.stream,
            "m": self.x.len() / self.k,
            "n": self.n(),
            "k": self.k,
            "x": hex(&self.x),
            "weight": hex(&self.weight),
            "weight_scale": self.scale.as_deref().map(hex),
            "bias": self.bias.as_deref().map(hex),
        })
    }

    fn forward_json(&self) -> Value {
        let (_, weight) = self.quantized();
        let mut value = self.common();
        value["y"] = json!(hex(&self.forward().y));
        let bits = self.spec.weight_bits as u32;
        if bits > 0 {
            value["codes"] = json!(hex_codes(weight.values.iter().map(|code| *code as i64)));
            value["scale"] = json!(hex(&weight.scale));
        }
        if pack::PACKED_BITS.contains(&bits) {
            let codes: Vec<i8> = weight.values.iter().map(|code| *code as i8).collect();
            value["packed"] = json!(hex_codes(pack::pack_codes(bits, self.k, &codes).into_iter().map(i64::from)));
        }
        value
    }

    fn backward_json(&self, source: &mut Source, precision: &str) -> Value {
        let (params, weight) = self.quantized();
        let dy = source.floats(self.x.len() / self.k * self.n());
        let exactly = Precision::from_name(precision).expect("a precision");
        let gradients = reference::backward(&params, &weight, &self.forward(), &dy, self.k, exactly);
        let mut value = self.common();
        if exactly != Precision::Highest {
            value["precision"] = json!(precision);
        }
        value["dy"] = json!(hex(&dy));
        value["dx"] = json!(hex(&gradients.x));
        value["dw"] = json!(hex(&gradients.weight));
        value["db"] = json!(hex(&gradients.bias));
        value
    }
}

/// The parameters of a case; those of version 2 only where they are not at their defaults.
fn parameters(spec: &Spec) -> Value {
    let mut params = json!({
        "input_bits": spec.input_bits,
        "weight_bits": spec.weight_bits,
        "output_bits": spec.output_bits,
        "input_range": hex(&[spec.input_range]),
        "output_range": hex(&spec.output_range),
        "noise_relative": hex(&[spec.noise_relative]),
        "noise_additive": hex(&[spec.noise_additive]),
        "noise_shot": hex(&[spec.noise_shot]),
        "bias_stage": spec.bias_stage,
    });
    let defaults = effects(&Spec::default());
    for ((name, value), (_, default)) in effects(spec).into_iter().zip(defaults) {
        if value != default {
            params[name] = value;
        }
    }
    params
}

/// The parameters of version 2.
fn effects(spec: &Spec) -> [(&'static str, Value); 9] {
    [
        ("tile_features", json!(spec.tile_features)),
        ("output_bound", json!(hex(&[spec.output_bound]))),
        ("noise_read", json!(hex(&[spec.noise_read]))),
        ("photons", json!(hex(&[spec.photons]))),
        ("detection", json!(spec.detection)),
        ("photon_reference", json!(spec.photon_reference)),
        ("input_noise_relative", json!(hex(&[spec.input_noise_relative]))),
        ("input_noise_additive", json!(hex(&[spec.input_noise_additive]))),
        ("weight_levels", json!(spec.weight_levels)),
    ]
}

/// Sums of several blocks, the last of one term or of a few, whose terms differ in size.
fn blocks(source: &mut Source) -> Vec<Case> {
    let sizes = [(513, 2, 3), (2, 1025, 3), (260, 3, 2), (3, 530, 2)];
    let cases = sizes.iter().zip([(8, 8), (8, 4), (3, 1), (5, 2)]).map(|(&(m, n, k), (input_bits, weight_bits))| {
        let spec = Spec { input_bits, weight_bits, output_bits: 0, ..Spec::default() };
        let name = format!("blocks {m} x {k} x {n}, {input_bits} and {weight_bits} bits");
        Case::new(name, spec, k, source.floats(m * k), source.floats(n * k))
    });
    cases.collect()
}

const INPUT_BITS: &[i64] = &[0, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16];
const WEIGHT_BITS: &[i64] = &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16];
const OUTPUT_BITS: &[i64] = &[0, 2, 3, 4, 6, 8, 10, 12, 16];

/// Mixed cases: each value of each bit width occurs with many of the other parameters.
fn mixed(source: &mut Source, count: usize) -> Vec<Case> {
    (0..count)
        .map(|index| {
            let (m, n, k) = (source.pick(&[1, 1, 2, 3]), source.pick(&[1, 2, 3, 5, 9]), source.pick(&[1, 2, 5, 8, 11]));
            let input_bits = INPUT_BITS[index % INPUT_BITS.len()];
            let weight_bits = WEIGHT_BITS[index % WEIGHT_BITS.len()];
            let output_bits = OUTPUT_BITS[index % OUTPUT_BITS.len()];
            let laws = index % 8;
            let level = |law: usize, level: f32| if laws >> law & 1 == 1 { level } else { 0.0 };
            let spec = Spec {
                input_bits,
                weight_bits,
                output_bits,
                input_range: if input_bits > 0 { source.pick(&[0.0, 0.75, 1.5]) } else { 0.0 },
                output_range: match source.below(3) {
                    0 => vec![0.0],
                    1 => vec![0.8],
                    _ => (0..n).map(|n| 0.25 + 0.5 * n as f32).collect(),
                },
                noise_relative: level(0, 0.1),
                noise_additive: level(1, 0.05),
                noise_shot: level(2, 0.07),
                bias_stage: source.pick(&["analog", "digital"]).to_owned(),
                ..Spec::default()
            };
            let mut case = Case::new(format!("mixed {index}"), spec, k, source.floats(m * k), source.floats(n * k));
            if weight_bits > 0 {
                case.scale = match source.below(4) {
                    0 => Some(vec![0.013]),
                    1 => Some((0..n).map(|n| 0.01 + 0.003 * n as f32).collect()),
                    _ => None,
                };
            }
            case.bias = (source.below(4) > 0).then(|| source.floats(n));
            case.key = NoiseKey { seed: source.word() >> 1, stream: source.word() >> source.pick(&[1, 32, 60]) };
            case
        })
        .collect()
}

fn spec(input_bits: i64, weight_bits: i64, output_bits: i64) -> Spec {
    Spec { input_bits, weight_bits, output_bits, ..Spec::default() }
}

/// Rows of 4 inputs at the corners of the contract.
fn special_rows() -> Vec<f32> {
    let (nan, inf, max, tiny) = (f32::NAN, f32::INFINITY, f32::MAX, f32::from_bits(1));
    [
        [0.5, -0.25, 1.0, 0.75],
        [0.0, 0.0, 0.0, 0.0],
        [-0.0, -0.0, -0.0, -0.0],
        [nan, 0.5, 0.25, 1.0],
        [1.0, inf, 0.5, 0.25],
        [1.0, 0.5, -inf, 0.25],
        [inf, -inf, nan, 0.0],
        [tiny, -tiny, 3.0 * tiny, 0.0],
        [1e-38, -2e-38, 1e-40, 5e-39],
        [max, -max, 0.5 * max, 1.0],
        [1e30, 1e-30, -1e30, 1.0],
    ]
    .concat()
}

/// [`special_rows`] and weights at the corners of the contract.
fn special(source: &mut Source) -> Vec<Case> {
    let tiny = f32::from_bits(1);
    let (n, k) = (3, 4);
    let rows = special_rows();
    let weight = source.floats(n * k);
    let bias = source.floats(n);
    let mut cases = Vec::new();
    let mut add = |name: &str, spec: Spec| {
        let mut case = Case::new(format!("special rows, {name}"), spec, k, rows.clone(), weight.clone());
        case.bias = Some(bias.clone());
        cases.push(case);
    };
    for (name, bits) in [
        ("8 8 8", (8, 8, 8)),
        ("12 4 8", (12, 4, 8)),
        ("analog", (0, 0, 0)),
        ("no DAC", (0, 8, 6)),
        ("no ADC", (8, 0, 0)),
    ] {
        let dynamic = spec(bits.0, bits.1, bits.2);
        let input_range = if bits.0 > 0 { 1.0 } else { 0.0 };
        let fixed = Spec { input_range, output_range: vec![2.0], ..dynamic.clone() };
        for (mode, spec) in [("dynamic", dynamic), ("static", fixed)] {
            add(&format!("{name} {mode}"), spec.clone());
            add(&format!("{name} {mode}, additive"), Spec { noise_additive: 0.1, ..spec.clone() });
            add(
                &format!("{name} {mode}, all laws, digital bias"),
                Spec {
                    noise_relative: 0.1,
                    noise_additive: 0.05,
                    noise_shot: 0.2,
                    bias_stage: "digital".to_owned(),
                    ..spec
                },
            );
        }
    }
    add("relative alone", Spec { noise_relative: 0.1, ..spec(0, 0, 0) });
    add("shot alone", Spec { noise_shot: 0.1, ..spec(8, 8, 0) });
    let tiny_ranges = Spec { input_range: 1e-38, output_range: vec![1e-38, 1e-45, 3.0], ..spec(8, 8, 8) };
    add("tiny ranges", tiny_ranges);
    add("tiny input range", Spec { input_range: 1e-45, ..spec(8, 8, 8) });

    let ties: Vec<f32> = (-9..9).map(|step| 0.5 * step as f32).collect();
    for (name, source) in [("input", spec(4, 0, 0)), ("output", spec(0, 0, 4))] {
        let (range, output_range) = if name == "input" { (7.0, 0.0) } else { (0.0, 7.0) };
        let spec = Spec { input_range: range, output_range: vec![output_range], ..source };
        cases.push(Case::new(format!("halves at the {name}"), spec, 1, ties.clone(), vec![1.0, -1.0]));
    }
    let mut halves = Case::new("halves in the weight", spec(0, 4, 0), 18, vec![1.0; 18], ties);
    halves.scale = Some(vec![1.0]);
    cases.push(halves);

    for bits in [1, 2, 4, 8, 16] {
        let channels = [[0.0, -0.0, 0.0], [tiny, -tiny, 2.0 * tiny], [1e-39, 2e-38, -1e-40], [1.0, -1.0, 0.5]].concat();
        let mut case = Case::new(
            format!("zero and tiny channels, {bits} bits"),
            spec(8, bits, 0),
            3,
            vec![1.0, 0.5, -1.0],
            channels,
        );
        cases.push(case.clone());
        case.name = format!("zero and tiny scales, {bits} bits");
        case.scale = Some(vec![0.0, tiny, 1e-40, 0.3]);
        cases.push(case);
    }
    let long = 300;
    for bits in [2, 8] {
        let one = |sign: f32| vec![sign; long];
        let corner = Case::new(
            format!("all codes at the end, {bits} bits"),
            spec(bits, bits, 16),
            long,
            [one(1.0), one(-1.0)].concat(),
            one(1.0),
        );
        cases.push(corner);
    }
    for bits in [0, 12] {
        let rounding = Case::new(
            format!("long sum in f32, {bits} bits"),
            spec(bits, bits, 0),
            long,
            source.floats(long),
            source.floats(2 * long),
        );
        cases.push(rounding);
    }
    let mut wide = Case::new("wide", Spec { noise_additive: 0.02, ..spec(8, 8, 8) }, 1, vec![0.5], source.floats(1030));
    wide.weight.iter_mut().for_each(|value| *value = (*value * 16.0).round());
    cases.push(wide);
    let empty = Case::new("no rows", Spec { noise_additive: 0.02, ..spec(8, 8, 8) }, 4, Vec::new(), source.floats(12));
    cases.push(empty);
    cases
}

/// Mixed cases of version 2: each of its parameters occurs with many of the others.
fn mixed_effects(source: &mut Source, count: usize) -> Vec<Case> {
    let mut cases = mixed(source, count);
    for (index, case) in cases.iter_mut().enumerate() {
        let k = source.pick(&[1, 4, 7, 12]);
        let (m, n) = (source.pick(&[1, 2, 3]), case.n());
        (case.k, case.x, case.weight) = (k, source.floats(m * k), source.floats(n * k));
        case.name = format!("effects {index}");
        let spec = &mut case.spec;
        spec.tile_features = source.pick(&[0, 1, 2, 3, 4, 5, k as i64, 131_072]);
        if spec.input_bits > 0 {
            spec.input_noise_relative = source.pick(&[0.0, 0.03, 0.5]);
            spec.input_noise_additive = source.pick(&[0.0, 0.05, 0.4]);
        }
        if spec.input_bits == 0 || spec.weight_bits == 0 {
            continue;
        }
        spec.noise_read = source.pick(&[0.0, 0.02]);
        spec.photons = source.pick(&[0.0, 0.5, 30.0]);
        if spec.photons > 0.0 {
            spec.noise_shot = 0.0;
            spec.detection = source.pick(&["offset", "balanced"]).to_owned();
            spec.photon_reference = source.pick(&["full_scale", "mean"]).to_owned();
        }
        if source.below(3) == 0 {
            spec.output_bound = source.pick(&[0.5, 3.0]);
            spec.output_range = vec![0.0];
            spec.bias_stage = "digital".to_owned();
        }
        let has_reader = spec.noise_read > 0.0 || spec.photons > 0.0 || spec.output_bound > 0.0;
        if has_reader && source.below(2) == 0 {
            spec.weight_levels = 1 + source.below(levels(spec.weight_bits as u32) as usize) as i64;
        }
    }
    cases
}

/// Rows at the corners of version 2, and long rows.
fn special_effects(source: &mut Source) -> Vec<Case> {
    let (n, k) = (3, 4);
    let (weight, bias) = (source.floats(n * k), source.floats(n));
    let mut cases = Vec::new();
    let mut add = |name: String, spec: Spec| {
        let mut case = Case::new(format!("special rows in tiles, {name}"), spec, k, special_rows(), weight.clone());
        case.bias = Some(bias.clone());
        cases.push(case);
    };
    for bits in [(8, 8, 8), (12, 4, 8), (8, 8, 0), (0, 0, 8)] {
        let name = format!("{} {} {}", bits.0, bits.1, bits.2);
        let dynamic = Spec { tile_features: 3, noise_additive: 0.05, ..spec(bits.0, bits.1, bits.2) };
        let input_range = if bits.0 > 0 { 1.0 } else { 0.0 };
        let fixed = Spec { input_range, output_range: vec![1.0], ..dynamic.clone() };
        add(format!("{name} dynamic"), dynamic.clone());
        add(format!("{name} static"), fixed.clone());
        if bits.0 == 0 {
            continue;
        }
        let noisy = |spec: Spec| Spec {
            noise_read: 0.03,
            photons: 2.0,
            input_noise_relative: 0.1,
            input_noise_additive: 0.1,
            ..spec
        };
        let balanced =
            Spec { detection: "balanced".to_owned(), photon_reference: "mean".to_owned(), ..noisy(fixed.clone()) };
        let bound = Spec { output_bound: 1.5, bias_stage: "digital".to_owned(), ..dynamic.clone() };
        add(format!("{name} dynamic, noisy"), noisy(dynamic));
        add(format!("{name} static, noisy"), noisy(fixed));
        add(format!("{name} static, balanced"), balanced);
        add(format!("{name} bound, noisy"), noisy(bound.clone()));
        add(format!("{name} far bound"), Spec { output_bound: 1e37, ..bound });
    }
    let noisy = Spec { noise_additive: 0.02, input_noise_additive: 0.1, ..spec(8, 8, 8) };
    let wide = Spec { tile_features: 1, ..noisy.clone() };
    cases.push(Case::new("wide in tiles", wide, 2, vec![0.5, -1.0], source.floats(2 * 1030)));
    cases.push(Case::new("long with noise on inputs", noisy, 1030, source.floats(1030), source.floats(1030)));
    let many = Spec { tile_features: 1, output_range: vec![0.5], ..spec(0, 0, 16) };
    let weight = (0..1030).map(|_| 0.5 + 0.5 * source.float().abs()).collect();
    cases.push(Case::new("a sum of codes beyond 24 bits", many, 1030, vec![1.0; 1030], weight));
    cases
}

/// Sums of several blocks in the gradient of tiles that saturate.
fn blocks_of_tiles(source: &mut Source) -> Vec<Case> {
    let mut cases = blocks(source);
    for case in &mut cases {
        case.spec = Spec { tile_features: 2, output_bits: 8, output_range: vec![0.3], ..case.spec.clone() };
        case.name += ", in tiles";
    }
    cases
}

/// Normals of outputs in tiles and of inputs.
fn noise_of_effects_json() -> Value {
    let keys = [(0, 0, 0, 1, 1100, 1000), (7, 9, 3, 1, 40, 0), (7, 9, 3, 65_535, 40, 0), (7, 9, 3, 0, 40, 0)];
    let row = |(seed, stream, row, tile, columns, start): (u64, u64, u64, Option<u64>, usize, usize)| {
        let (key, mut eps) = (rng::call_key(NoiseKey { seed, stream }), vec![0.0; columns]);
        match tile {
            Some(tile) => noise::fill_tile(key, row, tile, &mut eps),
            None => noise::fill_row(key ^ rng::INPUT_KEY, row, &mut eps),
        }
        let mut value = json!({
            "seed": seed, "stream": stream, "row": row, "columns": columns, "start": start, "eps": hex(&eps[start..]),
        });
        if let Some(tile) = tile {
            value["tile"] = json!(tile);
        }
        value
    };
    let of_tiles =
        keys.map(|(seed, stream, m, tile, columns, start)| row((seed, stream, m, Some(tile), columns, start)));
    let of_inputs = [(0, 0, 0, None, 1100, 1000), (7, 9, 3, None, 40, 0)].map(row);
    json!({ "tiles": of_tiles, "inputs": of_inputs })
}

/// Names and contents of the files of version 2.
fn files_of_effects() -> Vec<(&'static str, String)> {
    let mut source = Source(1000);
    let mut forward = mixed_effects(&mut source, 132);
    forward.extend(special_effects(&mut source));
    let gradient = mixed_effects(&mut source, 44)
        .into_iter()
        .chain(special_effects(&mut source).into_iter().filter(|case| case.k < 100 && case.name.contains("8 8 8")));
    let gradient: Vec<Case> = gradient.collect();
    let mut backward: Vec<Value> = gradient.iter().map(|case| case.backward_json(&mut source, "highest")).collect();
    let gradient: Vec<Case> =
        gradient.into_iter().filter(Case::has_codes).chain(blocks_of_tiles(&mut source)).collect();
    for precision in ["high", "8 bits"] {
        backward.extend(gradient.iter().map(|case| case.backward_json(&mut source, precision)));
    }
    let forward: Vec<Value> = forward.iter().map(Case::forward_json).collect();
    vec![
        ("noise-2.json", object_of_lines(&noise_of_effects_json())),
        ("forward-2.json", lines(&forward) + "\n"),
        ("backward-2.json", lines(&backward) + "\n"),
    ]
}

fn rng_json() -> Value {
    let hex64 = |words: &[u64]| words.iter().map(|word| format!("{word:016x}")).collect::<Vec<_>>().join(" ");
    let starts = [0, 1, 2, 0x9E37_79B9_7F4A_7C15, 0x0123_4567_89AB_CDEF, u64::MAX >> 1, u64::MAX];
    let mut source = Source(100);
    let keys: Vec<Value> = (0..6)
        .map(|index| {
            let key = if index == 0 {
                NoiseKey::default()
            } else {
                NoiseKey { seed: source.word() >> 1, stream: source.word() >> 1 }
            };
            let (row, block) = (source.word() >> 40, source.word() >> 54);
            let block_key = rng::block_key(rng::call_key(key), row, block);
            let mut lanes = rng::lanes(block_key);
            let draws: Vec<u32> = (0..4).flat_map(|_| rng::draw(&mut lanes)).collect();
            let words: Vec<u64> = draws.chunks_exact(2).map(|p| u64::from(p[0]) | u64::from(p[1]) << 32).collect();
            json!({
                "seed": key.seed, "stream": key.stream, "row": row, "block": block,
                "key": hex64(&[block_key]), "words": hex64(&words),
            })
        })
        .collect();
    json!({
        "mix": starts.iter().map(|start| json!([hex64(&[*start]), hex64(&[rng::mix(*start)])])).collect::<Vec<_>>(),
        "blocks": keys,
    })
}

fn noise_json() -> Value {
    let corners =
        [0u32, 1, 2, 3, 0x3FFF_FFFF, 0x4000_0000, 0x7FFF_FFFF, 0x8000_0000, 0xBFFF_FFFF, 0xC000_0000, u32::MAX];
    let pairs: Vec<Value> = corners
        .iter()
        .flat_map(|a| corners.iter().map(move |b| (*a, *b)))
        .map(|(a, b)| {
            let (first, second) = noise::box_muller(a, b);
            json!(format!("{a:08x} {b:08x} {}", hex(&[first, second])))
        })
        .collect();
    let top = u64::MAX >> 1;
    // (seed, stream, row, columns, first column kept)
    let rows = [
        (0, 0, 0, 1100, 0),
        (0, 0, 1, 40, 0),
        (0, 1, 0, 40, 0),
        (1, 0, 0, 40, 0),
        (1, 0, 7, 31, 0),
        (42, 7, 3, 17, 0),
        (42, 7, 3, 1, 0),
        (top, top, 2, 33, 0),
        (top, 0, 0, 3100, 2040),
        (12_345, 1 << 40, 5000, 64, 0),
    ];
    let rows: Vec<Value> = rows
        .iter()
        .map(|&(seed, stream, row, columns, start)| {
            let mut eps = vec![0.0; columns];
            noise::fill_row(rng::call_key(NoiseKey { seed, stream }), row, &mut eps);
            let end = columns.min(start + 1100);
            json!({
                "seed": seed, "stream": stream, "row": row, "columns": columns, "start": start,
                "eps": hex(&eps[start..end]),
            })
        })
        .collect();
    json!({ "box_muller": pairs, "rows": rows })
}

/// One element per line.
fn lines(values: &[Value]) -> String {
    let lines: Vec<String> = values.iter().map(|value| format!("  {value}")).collect();
    format!("[\n{}\n]", lines.join(",\n"))
}

fn object_of_lines(value: &Value) -> String {
    let members: Vec<String> = value
        .as_object()
        .expect("an object")
        .iter()
        .map(|(name, values)| format!("\"{name}\": {}", lines(values.as_array().expect("an array"))))
        .collect();
    format!("{{\n{}\n}}\n", members.join(",\n"))
}

/// Names and contents of the files.
pub fn files() -> Vec<(&'static str, String)> {
    let mut source = Source(0);
    let mut forward = mixed(&mut source, 92);
    forward.extend(special(&mut source));
    let gradient = mixed(&mut source, 44).into_iter().chain(special(&mut source).into_iter().filter(|case| {
        case.n() < 100 && case.k < 100 && (!case.name.starts_with("special rows") || case.name.contains(" 8 8"))
    }));
    let gradient: Vec<Case> = gradient.collect();
    let forward: Vec<Value> = forward.iter().map(Case::forward_json).collect();
    let mut backward: Vec<Value> = gradient.iter().map(|case| case.backward_json(&mut source, "highest")).collect();
    let gradient: Vec<Case> = gradient.into_iter().filter(Case::has_codes).chain(blocks(&mut source)).collect();
    for precision in ["high", "8 bits"] {
        backward.extend(gradient.iter().map(|case| case.backward_json(&mut source, precision)));
    }
    let mut files = vec![
        ("rng.json", object_of_lines(&rng_json())),
        ("noise.json", object_of_lines(&noise_json())),
        ("forward.json", lines(&forward) + "\n"),
        ("backward.json", lines(&backward) + "\n"),
    ];
    files.extend(files_of_effects());
    files
}

#[allow(dead_code, reason = "unused when the tests include this file")]
fn main() -> std::io::Result<()> {
    for (name, content) in files() {
        let path = folder().join(name);
        std::fs::write(&path, &content)?;
        println!("{name}: {} bytes", content.len());
    }
    Ok(())
}
