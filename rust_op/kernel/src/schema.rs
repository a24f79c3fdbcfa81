//! The operator's parameters: name, type, default, bounds and meaning, written once.
//!
//! Everything that names a parameter reads this table: [`crate::params`] checks values against it, the ONNX Runtime
//! operator walks it to read a node's attributes, Python queries it, and the documentation is generated from it. It is
//! append-only: a changed meaning is a new version of the operator.

/// The ONNX domain of the operator.
pub const DOMAIN: &str = "lumina";
/// The operator's name in [`DOMAIN`].
pub const OPERATOR: &str = "OpticalLinear";
/// The version of [`DOMAIN`] that models import, and for which hosts register the operator. It never changes: a host
/// would not find the operator in a file that imports another one.
pub const DOMAIN_VERSION: i32 = 1;
/// The latest version of the operator that this crate implements; it implements all before it, too.
pub const VERSION: i32 = 2;
/// The attribute that holds the version of the operator a node was made for; a node without it has version 1. It is not
/// a parameter. It exists because hosts do not tell an operator which version of its domain a model asks for.
pub const VERSION_ATTRIBUTE: &str = "op_version";

/// The type of a parameter, as ONNX names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A 64-bit integer.
    Int,
    /// A 32-bit float.
    Float,
    /// A list of 32-bit floats.
    Floats,
    /// One of the strings in [`Parameter::choices`].
    String,
}

impl Kind {
    /// The name ONNX gives the type.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Int => "INT",
            Kind::Float => "FLOAT",
            Kind::Floats => "FLOATS",
            Kind::String => "STRING",
        }
    }
}

/// How a parameter reaches an ONNX node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// An attribute of the node.
    Attribute,
    /// An input of the node.
    Input,
    /// Not stored in a model: it belongs to each call.
    Call,
}

impl Place {
    /// A lower-case name for tables.
    pub const fn name(self) -> &'static str {
        match self {
            Place::Attribute => "attribute",
            Place::Input => "input",
            Place::Call => "call",
        }
    }
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    /// Its name in Python, in Rust and in ONNX.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// Where an ONNX model keeps it.
    pub place: Place,
    /// The default, in the notation of the table; empty where there is none.
    pub default: &'static str,
    /// The allowed values, in words.
    pub allowed: &'static str,
    /// The smallest allowed number.
    pub minimum: Option<f64>,
    /// The largest allowed number.
    pub maximum: Option<f64>,
    /// The allowed strings.
    pub choices: &'static [&'static str],
    /// What it means.
    pub meaning: &'static str,
    /// The first version of the operator that has it.
    pub since: i32,
    /// Whether noise is drawn where it is not at its default.
    pub draws_noise: bool,
}

impl Parameter {
    const fn draws_noise(mut self) -> Self {
        self.draws_noise = true;
        self
    }

    const fn since(mut self, version: i32) -> Self {
        self.since = version;
        self
    }

    const fn between(mut self, minimum: f64, maximum: f64, allowed: &'static str) -> Self {
        self.minimum = Some(minimum);
        self.maximum = Some(maximum);
        self.allowed = allowed;
        self
    }
}

const fn bits(name: &'static str, default: &'static str, allowed: &'static str, meaning: &'static str) -> Parameter {
    Parameter {
        name,
        kind: Kind::Int,
        place: Place::Attribute,
        default,
        allowed,
        minimum: Some(0.0),
        maximum: Some(16.0),
        choices: &[],
        meaning,
        since: 1,
        draws_noise: false,
    }
}

const fn level(name: &'static str, meaning: &'static str) -> Parameter {
    Parameter {
        name,
        kind: Kind::Float,
        place: Place::Attribute,
        default: "0",
        allowed: "a finite number >= 0",
        minimum: Some(0.0),
        maximum: None,
        choices: &[],
        meaning,
        since: 1,
        draws_noise: false,
    }
}

const fn counter(name: &'static str, place: Place, default: &'static str, meaning: &'static str) -> Parameter {
    Parameter {
        name,
        kind: Kind::Int,
        place,
        default,
        allowed: "0..2^63-1",
        minimum: Some(0.0),
        maximum: Some(i64::MAX as f64),
        choices: &[],
        meaning,
        since: 1,
        draws_noise: false,
    }
}

const fn choice(
    name: &'static str,
    choices: &'static [&'static str],
    allowed: &'static str,
    meaning: &'static str,
) -> Parameter {
    Parameter {
        name,
        kind: Kind::String,
        place: Place::Attribute,
        default: choices[0],
        allowed,
        minimum: None,
        maximum: None,
        choices,
        meaning,
        since: 1,
        draws_noise: false,
    }
}

const fn count(name: &'static str, meaning: &'static str) -> Parameter {
    bits(name, "0", "", meaning)
}

/// The allowed names of `bias_stage`.
pub const BIAS_STAGES: &[&str] = &["analog", "digital"];
/// The allowed names of `detection`.
pub const DETECTIONS: &[&str] = &["offset", "balanced"];
/// The allowed names of `photon_reference`.
pub const PHOTON_REFERENCES: &[&str] = &["full_scale", "mean"];

/// Every parameter of the operator, in the order of its documentation.
pub const PARAMETERS: &[Parameter] = &[
    bits("input_bits", "0", "0 (analog), 2..16", "DAC resolution of X. 0 = analog: X is used as it is"),
    bits("weight_bits", "0", "0 (analog), 1..16", "modulator resolution of W. 0 = analog. 1 = {-1, +1}"),
    bits("output_bits", "8", "0 (no ADC), 2..16", "ADC resolution of Y. 0 = no ADC"),
    level("input_range", "DAC full scale. 0 = dynamic: max|x| of the row"),
    Parameter {
        name: "output_range",
        kind: Kind::Floats,
        place: Place::Attribute,
        default: "0",
        allowed: "a single 0 (dynamic), or 1 or N finite numbers > 0",
        minimum: Some(0.0),
        maximum: None,
        choices: &[],
        meaning: "ADC full scale, one per layer or one per output. 0 = dynamic: max|v| of the row",
        since: 1,
        draws_noise: false,
    },
    Parameter {
        name: "weight_scale",
        kind: Kind::Floats,
        place: Place::Input,
        default: "",
        allowed: "1 or N finite numbers >= 0",
        minimum: Some(0.0),
        maximum: None,
        choices: &[],
        meaning: "step of one weight code, one per layer or one per output channel. Default: max|w_n| / L, with 1 bit mean|w_n|",
        since: 1,
        draws_noise: false,
    },
    level("noise_relative", "sigma as a fraction of the signal |z|").draws_noise(),
    level("noise_additive", "sigma as a fraction of the full scale R (thermal, TIA)").draws_noise(),
    level("noise_shot", "sigma = noise_shot * sqrt(|z| * R)").draws_noise(),
    choice(
        "bias_stage",
        BIAS_STAGES,
        "\"analog\", \"digital\"",
        "bias added before noise and ADC (analog), or after the ADC (digital)",
    ),
    counter("seed", Place::Attribute, "0", "key of the noise; every layer has its own"),
    counter(
        "stream",
        Place::Call,
        "0",
        "counts the draws under one seed; in ONNX Runtime the node's invocation counter",
    ),
    Parameter {
        name: "in_features",
        kind: Kind::Int,
        place: Place::Attribute,
        default: "",
        allowed: "K >= 1; required where W is packed in uint8, else K of W",
        minimum: Some(1.0),
        maximum: None,
        choices: &[],
        meaning: "K, the length of an input row",
        since: 1,
        draws_noise: false,
    },
    count(
        "tile_features",
        "T: inputs that one pass of the core takes. A longer row is split; each part has noise and an ADC of its own, \
         and the results are added digitally. 0 = the whole row",
    )
    .between(0.0, 131_072.0, "0 (the whole row), 1..131072")
    .since(2),
    level(
        "output_bound",
        "ADC full scale in products of two full-scale operands: R = output_bound * (s_x L_x) * (s_w L_w). Takes the \
         place of output_range",
    )
    .since(2),
    level("noise_read", "sigma of each weight, drawn anew in each use, as a fraction of the weight's full scale")
        .draws_noise()
        .since(2),
    Parameter {
        allowed: "0 (no shot noise of light), or a finite number >= 1e-6",
        ..level(
            "photons",
            "P: photons that one product of two full-scale operands puts on the detector; shot noise of the light \
             that is there",
        )
    }
    .draws_noise()
    .since(2),
    choice(
        "detection",
        DETECTIONS,
        "\"offset\", \"balanced\"",
        "the light that the detector sees: weights shifted into 0..1 (offset), or both complementary ports (balanced)",
    )
    .since(2),
    choice(
        "photon_reference",
        PHOTON_REFERENCES,
        "\"full_scale\", \"mean\"",
        "P is that of a full-scale product (full_scale), or the mean over the row's inputs of the light that enters a \
         product (mean)",
    )
    .since(2),
    level(
        "input_noise_relative",
        "sigma on the inputs behind the DAC, shared by all outputs of the row, as a fraction of the value",
    )
    .between(0.0, 1.0, "0..1")
    .draws_noise()
    .since(2),
    level("input_noise_additive", "the same as a fraction of the DAC's full scale")
        .between(0.0, 1.0, "0..1")
        .draws_noise()
        .since(2),
    count(
        "weight_levels",
        "L_w: the code that is a weight's full scale, in noise_read, photons and output_bound. 0 = L, the largest code",
    )
    .between(0.0, 32_767.0, "0 (L), 1..L, the largest code of weight_bits")
    .since(2),
];

/// The row of the table called `name`.
///
/// # Panics
/// If there is no such row: the names are fixed at compile time.
pub fn parameter(name: &str) -> &'static Parameter {
    PARAMETERS
        .iter()
        .find(|parameter| parameter.name == name)
        .unwrap_or_else(|| panic!("no parameter is called {name}"))
}
