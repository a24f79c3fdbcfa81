//! The noise alone, and the keys of calls without a seed: a process-wide seed and a counter of calls.

use std::sync::{Mutex, PoisonError};

use lumina_kernel::forward::fill_noise;
use lumina_kernel::{NoiseKey, cost};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;

use crate::arrays::Arguments;
use crate::executor::Threads;
use crate::forward::run;
use crate::numbers::Int;
use crate::schema::tier;

const LARGEST: u64 = i64::MAX as u64;

enum Source {
    Unset,
    /// From the operating system, for the process `pid`: a child of a fork draws its own seed.
    System {
        pid: u32,
    },
    Manual,
}

struct State {
    source: Source,
    key: NoiseKey,
}

static STATE: Mutex<State> = Mutex::new(State { source: Source::Unset, key: NoiseKey { seed: 0, stream: 0 } });

/// Restarts the noise of calls without a seed: after it, the same calls draw the same noise.
///
/// Until this function is first called, the seed comes from the operating system.
///
/// Args:
///     seed: 0..2^63-1.
#[pyfunction]
#[pyo3(text_signature = "(seed)")]
pub fn manual_seed(seed: Int) -> PyResult<()> {
    let seed = seed.counter("seed")?;
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    *state = State { source: Source::Manual, key: NoiseKey { seed, stream: 0 } };
    Ok(())
}

/// The key of a call's noise; a fresh one if there is no seed.
pub fn key(seed: Option<&Int>, stream: Option<&Int>) -> PyResult<NoiseKey> {
    match (seed, stream) {
        (Some(seed), stream) => Ok(NoiseKey {
            seed: seed.counter("seed")?,
            stream: stream.map_or(Ok(0), |stream| stream.counter("stream"))?,
        }),
        (None, Some(stream)) => Err(PyValueError::new_err(format!(
            "stream = {stream} would be ignored: without a seed every call draws fresh noise"
        ))),
        (None, None) => fresh(),
    }
}

fn fresh() -> PyResult<NoiseKey> {
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    let pid = std::process::id();
    let reseed = match state.source {
        Source::Unset => true,
        Source::System { pid: owner } => owner != pid,
        Source::Manual => false,
    };
    if reseed {
        let seed = getrandom::u64()
            .map_err(|error| PyOSError::new_err(format!("the operating system gives no random seed: {error}")))?;
        *state = State { source: Source::System { pid }, key: NoiseKey { seed: seed & LARGEST, stream: 0 } };
    }
    let key = state.key;
    state.key.stream = (state.key.stream + 1) & LARGEST;
    Ok(key)
}

/// The standard normals that a call with this seed and stream draws.
///
/// The value at (m, n) depends on seed, stream, m and n alone, not on the tier, the threads or the shape.
///
/// Args:
///     seed: 0..2^63-1.
///     stream: 0..2^63-1.
///     rows: M.
///     columns: N.
///     out: float32 [M, N] to write the result into.
///
/// Returns:
///     eps, float32 [M, N]; this is `out`, if given.
#[pyfunction]
#[pyo3(signature = (seed, stream, rows, columns, out=None))]
pub fn noise<'py>(
    py: Python<'py>,
    seed: Int,
    stream: Int,
    rows: Int,
    columns: Int,
    out: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let key = NoiseKey { seed: seed.counter("seed")?, stream: stream.counter("stream")? };
    let size = |name, value: &Int| value.checked(name, "an integer >= 0", |value| usize::try_from(value).ok());
    let shape = [size("rows", &rows)?, size("columns", &columns)?];
    let result = match out {
        Some(out) => out.clone(),
        // numpy raises its own error if there is not enough memory.
        None => py.import("numpy")?.call_method1("empty", ((shape[0], shape[1]), "float32"))?,
    };
    let mut eps = Arguments::default().write_shaped::<f32>("out", &result, &shape, "(rows, columns)")?;
    let (tier, threads) = (tier()?, Threads::current(py)?);
    let eps = eps.as_slice_mut()?;
    if !eps.is_empty() {
        run(py, cost::noise_ns(tier, eps.len()), || fill_noise(tier, &threads, key, shape[1], eps))?;
    }
    Ok(result)
}
