//! Runs a model with `lumina::OpticalLinear` nodes in ONNX Runtime, from Rust.
//!
//!     ORT_DYLIB_PATH=libonnxruntime.so.1.NN.N rust_host liblumina_ort.so model.onnx [runs [input]]
//!
//! The one line that brings the operator is the call of `with_operator_library`. The model's input and its first output
//! are float32. `input` is a file of the input's values, in the machine's own float32 format; a dimension that the model
//! leaves open follows from the number of values. Without a file, open dimensions are 2 and element i is
//! (i mod 7 - 3) / 4. Each run prints its output on a line; with noise on they differ from run to run, and repeat in a
//! fresh process. Exits with status 1 after an error, with 2 if it was called wrongly.

use std::error::Error;
use std::process::ExitCode;
use std::{env, fs};

use ort::logging::LogLevel;
use ort::session::Session;
use ort::value::{TensorElementType, TensorRef, ValueType};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let runs = arguments.get(2).map_or(Ok(1), |runs| runs.parse::<u32>());
    let (2..=4, Ok(runs @ 1..)) = (arguments.len(), runs) else {
        eprintln!("usage: rust_host liblumina_ort.so model.onnx [runs, 1 or more [input]]");
        return ExitCode::from(2);
    };
    match run(&arguments[0], &arguments[1], runs, arguments.get(3)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rust_host: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(library: &str, model: &str, runs: u32, input_file: Option<&String>) -> Result<()> {
    let runtime = env::var("ORT_DYLIB_PATH").unwrap_or_else(|_| "libonnxruntime.so".to_owned());
    ort::init_from(runtime)
        .map_err(|error| format!("{error} (the environment variable ORT_DYLIB_PATH names ONNX Runtime's library)"))?
        .commit();
    eprintln!("{}", ort::info());

    let mut session =
        Session::builder()?.with_log_level(LogLevel::Fatal)?.with_operator_library(library)?.commit_from_file(model)?;

    let [input] = session.inputs() else {
        return Err(format!("the model has {} inputs, and this program gives one", session.inputs().len()).into());
    };
    let ValueType::Tensor { ty: TensorElementType::Float32, shape, .. } = input.dtype() else {
        return Err(format!("the input of the model is not float32 but {}", input.dtype()).into());
    };
    let mut shape = shape.to_vec();
    let values = match input_file {
        Some(path) => input_from_file(path, &mut shape)?,
        None => made_up_input(&mut shape),
    };

    for _ in 0..runs {
        let outputs = session.run(ort::inputs![TensorRef::from_array_view((shape.as_slice(), values.as_slice()))?])?;
        let (_, values) = outputs[0].try_extract_tensor::<f32>()?;
        let line: Vec<String> = values.iter().map(f32::to_string).collect();
        println!("{}", line.join(" "));
    }
    Ok(())
}

fn made_up_input(shape: &mut [i64]) -> Vec<f32> {
    for size in shape.iter_mut().filter(|size| **size < 0) {
        *size = 2;
    }
    (0..shape.iter().product()).map(|i: i64| (i % 7 - 3) as f32 / 4.0).collect()
}

fn input_from_file(path: &str, shape: &mut [i64]) -> Result<Vec<f32>> {
    let bytes = fs::read(path).map_err(|error| format!("{path}: {error}"))?;
    let (values, []) = bytes.as_chunks() else {
        return Err(format!("{path} has {} bytes, and a float32 value has 4", bytes.len()).into());
    };
    let values: Vec<f32> = values.iter().map(|value| f32::from_ne_bytes(*value)).collect();

    let count = values.len() as i64;
    let known: i64 = shape.iter().filter(|size| **size >= 0).product();
    let open: Vec<&mut i64> = shape.iter_mut().filter(|size| **size < 0).collect();
    match <[&mut i64; 1]>::try_from(open) {
        Ok([open]) if count > 0 && known > 0 && count % known == 0 => *open = count / known,
        Ok(_) => return Err(format!("{path} has {count} values, and the model takes a multiple of {known}").into()),
        Err(open) if !open.is_empty() => {
            return Err(format!("{path}: the model leaves several dimensions of its input open").into());
        }
        Err(_) if count != known => {
            return Err(format!("{path} has {count} values, and the model takes {known}").into());
        }
        Err(_) => {}
    }
    Ok(values)
}
