//! Parameters as a caller gives them ([`Spec`]) and as the kernels read them, checked ([`Params`]).

use crate::error::Error;
use crate::float_env::FloatEnv;
use crate::quantize::levels;
use crate::schema::{self, Kind};

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
        match name {
            "analog" => Ok(BiasStage::Analog),
            "digital" => Ok(BiasStage::Digital),
            _ => Err(Error::value("bias_stage", format!("{name:?}"), schema::parameter("bias_stage").allowed)),
        }
    }

    /// Its name in the schema.
    pub const fn name(self) -> &'static str {
        match self {
            BiasStage::Analog => "analog",
            BiasStage::Digital => "digital",
        }
    }
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
}

impl Default for Spec {
    fn default() -> Self {
        let int = |name| schema::parameter(name).default.parse().expect("an integer default");
        let float = |name| schema::parameter(name).default.parse().expect("a float default");
        Spec {
            input_bits: int("input_bits"),
            weight_bits: int("weight_bits"),
            output_bits: int("output_bits"),
            input_range: float("input_range"),
            output_range: vec![float("output_range")],
            noise_relative: float("noise_relative"),
            noise_additive: float("noise_additive"),
            noise_shot: float("noise_shot"),
            bias_stage: schema::parameter("bias_stage").default.to_owned(),
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
}

impl OutputRange {
    /// Whether each row takes its own maximum.
    pub fn is_dynamic(&self) -> bool {
        matches!(self, OutputRange::Dynamic)
    }

    /// The full scale of output `n`; `None` where it is dynamic.
    pub fn get(&self, n: usize) -> Option<f32> {
        match self {
            OutputRange::Dynamic => None,
            OutputRange::Layer(range) => Some(*range),
            OutputRange::Channel(ranges) => Some(ranges[n]),
        }
    }
}

/// The three noise laws' levels.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct NoiseLevels {
    /// Fraction of the signal.
    pub relative: f32,
    /// Fraction of the full scale.
    pub additive: f32,
    /// Factor of sqrt(|z| R).
    pub shot: f32,
}

impl NoiseLevels {
    /// Whether any noise is drawn.
    pub fn any(&self) -> bool {
        let NoiseLevels { relative, additive, shot } = *self;
        relative != 0.0 || additive != 0.0 || shot != 0.0
    }

    /// Whether sigma reads the full scale R.
    pub fn reads_range(&self) -> bool {
        self.additive != 0.0 || self.shot != 0.0
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
}

fn bits(name: &'static str, value: i64, excluded: Option<i64>) -> Result<u32, Error> {
    let row = schema::parameter(name);
    debug_assert_eq!(row.kind, Kind::Int);
    let inside =
        row.minimum.is_none_or(|low| value as f64 >= low) && row.maximum.is_none_or(|high| value as f64 <= high);
    if inside && Some(value) != excluded { Ok(value as u32) } else { Err(Error::value(name, value, row.allowed)) }
}

fn level(name: &'static str, value: f32) -> Result<f32, Error> {
    if value.is_finite() && value >= 0.0 {
        Ok(value)
    } else {
        Err(Error::value(name, value, schema::parameter(name).allowed))
    }
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
        let params = Params {
            input_bits: bits("input_bits", spec.input_bits, Some(1))?,
            weight_bits: bits("weight_bits", spec.weight_bits, None)?,
            output_bits: bits("output_bits", spec.output_bits, Some(1))?,
            input_range: Some(level("input_range", spec.input_range)?).filter(|range| *range > 0.0),
            output_range: output_range(&spec.output_range)?,
            noise: NoiseLevels {
                relative: level("noise_relative", spec.noise_relative)?,
                additive: level("noise_additive", spec.noise_additive)?,
                shot: level("noise_shot", spec.noise_shot)?,
            },
            bias_stage: BiasStage::from_name(&spec.bias_stage)?,
        };
        if params.input_bits == 0
            && let Some(range) = params.input_range
        {
            return Err(Error::Ignored {
                name: "input_range",
                value: range.to_string(),
                because: "with input_bits 0 there is no DAC",
            });
        }
        Ok(params)
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
