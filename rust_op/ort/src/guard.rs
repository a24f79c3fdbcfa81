//! Nothing but a status leaves this library: errors are [`Failure`]s, and a panic becomes one.

use std::panic::{AssertUnwindSafe, catch_unwind};

use lumina_kernel::error::of_panic;
use ort_sys::OrtErrorCode;

/// Why a call from ONNX Runtime failed; turned into an `OrtStatus` on the way out.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Failure {
    /// The class of the error, which hosts map to an exception.
    pub(crate) code: OrtErrorCode,
    /// The sentence that the user reads.
    pub(crate) message: String,
}

impl Failure {
    /// The model, or what was fed to it, is not allowed.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Failure { code: OrtErrorCode::ORT_INVALID_ARGUMENT, message: message.into() }
    }

    /// Something went wrong that is not the model's fault.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Failure { code: OrtErrorCode::ORT_FAIL, message: message.into() }
    }

    /// The same failure, with `context` before its message.
    pub(crate) fn within(self, context: &str) -> Self {
        Failure { message: format!("{context}{}", self.message), ..self }
    }
}

/// Runs `body` and turns a panic in it into a failure, since none may unwind into a C++ caller.
pub(crate) fn guard<T>(body: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| Err(Failure::internal(of_panic(&*panic))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_failure_that_says_why() {
        for body in [(|| panic!("the laser is off")) as fn() -> Result<(), Failure>, || {
            panic!("the laser is {}", String::from("off"))
        }] {
            let failure = guard(body).unwrap_err();
            assert_eq!(failure.code, OrtErrorCode::ORT_FAIL);
            assert!(failure.message.contains("internal error"), "{}", failure.message);
            assert!(failure.message.ends_with("the laser is off"), "{}", failure.message);
        }
        let failure = guard(|| -> Result<(), Failure> { std::panic::panic_any(7) }).unwrap_err();
        assert!(failure.message.ends_with("a panic without a message"), "{}", failure.message);
    }

    #[test]
    fn results_pass_through() {
        assert_eq!(guard(|| Ok(7)), Ok(7));
        let failure = Failure::invalid("no");
        assert_eq!(guard(|| Err::<(), _>(failure.clone())), Err(failure));
    }
}
