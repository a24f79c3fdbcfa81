//! What is refused, checked by its message.

mod common;

use lumina_kernel::Precision;
use lumina_kernel::backward::{Factor, Inputs, Operand, Outputs, Weight, backward};
use lumina_kernel::executor::{Executor, Serial};
use lumina_kernel::saved::{CodesMut, Saved, code_stride, mask_stride};
use lumina_kernel::{Error, Layer, NoiseKey, Params, Spec, Tier, WeightSource, Weights, pack};

fn spec() -> Spec {
    Spec { input_bits: 8, weight_bits: 4, ..Spec::default() }
}

fn tier() -> Tier {
    *Tier::available().last().expect("a tier")
}

#[track_caller]
fn refused<T>(result: Result<T, Error>, message: &str) {
    match result {
        Ok(_) => panic!("was not refused: {message}"),
        Err(error) => {
            assert_eq!(error.to_string(), message);
            assert!(message.starts_with(error.argument()), "{message}: {}", error.argument());
        }
    }
}

#[test]
fn parameters() {
    let zero_to_16 = "allowed is 0 (analog), 2..16";
    let cases = [
        (Spec { input_bits: 1, ..spec() }, format!("input_bits = 1: {zero_to_16}")),
        (Spec { input_bits: 17, ..spec() }, format!("input_bits = 17: {zero_to_16}")),
        (Spec { input_bits: i64::MIN, ..spec() }, format!("input_bits = {}: {zero_to_16}", i64::MIN)),
        (Spec { weight_bits: 17, ..spec() }, "weight_bits = 17: allowed is 0 (analog), 1..16".into()),
        (
            Spec { weight_bits: (1 << 32) + 4, ..spec() },
            "weight_bits = 4294967300: allowed is 0 (analog), 1..16".into(),
        ),
        (Spec { output_bits: 1, ..spec() }, "output_bits = 1: allowed is 0 (no ADC), 2..16".into()),
        (Spec { input_range: -1.0, ..spec() }, "input_range = -1: allowed is a finite number >= 0".into()),
        (Spec { input_range: f32::NAN, ..spec() }, "input_range = NaN: allowed is a finite number >= 0".into()),
        (
            Spec { input_bits: 0, input_range: 2.0, ..spec() },
            "input_range = 2 would be ignored: with input_bits 0 there is no DAC".into(),
        ),
        (
            Spec { output_range: vec![], ..spec() },
            "output_range has 0 elements: allowed is a single 0 (dynamic), or 1 or N finite numbers > 0".into(),
        ),
        (
            Spec { output_range: vec![1.0, 0.0], ..spec() },
            "output_range[1] = 0: allowed is a single 0 (dynamic), or 1 or N finite numbers > 0".into(),
        ),
        (
            Spec { output_range: vec![f32::INFINITY], ..spec() },
            "output_range[0] = inf: allowed is a single 0 (dynamic), or 1 or N finite numbers > 0".into(),
        ),
        (
            Spec { noise_relative: f32::INFINITY, ..spec() },
            "noise_relative = inf: allowed is a finite number >= 0".into(),
        ),
        (Spec { noise_additive: -0.1, ..spec() }, "noise_additive = -0.1: allowed is a finite number >= 0".into()),
        (Spec { noise_shot: f32::NAN, ..spec() }, "noise_shot = NaN: allowed is a finite number >= 0".into()),
        (
            Spec { bias_stage: "optical".into(), ..spec() },
            "bias_stage = \"optical\": allowed is \"analog\", \"digital\"".into(),
        ),
    ];
    for (spec, message) in cases {
        refused(Params::new(&spec), &message);
    }
}

#[test]
fn parameters_of_version_2() {
    let both = "0 where input_bits (0) or weight_bits (4) is 0: it refers to the full scale of both";
    let digital = |spec: Spec| Spec { bias_stage: "digital".into(), ..spec };
    let analog = Spec { input_bits: 0, ..spec() };
    let light = "with photons 0 there is no light";
    let no_dac = "with input_bits 0 there is no DAC behind which it enters";
    let cases: [(Spec, String); 18] = [
        (
            Spec { tile_features: 131_073, ..spec() },
            "tile_features = 131073: allowed is 0 (the whole row), 1..131072".into(),
        ),
        (Spec { output_bound: f32::NAN, ..spec() }, "output_bound = NaN: allowed is a finite number >= 0".into()),
        (digital(Spec { output_bound: 0.5, ..analog.clone() }), format!("output_bound = 0.5: allowed is {both}")),
        (
            Spec { output_bound: 0.5, ..spec() },
            "output_bound = 0.5: allowed is 0 where bias_stage is \"analog\": an output without light would lose its bias"
                .into(),
        ),
        (
            digital(Spec { output_bound: 0.5, output_range: vec![1.0, 2.0], ..spec() }),
            "output_bound = 0.5: allowed is 0 where output_range is given (2 numbers): both are the ADC's full scale"
                .into(),
        ),
        (Spec { noise_read: -1.0, ..spec() }, "noise_read = -1: allowed is a finite number >= 0".into()),
        (Spec { noise_read: 0.5, ..analog.clone() }, format!("noise_read = 0.5: allowed is {both}")),
        (
            Spec { photons: 9e-7, ..spec() },
            "photons = 0.0000009: allowed is 0 (no shot noise of light), or a finite number >= 1e-6".into(),
        ),
        (Spec { photons: 2.0, ..analog.clone() }, format!("photons = 2: allowed is {both}")),
        (
            Spec { photons: 2.0, noise_shot: 0.5, ..spec() },
            "noise_shot = 0.5: allowed is 0 where photons is given (2): both are the shot noise".into(),
        ),
        (Spec { detection: "both".into(), ..spec() }, "detection = \"both\": allowed is \"offset\", \"balanced\"".into()),
        (Spec { detection: "balanced".into(), ..spec() }, format!("detection = \"balanced\" would be ignored: {light}")),
        (
            Spec { photon_reference: "mean".into(), ..spec() },
            format!("photon_reference = \"mean\" would be ignored: {light}"),
        ),
        (Spec { input_noise_relative: 1.5, ..spec() }, "input_noise_relative = 1.5: allowed is 0..1".into()),
        (
            Spec { input_noise_additive: 0.5, ..analog },
            format!("input_noise_additive = 0.5 would be ignored: {no_dac}"),
        ),
        (
            Spec { input_noise_additive: 0.004, ..spec() },
            "input_noise_additive = 0.004: allowed is 0, or at least 0.0047244094 with input_bits 8: a smaller sigma is \
             below 0.6 steps of the grid that noisy inputs are rounded to"
                .into(),
        ),
        (
            Spec { weight_levels: 3, ..spec() },
            "weight_levels = 3 would be ignored: without noise_read, photons and output_bound nothing refers to a \
             weight's full scale"
                .into(),
        ),
        (
            Spec { weight_levels: 8, noise_read: 0.5, ..spec() },
            "weight_levels = 8: allowed is 0 or 1..7, the largest code with weight_bits 4".into(),
        ),
    ];
    for (spec, message) in cases {
        refused(Params::new(&spec), &message);
    }
    let smallest = Spec { photons: 1e-6, input_noise_additive: 0.004_724_409_4, weight_levels: 7, ..spec() };
    Params::new(&smallest).expect("allowed");
}

#[test]
fn tiles_and_bounds() {
    let tiny = Params::new(&Spec { input_bits: 0, tile_features: 1, ..spec() }).expect("valid");
    assert_eq!(tiny.check_shape(1, 65_536), Ok(()));
    refused(
        tiny.check_shape(1, 65_537),
        "tile_features = 1: allowed is at least 2 for K = 65537, so that a row has at most 65536 parts",
    );
    let bound = Spec { output_bound: 1e38, bias_stage: "digital".into(), ..spec() };
    let bound = Params::new(&bound).expect("valid");
    let build = |scale| Weights::new(tier(), &Serial, &bound, (2, 3), WeightSource::Codes(&[1; 6]), Some(scale), None);
    refused(
        build(&[0.25, 1.0]),
        "output_bound = 100000000000000000000000000000000000000: allowed is a number with which output_bound * \
         weight_scale * L_w is finite, which it is not for output 1",
    );
    assert!(build(&[0.25, 0.0]).is_ok());
}

#[test]
fn shapes() {
    let params = Params::new(&spec()).expect("valid");
    refused(params.check_shape(0, 3), "N (rows of weight) = 0: allowed is at least 1");
    refused(params.check_shape(3, 0), "K (columns of weight) = 0: allowed is at least 1");
    refused(
        params.check_shape(1, 131_073),
        "K (columns of weight) = 131073: allowed is at most 131072 where input_bits (8) and weight_bits (4) are both \
         1..8, so that the sum is exact in 32 bits",
    );
    assert_eq!(params.check_shape(1, 131_072), Ok(()));
    let wide = Params::new(&Spec { input_bits: 9, ..spec() }).expect("valid");
    assert_eq!(wide.check_shape(1, 131_073), Ok(()));
    let ranges = Params::new(&Spec { output_range: vec![1.0; 3], ..spec() }).expect("valid");
    refused(
        ranges.check_shape(2, 3),
        "output_range has 3 elements: allowed is 1, or one for each of the N = 2 outputs",
    );
}

#[test]
fn weights() {
    let build = |bits, source: WeightSource<'_>, scale: Option<&[f32]>| {
        let params = Params::new(&Spec { weight_bits: bits, ..spec() }).expect("valid");
        Weights::new(tier(), &Serial, &params, (2, 3), source, scale, None)
    };
    let scale_allowed = "a finite number >= 0 whose full scale (weight_scale * L) is finite in 32 bits";
    let w = [0.5f32; 6];
    let codes = [1i8; 6];
    refused(build(4, WeightSource::F32(&w[1..]), None), "weight has 5 elements: allowed is 6 for N = 2, K = 3");
    refused(
        build(4, WeightSource::Codes(&codes[1..]), Some(&[1.0])),
        "weight has 5 elements: allowed is 6 for N = 2, K = 3",
    );
    refused(
        build(4, WeightSource::Packed(&[0x11; 3]), Some(&[1.0])),
        "weight has 3 elements: allowed is 4 for N = 2, K = 3",
    );
    refused(
        build(0, WeightSource::F32(&w), Some(&[1.0])),
        "weight_scale = 1 would be ignored: with weight_bits 0 the weights are analog",
    );
    refused(
        build(4, WeightSource::F32(&w), Some(&[1.0; 3])),
        "weight_scale has 3 elements: allowed is 1, or one for each of the N = 2 outputs",
    );
    refused(
        build(4, WeightSource::F32(&w), Some(&[1.0, -1.0])),
        &format!("weight_scale[1] = -1: allowed is {scale_allowed}"),
    );
    refused(
        build(4, WeightSource::F32(&w), Some(&[f32::NAN])),
        &format!("weight_scale[0] = NaN: allowed is {scale_allowed}"),
    );
    // The scale is finite, but its full scale is not.
    refused(
        build(8, WeightSource::F32(&w), Some(&[1e37])),
        &format!("weight_scale[0] = 10000000000000000000000000000000000000: allowed is {scale_allowed}"),
    );
    refused(
        build(1, WeightSource::F32(&[0.0, 0.0, 0.0, f32::MAX, f32::MAX, f32::MAX]), None),
        &format!("weight_scale[1] = inf: allowed is {scale_allowed}"),
    );
    refused(
        build(4, WeightSource::Codes(&codes), None),
        "weight_scale = none: allowed is 1 or N numbers where the weights are codes",
    );
    refused(
        build(9, WeightSource::Codes(&codes), Some(&[1.0])),
        "weight_bits = 9: allowed is 1..8 where the weights are int8 codes",
    );
    refused(
        build(8, WeightSource::Packed(&[0; 6]), Some(&[1.0])),
        "weight_bits = 8: allowed is 1, 2 or 4 where the weights are packed in uint8",
    );
    let in_range = "a code -L..L with L = 2^(weight_bits-1)-1 (-1 or +1 with weight_bits 1)";
    for (bits, code) in [(8, -128), (4, -8), (4, 8), (2, -2), (1, 0), (1, -2)] {
        let mut codes = [1i8; 6];
        codes[4] = code;
        refused(
            build(bits, WeightSource::Codes(&codes), Some(&[1.0])),
            &format!("weight[1, 1] = {code}: allowed is {in_range}"),
        );
    }
    refused(
        build(4, WeightSource::Packed(&[0x11, 0x01, 0x01, 0x01]), Some(&[1.0])),
        "weight[1, 1] = -8: allowed is a code -L..L with L = 2^(weight_bits-1)-1",
    );
    refused(
        build(1, WeightSource::Packed(&[0x07, 0x08]), Some(&[1.0])),
        "weight[1, 3] = 1: allowed is 0 in the bits that fill up a row",
    );
    for bits in [0, 1, 4, 8, 16] {
        for (bad, shown) in [(f32::NAN, "NaN"), (f32::NEG_INFINITY, "-inf")] {
            let mut w = w;
            w[5] = bad;
            refused(
                build(bits, WeightSource::F32(&w), None),
                &format!("weight[1, 2] = {shown}: allowed is a finite number"),
            );
        }
    }
}

/// The error names the first of several bad channels, whichever task finds one first.
#[test]
fn the_first_bad_weight_is_named() {
    let params = Params::new(&spec()).expect("valid");
    let (n, k) = (640, 512);
    let mut w = vec![0.5f32; n * k];
    for row in [37, 300, 639] {
        w[row * k + 5] = f32::NAN;
    }
    for executor in [&Serial as &dyn Executor, &common::Reversed, &common::Threads::new(3)] {
        let built = Weights::new(tier(), executor, &params, (n, k), WeightSource::F32(&w), None, None);
        refused(built, "weight[37, 5] = NaN: allowed is a finite number");
    }
}

fn layer(spec: &Spec) -> Layer {
    let params = Params::new(spec).expect("valid");
    let weights = Weights::new(tier(), &Serial, &params, (2, 3), WeightSource::F32(&[0.5; 6]), None, None);
    Layer::new(weights.expect("valid"), None).expect("valid")
}

#[test]
fn layers_and_calls() {
    let params = Params::new(&spec()).expect("valid");
    let weights =
        Weights::new(tier(), &Serial, &params, (2, 3), WeightSource::F32(&[0.5; 6]), None, None).expect("valid");
    let with_bias = |bias: &[f32]| Layer::new(weights.clone(), Some(bias));
    refused(with_bias(&[0.0; 3]), "bias has 3 elements: allowed is N = 2");
    refused(with_bias(&[0.0, f32::INFINITY]), "bias[1] = inf: allowed is a finite number");

    let layer = layer(&spec());
    let call = |x: &[f32], y: &mut [f32]| layer.forward(&Serial, x, NoiseKey::default(), y, None);
    refused(call(&[0.0; 4], &mut [0.0; 2]), "input has 4 elements: allowed is a multiple of K = 3");
    refused(call(&[0.0; 6], &mut [0.0; 3]), "out has 3 elements: allowed is M * N = 2 * 2");
}

#[test]
fn what_is_saved() {
    let fixed = Spec { input_range: 1.0, output_range: vec![1.0], ..spec() };
    let save = |spec: &Spec, codes: Option<CodesMut<'_>>, steps: usize, adc: Option<usize>, dac: Option<usize>| {
        let (mut x_step, mut adc, mut dac) = (vec![0.0; steps], adc.map(|n| vec![0; n]), dac.map(|n| vec![0; n]));
        let saved = Saved {
            x_codes: codes,
            x_step: Some(&mut x_step),
            adc_mask: adc.as_deref_mut(),
            dac_mask: dac.as_deref_mut(),
        };
        layer(spec).forward(&Serial, &[0.0; 3], NoiseKey::default(), &mut [0.0; 2], Some(saved))
    };
    let kinds = "int8 for codes of 1..8 bits, int16 for 9..16, none where analog";
    let (mut narrow, mut wide) = (vec![0i8; code_stride(3)], vec![0i16; code_stride(3)]);
    assert_eq!(save(&fixed, Some(CodesMut::I8(&mut narrow)), 1, Some(2), Some(2)), Ok(()));
    refused(
        save(&fixed, Some(CodesMut::I16(&mut wide)), 1, None, None),
        &format!("x_codes = of 8 bits: allowed is {kinds}"),
    );
    let analog = Spec { input_bits: 0, ..spec() };
    refused(
        save(&analog, Some(CodesMut::I8(&mut narrow)), 1, None, None),
        &format!("x_codes = of 0 bits: allowed is {kinds}"),
    );
    refused(
        save(&fixed, Some(CodesMut::I8(&mut narrow[1..])), 1, None, None),
        "x_codes has 3 elements: allowed is 1 rows * 4",
    );
    refused(save(&fixed, None, 2, None, None), "x_step has 2 elements: allowed is 1");
    refused(save(&fixed, None, 1, Some(1), None), "adc_mask has 1 elements: allowed is 2");
    refused(save(&fixed, None, 1, None, Some(3)), "dac_mask has 3 elements: allowed is 2");
    // Masks that nothing would fill.
    let adc = "adc_mask = 2 bytes: allowed is none where the ADC cannot saturate";
    refused(save(&spec(), None, 1, Some(2), None), adc);
    refused(save(&Spec { output_bits: 0, ..fixed.clone() }, None, 1, Some(2), None), adc);
    refused(save(&spec(), None, 1, None, Some(2)), "dac_mask = 2 bytes: allowed is none where the DAC cannot saturate");
}

#[test]
fn gradients() {
    let params = Params::new(&Spec { input_bits: 0, weight_bits: 0, ..Spec::default() }).expect("valid");
    let (x, w) = ([0.0f32; 6], [0.0f32; 3]);
    let of_x = Factor { values: Operand::F32(&x), steps: &[1.0; 2] };
    let of_weight = Weight { values: &w, scale: &[1.0] };
    let inputs = Inputs {
        shape: (2, 1, 3),
        dy: &[0.0; 2],
        x: Some(of_x),
        weight: Some(of_weight),
        adc_mask: None,
        dac_mask: None,
    };
    let run = |inputs: &Inputs<'_>| backward(tier(), &Serial, &params, Precision::Highest, inputs, Outputs::default());
    assert_eq!(run(&inputs), Ok(()));
    refused(run(&Inputs { dy: &[0.0; 3], ..inputs }), "grad_output has 3 elements: allowed is 2");
    let with_x = |x| run(&Inputs { x: Some(x), ..inputs });
    refused(with_x(Factor { values: Operand::F32(&x[1..]), ..of_x }), "x has 5 elements: allowed is 6");
    refused(with_x(Factor { values: Operand::I8(&[0; 6]), ..of_x }), "x has 6 elements: allowed is 8");
    let types = "float32 for 0, int8 for 1..8, int16 for 9..16";
    refused(
        with_x(Factor { values: Operand::I8(&[0; 8]), ..of_x }),
        &format!("x = int8 where input_bits is 0: allowed is {types}"),
    );
    for (bits, values, name) in
        [(9, Operand::I8(&[0; 8]), "int8"), (8, Operand::I16(&[0; 8]), "int16"), (2, Operand::F32(&x), "float32")]
    {
        let params = Params::new(&Spec { input_bits: bits, weight_bits: 0, ..Spec::default() }).expect("valid");
        let inputs = Inputs { x: Some(Factor { values, ..of_x }), ..inputs };
        refused(
            backward(tier(), &Serial, &params, Precision::Highest, &inputs, Outputs::default()),
            &format!("x = {name} where input_bits is {bits}: allowed is {types}"),
        );
    }
    refused(with_x(Factor { steps: &[1.0; 3], ..of_x }), "x_step has 3 elements: allowed is 2");
    let with_weight = |weight| run(&Inputs { weight: Some(weight), ..inputs });
    refused(with_weight(Weight { values: &w[1..], ..of_weight }), "weight has 2 elements: allowed is 3");
    refused(with_weight(Weight { scale: &[], ..of_weight }), "weight_scale has 0 elements: allowed is 1");
    refused(run(&Inputs { adc_mask: Some(&[0; 3]), ..inputs }), "adc_mask has 3 elements: allowed is 4");
    refused(run(&Inputs { dac_mask: Some(&[0; 2]), ..inputs }), "dac_mask has 2 elements: allowed is 4");
    refused(run(&Inputs { shape: (2, 1, 0), ..inputs }), "K (columns of weight) = 0: allowed is at least 1");
    refused(run(&Inputs { shape: (2, 0, 3), ..inputs }), "N (rows of weight) = 0: allowed is at least 1");
    let without = Inputs { x: None, weight: None, ..inputs };
    let out = |outputs: Outputs<'_>| backward(tier(), &Serial, &params, Precision::Highest, &without, outputs);
    assert_eq!(out(Outputs { bias: Some(&mut [0.0]), ..Outputs::default() }), Ok(()));
    refused(
        out(Outputs { x: Some(&mut [0.0; 6]), ..Outputs::default() }),
        "weight = absent: allowed is it is there where grad_x is asked for",
    );
    refused(
        out(Outputs { weight: Some(&mut [0.0; 3]), ..Outputs::default() }),
        "x = absent: allowed is it is there where grad_weight is asked for",
    );
    let out = |outputs: Outputs<'_>| backward(tier(), &Serial, &params, Precision::Highest, &inputs, outputs);
    refused(out(Outputs { x: Some(&mut [0.0; 5]), ..Outputs::default() }), "grad_x has 5 elements: allowed is 6");
    refused(
        out(Outputs { weight: Some(&mut [0.0; 2]), ..Outputs::default() }),
        "grad_weight has 2 elements: allowed is 3",
    );
    refused(out(Outputs { bias: Some(&mut [0.0; 2]), ..Outputs::default() }), "grad_bias has 2 elements: allowed is 1");
}

#[test]
fn packed_rows_of_any_length() {
    assert_eq!([1, 8, 9].map(|k| pack::packed_row_bytes(1, k)), [1, 1, 2]);
    assert_eq!([1, 4, 5].map(|k| pack::packed_row_bytes(2, k)), [1, 1, 2]);
    assert_eq!([1, 2, 3].map(|k| pack::packed_row_bytes(4, k)), [1, 1, 2]);
    assert_eq!([1, 2, 4].map(|bits| pack::packed_row_bytes(bits, usize::MAX)), [1 << 61, 1 << 62, 1 << 63]);
    assert_eq!(mask_stride(usize::MAX), 1 << 61);
}
