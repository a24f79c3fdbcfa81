//! The attributes of a node.

use std::fmt;

use lumina_kernel::schema::{Kind, PARAMETERS, Parameter, Place, VERSION, VERSION_ATTRIBUTE};
use lumina_kernel::{Params, Spec};

use super::inputs;
use crate::guard::Failure;
use crate::sys::KernelInfo;

/// The attributes, checked.
pub(super) struct Attributes {
    pub(super) params: Params,
    pub(super) seed: u64,
    pub(super) in_features: Option<usize>,
}

/// The attributes, unchecked.
#[derive(Default)]
struct Raw {
    spec: Spec,
    seed: i64,
    in_features: Option<i64>,
}

/// The value of an attribute.
enum Value {
    Int(i64),
    Float(f32),
    Floats(Vec<f32>),
    String(String),
}

impl Value {
    /// Whether this is the value that the table writes as `text`.
    fn is(&self, text: &str) -> bool {
        match self {
            Value::Int(value) => text.parse() == Ok(*value),
            Value::Float(value) => text.parse() == Ok(*value),
            Value::Floats(values) => matches!(values[..], [value] if text.parse() == Ok(value)),
            Value::String(value) => text == value,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Int(value) => value.fmt(f),
            Value::Float(value) => value.fmt(f),
            Value::Floats(values) => write!(f, "{values:?}"),
            Value::String(value) => write!(f, "{value:?}"),
        }
    }
}

impl Raw {
    /// Sets the attribute called `name`; false if there is none of that name and kind.
    fn set(&mut self, name: &str, value: Value) -> bool {
        let spec = &mut self.spec;
        match (name, value) {
            ("input_bits", Value::Int(value)) => spec.input_bits = value,
            ("weight_bits", Value::Int(value)) => spec.weight_bits = value,
            ("output_bits", Value::Int(value)) => spec.output_bits = value,
            ("input_range", Value::Float(value)) => spec.input_range = value,
            ("output_range", Value::Floats(value)) => spec.output_range = value,
            ("noise_relative", Value::Float(value)) => spec.noise_relative = value,
            ("noise_additive", Value::Float(value)) => spec.noise_additive = value,
            ("noise_shot", Value::Float(value)) => spec.noise_shot = value,
            ("bias_stage", Value::String(value)) => spec.bias_stage = value,
            ("tile_features", Value::Int(value)) => spec.tile_features = value,
            ("output_bound", Value::Float(value)) => spec.output_bound = value,
            ("noise_read", Value::Float(value)) => spec.noise_read = value,
            ("photons", Value::Float(value)) => spec.photons = value,
            ("detection", Value::String(value)) => spec.detection = value,
            ("photon_reference", Value::String(value)) => spec.photon_reference = value,
            ("input_noise_relative", Value::Float(value)) => spec.input_noise_relative = value,
            ("input_noise_additive", Value::Float(value)) => spec.input_noise_additive = value,
            ("weight_levels", Value::Int(value)) => spec.weight_levels = value,
            ("seed", Value::Int(value)) => self.seed = value,
            ("in_features", Value::Int(value)) => self.in_features = Some(value),
            _ => return false,
        }
        true
    }
}

/// The rows of the table that are attributes.
fn rows() -> impl Iterator<Item = &'static Parameter> {
    PARAMETERS.iter().filter(|row| row.place == Place::Attribute)
}

/// Reads and checks the attributes of a node.
pub(super) fn read(info: &KernelInfo<'_>) -> Result<Attributes, Failure> {
    let version = info.int(VERSION_ATTRIBUTE);
    let allowed = format!("1..{VERSION}");
    let version =
        check_version(version.map_err(|failure| mistyped(VERSION_ATTRIBUTE, Kind::Int, &allowed, &failure))?)?;
    let mut raw = Raw::default();
    for row in rows() {
        let value = match row.kind {
            Kind::Int => info.int(row.name).map(|value| value.map(Value::Int)),
            Kind::Float => info.float(row.name).map(|value| value.map(Value::Float)),
            Kind::Floats => info.floats(row.name).map(|value| value.map(Value::Floats)),
            Kind::String => info.string(row.name).map(|value| value.map(Value::String)),
        };
        let value = value.map_err(|failure| mistyped(row.name, row.kind, row.allowed, &failure))?;
        if let Some(value) = &value
            && version < row.since
            && !value.is(row.default)
        {
            return Err(Failure::invalid(format!(
                "attribute {} = {value}: allowed is {} in a node whose {VERSION_ATTRIBUTE} is {version}; it needs \
                 {VERSION_ATTRIBUTE} {}, by which older releases know that they lack it",
                row.name, row.default, row.since
            )));
        }
        if let Some(value) = value
            && !raw.set(row.name, value)
        {
            return Err(Failure::internal(format!("attribute {} is in the table but not read", row.name)));
        }
    }
    Ok(Attributes {
        params: Params::new(&raw.spec).map_err(inputs::failure)?,
        seed: at_least("seed", raw.seed, 0)?,
        in_features: raw.in_features.map(|k| at_least("in_features", k, 1)).transpose()?,
    })
}

fn mistyped(name: &str, kind: Kind, allowed: &str, failure: &Failure) -> Failure {
    let Failure { message, .. } = failure;
    Failure::invalid(format!("attribute {name} is not of type {}: allowed is {allowed} ({message})", kind.name()))
}

/// The version that a node was made for. Refuses one that this library does not have, since its other attributes may
/// mean anything.
fn check_version(version: Option<i64>) -> Result<i32, Failure> {
    let version = version.unwrap_or(1);
    match i32::try_from(version) {
        Ok(version @ 1..=VERSION) => Ok(version),
        _ => Err(Failure::invalid(format!(
            "attribute {VERSION_ATTRIBUTE} = {version}: LuminaKernel {} has versions 1 to {VERSION} of the operator; a \
             file of a later version needs a newer LuminaKernel",
            lumina_kernel::VERSION
        ))),
    }
}

fn at_least<T: TryFrom<i64>>(name: &str, value: i64, minimum: i64) -> Result<T, Failure> {
    T::try_from(value).ok().filter(|_| value >= minimum).ok_or_else(|| {
        let allowed = lumina_kernel::schema::parameter(name).allowed;
        Failure::invalid(format!("attribute {name} = {value}: allowed is {allowed}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attribute_of_the_table_is_read() {
        for row in rows() {
            let value = match row.kind {
                Kind::Int => Value::Int(1),
                Kind::Float => Value::Float(1.0),
                Kind::Floats => Value::Floats(vec![1.0]),
                Kind::String => Value::String("digital".into()),
            };
            assert!(Raw::default().set(row.name, value), "{}", row.name);
        }
    }
}
