//! `lumina::OpticalLinear` for ONNX Runtime 1.17 and newer.
//!
//! A host registers the library on its session options (`register_custom_ops_library` in Python,
//! `RegisterCustomOpsLibrary` in C, C++ and C#), which calls the one exported symbol,
//! [`RegisterCustomOps`]. Registering it again on the same options changes nothing.
//!
//! - [`optical_linear`]: the operator: checks a node's attributes and inputs, and runs it.
//! - `executor`: the kernel's tasks on the session's own thread pool.
//! - `sharing`: which calls are worth the pool's other threads, by trying.
//! - `guard`: errors and panics become an `OrtStatus`.
//! - `sys`: ONNX Runtime's C API as safe Rust; the only place with `unsafe`.

mod executor;
mod guard;
pub mod optical_linear;
mod sharing;
#[allow(unsafe_code, reason = "the boundary to a C API")]
mod sys;

use guard::Failure;
use lumina_kernel::schema;
use optical_linear::OpticalLinear;
pub use sys::RegisterCustomOps;

/// Registers the operators of this library.
fn register(registration: &sys::Registration<'_>) -> Result<(), Failure> {
    registration.add::<OpticalLinear>(schema::DOMAIN)
}
