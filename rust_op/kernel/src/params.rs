//! Parameters as a caller gives them ([`Spec`]) and as the kernels read them, checked ([`Params`]).

use std::ops::Range;

use crate::error::Error;
use crate::float_env::FloatEnv;
use crate::quantize::{self, levels};
use crate::schema::{self, Kind};

/// The smallest sigma of additive noise on inputs, in steps of the grid that they are rounded to.
const LEAST_FINE_SIGMA: f32 = 0.6;
/// Maximum number of parts that a row is split into.
pub const MAX_TILES: usize = 65_536;
/// Largest K of an exact integer product: 127 * 127 * 131072 < 2^31.
pub const MAX_INTEGER_K: usize = 131_072;

/// Where the bias enters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BiasStage {
    /// Before noise and ADC.
    #[default]
    Analog,
    /// After the ADC.
    Digital,
}

impl BiasStage {
    /// The stage called `name`.
    pub fn from_name(name: &str) -> Result<Self, Error> {
        one_of("bias_stage", name, [BiasStage::Analog, BiasStage::Digital], BiasStage::name)
    }

    /// Its name in the schema.
    pub const fn name(self) -> &'static str {
        match self {
            BiasStage::Analog => "analog",
            BiasStage::Digital => "digital",
        }
    }
}

/// What light the detector sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detection {
    /// Weights shifted into 0..1; a negative input takes the complement.
    #[default]
    Offset,
    /// Both complementary ports.
    Balanced,
}

impl Detection {
    /// The detection called `name`.
    pub fn from_name(name: &str) -> Result<Self, Error> {
        one_of("detection", name, [Detection::Offset, Detection::Balanced], Detection::name)
    }

    /// Its name in the schema.
    pub const fn name(self) -> &'static str {
        match self {
            Detection::Offset => "offset",
            Detection::Balanced => "balanced",
        }
    }
}

/// What a number of photons refers to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PhotonReference {
    /// A product of two full-scale operands.
    #[default]
    FullScale,
    /// The mean over the row's inputs of the light that enters a product.
    Mean,
}

impl PhotonReference {
    /// The reference called `name`.
    pub fn from_name(name: &str) -> Result<Self, Error> {
        one_of("photon_reference", name, [PhotonReference::FullScale, PhotonReference::Mean], PhotonReference::name)
    }

    /// Its name in the schema.
    pub const fn name(self) -> &'static str {
        match self {
            PhotonReference::FullScale => "full_scale",
            PhotonReference::Mean => "mean",
        }
    }
}

/// The one of `choices` whose name is `name`.
fn one_of<T: Copy, const C: usize>(
    parameter: &'static str,
    name: &str,
    choices: [T; C],
    name_of: fn(T) -> &'static str,
) -> Result<T, Error> {
    choices
        .into_iter()
        .find(|choice| name_of(*choice) == name)
        .ok_or_else(|| Error::value(parameter, format!("{name:?}"), schema::parameter(parameter).allowed))
}

/// Unchecked parameters. The defaults are those of the schema.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the fields are the rows of schema::PARAMETERS")]
pub struct Spec {
    pub input_bits: i64,
    pub weight_bits: i64,
    pub output_bits: i64,
    pub input_range: f32,
    pub output_range: Vec<f32>,
    pub noise_relative: f32,
    pub noise_additive: f32,
    pub noise_shot: f32,
    pub bias_stage: String,
    pub tile_features: i64,
    pub output_bound: f32,
    pub noise_read: f32,
    pub photons: f32,
    pub detection: String,
    pub photon_reference: String,
    pub input_noise_relative: f32,
    pub input_noise_additive: f32,
    pub weight_levels: i64,
}

impl Default for Spec {
    fn default() -> Self {
        let int = |name| schema::parameter(name).default.parse().expect("an integer default");
        let float = |name| schema::parameter(name).default.parse().expect("a float default");
        let text = |name| schema::parameter(name).default.to_owned();
        Spec {
            input_bits: int("input_bits"),
            weight_bits: int("weight_bits"),
            output_bits: int("output_bits"),
            input_range: float("input_range"),
            output_range: vec![float("output_range")],
            noise_relative: float("noise_relative"),
            noise_additive: float("noise_additive"),
            noise_shot: float("noise_shot"),
            bias_stage: text("bias_stage"),
            tile_features: int("tile_features"),
            output_bound: float("output_bound"),
            noise_read: float("noise_read"),
            photons: float("photons"),
            detection: text("detection"),
            photon_reference: text("photon_reference"),
            input_noise_relative: float("input_noise_relative"),
            input_noise_additive: float("input_noise_additive"),
            weight_levels: int("weight_levels"),
        }
    }
}

/// Full scale of the ADC.
#[derive(Clone, Debug, PartialEq)]
pub enum OutputRange {
    /// The row's own maximum.
    Dynamic,
    /// One for the layer.
    Layer(f32),
    /// One for each output.
    Channel(Vec<f32>),
    /// This many products of two full-scale operands: one for each row and output.
    Bound(f32),
}

impl OutputRange {
    /// It in words, for messages.
    fn text(&self) -> String {
        match self {
            OutputRange::Dynamic => "0".to_owned(),
            OutputRange::Layer(range) => range.to_string(),
            OutputRange::Channel(ranges) => format!("{} numbers", ranges.len()),
            OutputRange::Bound(bound) => format!("output_bound {bound}"),
        }
    }

    /// Whether each row takes its own maximum.
    pub fn is_dynamic(&self) -> bool {
        matches!(self, OutputRange::Dynamic)
    }

    /// The full scale of output `n`, if the parameters fix it.
    pub fn get(&self, n: usize) -> Option<f32> {
        match self {
            OutputRange::Dynamic | OutputRange::Bound(_) => None,
            OutputRange::Layer(range) => Some(*range),
            OutputRange::Channel(ranges) => Some(ranges[n]),
        }
    }
}

/// Shot noise of the light on the detector.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Photons {
    /// P, per product.
    pub count: f32,
    /// The light.
    pub detection: Detection,
    /// What P refers to.
    pub reference: PhotonReference,
}

/// The levels of the laws of the noise on outputs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct NoiseLevels {
    /// Fraction of the signal.
    pub relative: f32,
    /// Fraction of the full scale.
    pub additive: f32,
    /// Factor of sqrt(|z| R).
    pub shot: f32,
    /// Sigma of each weight, as a fraction of its full scale.
    pub read: f32,
    /// Shot noise of the light, if there is any.
    pub photons: Option<Photons>,
}

impl NoiseLevels {
    /// Whether any noise is drawn.
    pub fn any(&self) -> bool {
        let NoiseLevels { relative, additive, shot, read, photons } = *self;
        relative != 0.0 || additive != 0.0 || shot != 0.0 || read != 0.0 || photons.is_some()
    }

    /// Whether sigma reads the full scale R.
    pub fn reads_range(&self) -> bool {
        self.additive != 0.0 || self.shot != 0.0
    }

    /// Whether sigma reads the light that enters: sums over the magnitudes of the row's codes.
    pub fn reads_light(&self) -> bool {
        self.read != 0.0 || self.photons.is_some()
    }
}

/// Levels of the noise on inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct InputNoise {
    /// Fraction of the value.
    pub relative: f32,
    /// Fraction of the DAC's full scale.
    pub additive: f32,
}

impl InputNoise {
    /// Whether any noise is drawn.
    pub fn any(&self) -> bool {
        self.relative != 0.0 || self.additive != 0.0
    }
}

/// Checked parameters of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Params {
    /// DAC bits; 0 = analog.
    pub input_bits: u32,
    /// Weight bits; 0 = analog.
    pub weight_bits: u32,
    /// ADC bits; 0 = none.
    pub output_bits: u32,
    /// DAC full scale; `None` = the row's maximum.
    pub input_range: Option<f32>,
    /// ADC full scale.
    pub output_range: OutputRange,
    /// Noise levels.
    pub noise: NoiseLevels,
    /// Where the bias enters.
    pub bias_stage: BiasStage,
    /// Inputs of one pass of the core; `None` = the whole row.
    pub tile_features: Option<usize>,
    /// Noise on the inputs.
    pub input_noise: InputNoise,
    /// The code that is a weight's full scale; `None` = the largest.
    pub weight_levels: Option<i32>,
}

fn bits(name: &'static str, value: i64, excluded: Option<i64>) -> Result<u32, Error> {
    let row = schema::parameter(name);
    debug_assert_eq!(row.kind, Kind::Int);
    let inside =
        row.minimum.is_none_or(|low| value as f64 >= low) && row.maximum.is_none_or(|high| value as f64 <= high);
    if inside && Some(value) != excluded { Ok(value as u32) } else { Err(Error::value(name, value, row.allowed)) }
}

fn level(name: &'static str, value: f32) -> Result<f32, Error> {
    let row = schema::parameter(name);
    if value.is_finite() && value >= 0.0 && row.maximum.is_none_or(|high| f64::from(value) <= high) {
        Ok(value)
    } else {
        Err(Error::value(name, value, row.allowed))
    }
}

/// The least number of photons.
const LEAST_PHOTONS: f32 = 1e-6;

fn photons(spec: &Spec) -> Result<Option<Photons>, Error> {
    let count = level("photons", spec.photons)?;
    let detection = Detection::from_name(&spec.detection)?;
    let reference = PhotonReference::from_name(&spec.photon_reference)?;
    if count == 0.0 {
        let because = "with photons 0 there is no light";
        if detection != Detection::default() {
            return Err(Error::Ignored { name: "detection", value: format!("{:?}", detection.name()), because });
        }
        if reference != PhotonReference::default() {
            return Err(Error::Ignored { name: "photon_reference", value: format!("{:?}", reference.name()), because });
        }
        return Ok(None);
    }
    if count < LEAST_PHOTONS {
        return Err(Error::value("photons", count, schema::parameter("photons").allowed));
    }
    Ok(Some(Photons { count, detection, reference }))
}

fn output_range(values: &[f32]) -> Result<OutputRange, Error> {
    let allowed = schema::parameter("output_range").allowed;
    match values {
        [] => Err(Error::Length { name: "output_range", length: 0, allowed: allowed.to_owned() }),
        [0.0] => Ok(OutputRange::Dynamic),
        _ => {
            if let Some(bad) = values.iter().position(|range| !(range.is_finite() && *range > 0.0)) {
                return Err(Error::element("output_range", vec![bad], values[bad], allowed));
            }
            Ok(match values {
                [range] => OutputRange::Layer(*range),
                _ => OutputRange::Channel(values.to_vec()),
            })
        }
    }
}

impl Params {
    /// Checks `spec`.
    ///
    /// # Errors
    /// A value outside its bounds, or a parameter that the others make meaningless.
    /// [`Params::check_shape`] checks what depends on the layer's shape.
    pub fn new(spec: &Spec) -> Result<Self, Error> {
        // A denormal range is not 0, even if the caller's thread treats denormals as zeros.
        let _environment = FloatEnv::canonical();
        let bound = level("output_bound", spec.output_bound)?;
        let params = Params {
            input_bits: bits("input_bits", spec.input_bits, Some(1))?,
            weight_bits: bits("weight_bits", spec.weight_bits, None)?,
            output_bits: bits("output_bits", spec.output_bits, Some(1))?,
            input_range: Some(level("input_range", spec.input_range)?).filter(|range| *range > 0.0),
            output_range: match output_range(&spec.output_range)? {
                OutputRange::Dynamic if bound > 0.0 => OutputRange::Bound(bound),
                fixed if bound > 0.0 => {
                    return Err(Error::value(
                        "output_bound",
                        bound,
                        format!("0 where output_range is given ({}): both are the ADC's full scale", fixed.text()),
                    ));
                }
                range => range,
            },
            noise: NoiseLevels {
                relative: level("noise_relative", spec.noise_relative)?,
                additive: level("noise_additive", spec.noise_additive)?,
                shot: level("noise_shot", spec.noise_shot)?,
                read: level("noise_read", spec.noise_read)?,
                photons: photons(spec)?,
            },
            bias_stage: BiasStage::from_name(&spec.bias_stage)?,
            tile_features: Some(bits("tile_features", spec.tile_features, None)? as usize).filter(|tile| *tile > 0),
            input_noise: InputNoise {
                relative: level("input_noise_relative", spec.input_noise_relative)?,
                additive: level("input_noise_additive", spec.input_noise_additive)?,
            },
            weight_levels: Some(bits("weight_levels", spec.weight_levels, None)? as i32).filter(|levels| *levels > 0),
        };
        params.check()?;
        Ok(params)
    }

    /// Checks what one parameter asks of another.
    fn check(&self) -> Result<(), Error> {
        if self.input_bits == 0
            && let Some(range) = self.input_range
        {
            return Err(Error::Ignored {
                name: "input_range",
                value: range.to_string(),
                because: "with input_bits 0 there is no DAC",
            });
        }
        let bound = if let OutputRange::Bound(bound) = self.output_range { bound } else { 0.0 };
        let count = self.noise.photons.map_or(0.0, |photons| photons.count);
        for (name, value) in [("output_bound", bound), ("noise_read", self.noise.read), ("photons", count)] {
            if value != 0.0 && (self.input_bits == 0 || self.weight_bits == 0) {
                return Err(Error::value(
                    name,
                    value,
                    format!(
                        "0 where input_bits ({}) or weight_bits ({}) is 0: it refers to the full scale of both",
                        self.input_bits, self.weight_bits
                    ),
                ));
            }
        }
        if bound != 0.0 && self.bias_stage == BiasStage::Analog {
            return Err(Error::value(
                "output_bound",
                bound,
                "0 where bias_stage is \"analog\": an output without light would lose its bias",
            ));
        }
        if count != 0.0 && self.noise.shot != 0.0 {
            return Err(Error::value(
                "noise_shot",
                self.noise.shot,
                format!("0 where photons is given ({count}): both are the shot noise"),
            ));
        }
        for (name, value) in
            [("input_noise_relative", self.input_noise.relative), ("input_noise_additive", self.input_noise.additive)]
        {
            if value != 0.0 && self.input_bits == 0 {
                return Err(Error::Ignored {
                    name,
                    value: value.to_string(),
                    because: "with input_bits 0 there is no DAC behind which it enters",
                });
            }
        }
        let fine = self.input_full_scale() as f32;
        if self.input_noise.additive != 0.0 && self.input_noise.additive < LEAST_FINE_SIGMA / fine {
            return Err(Error::value(
                "input_noise_additive",
                self.input_noise.additive,
                format!(
                    "0, or at least {:?} with input_bits {}: a smaller sigma is below {LEAST_FINE_SIGMA} steps of the \
                     grid that noisy inputs are rounded to",
                    LEAST_FINE_SIGMA / fine,
                    self.input_bits
                ),
            ));
        }
        if let Some(levels) = self.weight_levels {
            if !self.noise.reads_light() && bound == 0.0 {
                return Err(Error::Ignored {
                    name: "weight_levels",
                    value: levels.to_string(),
                    because: "without noise_read, photons and output_bound nothing refers to a weight's full scale",
                });
            }
            let largest = quantize::levels(self.weight_bits);
            if levels > largest {
                return Err(Error::value(
                    "weight_levels",
                    levels,
                    format!("0 or 1..{largest}, the largest code with weight_bits {}", self.weight_bits),
                ));
            }
        }
        Ok(())
    }

    /// Checks what depends on the shape: N outputs, K inputs.
    ///
    /// # Errors
    /// K or N of 0, an `output_range` with neither 1 nor N elements, or a K too large for an
    /// exact integer product.
    pub fn check_shape(&self, n: usize, k: usize) -> Result<(), Error> {
        if n == 0 {
            return Err(Error::value("N (rows of weight)", n, "at least 1"));
        }
        if k == 0 {
            return Err(Error::value("K (columns of weight)", k, "at least 1"));
        }
        if let OutputRange::Channel(ranges) = &self.output_range
            && ranges.len() != n
        {
            return Err(Error::Length {
                name: "output_range",
                length: ranges.len(),
                allowed: format!("1, or one for each of the N = {n} outputs"),
            });
        }
        if self.tiles(k).len() > MAX_TILES {
            return Err(Error::value(
                "tile_features",
                self.tile(k),
                format!("at least {} for K = {k}, so that a row has at most {MAX_TILES} parts", k.div_ceil(MAX_TILES)),
            ));
        }
        if self.is_integer() && k > MAX_INTEGER_K {
            return Err(Error::value(
                "K (columns of weight)",
                k,
                format!(
                    "at most {MAX_INTEGER_K} where input_bits ({}) and weight_bits ({}) are both 1..8, so that the sum is exact in 32 bits",
                    self.input_bits, self.weight_bits
                ),
            ));
        }
        Ok(())
    }

    /// Inputs of one pass of the core, of a row of `k`.
    pub fn tile(&self, k: usize) -> usize {
        self.tile_features.map_or(k, |tile| tile.min(k))
    }

    /// The parts that a row of `k` inputs is split into, in order.
    pub fn tiles(&self, k: usize) -> impl ExactSizeIterator<Item = Range<usize>> + use<> {
        let tile = self.tile(k);
        // Without a division where there is one: every call asks.
        let count = if tile == k { 1 } else { k.div_ceil(tile) };
        (0..count).map(move |index| index * tile..k.min((index + 1) * tile))
    }

    /// Bits of the codes of inputs as products see them: noise rounds them to a finer grid, of as many bits as the type
    /// of the codes has.
    pub fn input_code_bits(&self) -> u32 {
        match self.input_bits {
            bits if !self.input_noise.any() => bits,
            ..=8 => 8,
            _ => 16,
        }
    }

    /// Bits by which noise on inputs makes their grid finer.
    pub fn input_shift(&self) -> u32 {
        self.input_code_bits() - self.input_bits
    }

    /// L_x: the input code that is full scale; 0 without a DAC.
    pub fn input_full_scale(&self) -> i32 {
        if self.input_bits == 0 { 0 } else { levels(self.input_bits) << self.input_shift() }
    }

    /// L_w: the weight code that is full scale; 0 where weights are analog.
    pub fn weight_full_scale(&self) -> i32 {
        match self.weight_levels {
            Some(levels) => levels,
            None if self.weight_bits == 0 => 0,
            None => levels(self.weight_bits),
        }
    }

    /// Whether the product is an exact integer one: both sides have 1..8 bits.
    pub fn is_integer(&self) -> bool {
        (1..=8).contains(&self.input_bits) && (1..=8).contains(&self.weight_bits)
    }

    /// Largest DAC code, if there is a DAC.
    pub fn input_levels(&self) -> Option<i32> {
        (self.input_bits > 0).then(|| levels(self.input_bits))
    }

    /// Whether R is each row's own maximum of |z|: a law reads R and the range is dynamic.
    pub fn noise_needs_row_maximum(&self) -> bool {
        self.noise.reads_range() && self.output_range.is_dynamic()
    }

    /// Whether the ADC's full scale is each row's own maximum of |v|.
    pub fn adc_needs_row_maximum(&self) -> bool {
        self.output_bits > 0 && self.output_range.is_dynamic()
    }

    /// Whether an output can saturate: there is an ADC, and its full scale is static.
    pub fn adc_can_saturate(&self) -> bool {
        self.output_bits > 0 && !self.output_range.is_dynamic()
    }
}
