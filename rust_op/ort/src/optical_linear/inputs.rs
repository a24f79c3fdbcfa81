//! The inputs of a node: which are required, and their types and shapes.

use lumina_kernel::schema::{PARAMETERS, Place};
use lumina_kernel::{Error, Layer, Tier, WeightSource, Weights, pack};

use super::attributes::Attributes;
use super::{B, W, W_SCALE, X};
use crate::executor::Creation;
use crate::guard::Failure;
use crate::sys::{ElementType, KernelInfo, Tensor};

/// A kernel's error in the words of a model: `attribute seed = ...`, `input W[0, 1] = ...`.
pub(super) fn failure(error: Error) -> Failure {
    let message = error.to_string();
    let argument = error.argument();
    let attribute = |name| PARAMETERS.iter().any(|row| row.name == name && row.place == Place::Attribute);
    let renamed = |name: &str| format!("input {name}{}", message.strip_prefix(argument).unwrap_or(&message));
    Failure::invalid(match argument {
        "weight" => renamed("W"),
        "weight_scale" => renamed("W_scale"),
        "bias" => renamed("B"),
        name if attribute(name) => format!("attribute {message}"),
        name if name.ends_with(" of weight)") => format!("input W: {message}"),
        _ => message,
    })
}

/// Checks what is known about X: its type, that it has a last dimension, and that this is K.
pub(super) fn check_x(element: ElementType, dims: &[i64], k: usize) -> Result<(), Failure> {
    let what = match dims.last() {
        _ if element != ElementType::FLOAT => format!("type {element}"),
        None => "no dimension (it is a scalar)".to_owned(),
        Some(last) if *last >= 0 && *last != k as i64 => format!("shape {}", shape(dims)),
        Some(_) => return Ok(()),
    };
    Err(Failure::invalid(format!("input X has {what}: allowed is float32 [..., K] with K = {k}")))
}

/// Checks what the model says about X.
fn check_x_type(info: &KernelInfo<'_>, k: usize) -> Result<(), Failure> {
    match info.input_type(X)? {
        // An unknown shape has no dimensions, like that of a scalar: the first run tells them apart.
        Some(x) if x.dims.is_empty() => check_x(x.element, &[-1], k),
        Some(x) => check_x(x.element, &x.dims, k),
        None => Err(Failure::invalid(format!("input X is no tensor: allowed is float32 [..., K] with K = {k}"))),
    }
}

/// Reads the layer of a node.
pub(super) fn read(info: &KernelInfo<'_>, attributes: &Attributes, tier: Tier) -> Result<Layer, Failure> {
    let params = &attributes.params;
    let w = constant(info, W, "W")?;
    let (n, k) = weight_shape(&w, params.weight_bits, attributes.in_features)?;
    params.check_shape(n, k).map_err(failure)?;
    check_x_type(info, k)?;
    let scale = vector(info, W_SCALE, "W_scale", n)?;
    if params.weight_bits == 0
        && let Some(bad) = scale.iter().position(|s| *s != 1.0)
    {
        return Err(Failure::invalid(format!(
            "input W_scale[{bad}] = {}: allowed is 1 where weight_bits is 0 (W is analog)",
            scale[bad]
        )));
    }
    let scale = (params.weight_bits != 0).then_some(&scale[..]);
    let (floats, codes, packed) = (w.data::<f32>()?, w.data::<i8>()?, w.data::<u8>()?);
    let source = match (&floats, &codes, &packed) {
        (Some(floats), ..) => WeightSource::F32(floats),
        (_, Some(codes), _) => WeightSource::Codes(codes),
        (.., Some(packed)) => WeightSource::Packed(packed),
        _ => return Err(Failure::internal("input W: its elements cannot be read")),
    };
    let weights = Weights::new(tier, &Creation, params, (n, k), source, scale, None).map_err(failure)?;
    let bias =
        if info.input_count()? > B && !info.input_name(B)?.is_empty() { Some(vector(info, B, "B", n)?) } else { None };
    Layer::new(weights, bias.as_deref()).map_err(failure)
}

/// N and K, from the stored form of W.
fn weight_shape(w: &Tensor<'_>, bits: u32, in_features: Option<usize>) -> Result<(usize, usize), Failure> {
    let [n, columns] = **w.dims() else {
        return Err(Failure::invalid(format!(
            "input W has shape {}: allowed is [N, K], or [N, ceil(K*b/8)] where it is packed",
            shape(w.dims())
        )));
    };
    let (n, columns) = (n as usize, columns as usize);
    let (allowed, fits) = match w.element() {
        ElementType::FLOAT => ("0..16", true),
        ElementType::INT8 => ("1..8 where W is codes in int8", (1..=8).contains(&bits)),
        ElementType::UINT8 => ("1, 2 or 4 where W is packed in uint8", pack::PACKED_BITS.contains(&bits)),
        other => {
            return Err(Failure::invalid(format!(
                "input W has type {other}: allowed are float32, int8 codes (weight_bits 1..8) and packed uint8 \
                 (weight_bits 1, 2, 4)"
            )));
        }
    };
    if !fits {
        return Err(Failure::invalid(format!("attribute weight_bits = {bits}: allowed is {allowed}")));
    }
    if w.element() != ElementType::UINT8 {
        return match in_features {
            Some(k) if k != columns => Err(Failure::invalid(format!(
                "attribute in_features = {k}: allowed is {columns}, the columns of W {}, or none",
                shape(w.dims())
            ))),
            _ => Ok((n, columns)),
        };
    }
    let k = in_features
        .ok_or_else(|| Failure::invalid("attribute in_features is missing: it must be K where W is packed in uint8"))?;
    let bytes = pack::packed_row_bytes(bits, k);
    if bytes == columns {
        Ok((n, k))
    } else {
        Err(Failure::invalid(format!(
            "input W has shape {}: allowed is [N, ceil(K*b/8)] = [N, {bytes}] with attributes in_features K = {k}, \
             weight_bits b = {bits}",
            shape(w.dims())
        )))
    }
}

/// Input `index`, which must be a constant of the model.
fn constant<'a>(info: &KernelInfo<'a>, index: usize, name: &str) -> Result<Tensor<'a>, Failure> {
    info.constant_input(index)?.ok_or_else(|| {
        Failure::invalid(format!(
            "input {name} is not constant: allowed is an initializer that is not a graph input as well, before ONNX \
             Runtime 1.29 one of the node's own graph"
        ))
    })
}

/// Input `index`, f32 `[N]`.
fn vector(info: &KernelInfo<'_>, index: usize, name: &str, n: usize) -> Result<Vec<f32>, Failure> {
    let tensor = constant(info, index, name)?;
    match tensor.data::<f32>()? {
        Some(data) if **tensor.dims() == [n as i64] => Ok(data.into_owned()),
        _ => Err(Failure::invalid(format!(
            "input {name} is {} {}: allowed is float32 [{n}], one for each output",
            tensor.element(),
            shape(tensor.dims())
        ))),
    }
}

/// A shape in the usual notation: `[?, 3]`.
fn shape(dims: &[i64]) -> String {
    let dims: Vec<String> = dims.iter().map(|dim| if *dim < 0 { "?".to_owned() } else { dim.to_string() }).collect();
    format!("[{}]", dims.join(", "))
}
