//! ONNX Runtime's C API, version 17 (ONNX Runtime 1.17), as safe Rust.
//!
//! The table of functions is read through a raw pointer, one entry at a time: an older host's table is
//! shorter than the struct, so no reference to the whole of it may exist. Enums that come from a host
//! are read as integers, since a newer host may have more variants.

mod context;
mod custom_op;
#[cfg(test)]
pub(crate) mod fake;
mod info;
mod registration;
mod shape;
mod tensor;

use std::ffi::{CStr, CString, c_char};

use ort_sys::{OrtApi, OrtStatusPtr};

pub(crate) use context::KernelContext;
pub(crate) use custom_op::{CustomOp, Input};
pub(crate) use info::KernelInfo;
pub use registration::RegisterCustomOps;
pub(crate) use registration::Registration;
pub(crate) use shape::{Dimension, ShapeContext};
pub(crate) use tensor::{ElementType, Tensor};

use crate::guard::Failure;

/// The version of the C API to request: that of ONNX Runtime 1.17, which all newer releases serve.
pub(crate) const API_VERSION: u32 = ort_sys::ORT_API_VERSION;
const _: () = assert!(API_VERSION == 17);

/// The host's table of functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Api(*const OrtApi);

// SAFETY: the table is constant and lives as long as the host; its functions may be called from any thread.
unsafe impl Send for Api {}
// SAFETY: as above.
unsafe impl Sync for Api {}

/// Calls a function of the table that returns a status: `call!(api, Name(arguments))?`. It must be used
/// inside `unsafe`: the arguments have to be what the function's documentation requires.
macro_rules! call {
    ($api:expr, $name:ident($($argument:expr),* $(,)?)) => {{
        let api: $crate::sys::Api = $api;
        api.check(((*api.table()).$name)($($argument),*))
    }};
}
use call;

impl Api {
    /// # Safety
    /// - `table` comes from `OrtApiBase::GetApi` and is not NULL.
    unsafe fn new(table: *const OrtApi) -> Self {
        Api(table)
    }

    fn table(self) -> *const OrtApi {
        self.0
    }

    /// Turns a status into a result and releases it.
    fn check(self, status: OrtStatusPtr) -> Result<(), Failure> {
        if status.0.is_null() {
            return Ok(());
        }
        // SAFETY: the status is not NULL, was just created by this host, and is released once, after its
        // message has been copied.
        let message = unsafe {
            let message = string(((*self.0).GetErrorMessage)(status.0));
            ((*self.0).ReleaseStatus)(status.0);
            message
        };
        Err(Failure::internal(message))
    }

    /// The status that the host receives: NULL for success.
    fn status(self, result: Result<(), Failure>) -> OrtStatusPtr {
        match result {
            Ok(()) => OrtStatusPtr::default(),
            Err(failure) => {
                let message = c_string(&failure.message);
                // SAFETY: CreateStatus is the first entry of every version's table; it copies the message.
                unsafe { ((*self.0).CreateStatus)(failure.code, message.as_ptr()) }
            }
        }
    }
}

/// A C string; a NUL inside `text` is written as `\0`.
fn c_string(text: &str) -> CString {
    CString::new(text.replace('\0', "\\0")).expect("NULs were replaced")
}

/// A copy of a C string; empty for NULL.
///
/// # Safety
/// - `text` is NULL or ends in a NUL.
unsafe fn string(text: *const c_char) -> String {
    if text.is_null() {
        String::new()
    } else {
        // SAFETY: by this function's contract.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }
}

/// A string from a function that, given NULL, reports how many bytes it needs, including the final NUL. The string may
/// contain other NULs.
fn read_string(read: impl Fn(*mut c_char, *mut usize) -> Result<(), Failure>) -> Result<String, Failure> {
    let mut size = 0;
    read(std::ptr::null_mut(), &mut size)?;
    let mut bytes = vec![0u8; size];
    if size > 0 {
        read(bytes.as_mut_ptr().cast(), &mut size)?;
    }
    bytes.pop();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use ort_sys::OrtErrorCode;

    use super::*;
    use crate::guard::guard;

    fn through_a_host(result: Result<(), Failure>) -> Option<(OrtErrorCode, String)> {
        // SAFETY: the table has CreateStatus.
        fake::take(unsafe { Api::new(fake::table()) }.status(result))
    }

    #[test]
    fn success_is_a_null_status() {
        assert_eq!(through_a_host(Ok(())), None);
    }

    #[test]
    fn a_panic_becomes_a_status() {
        let (code, message) = through_a_host(guard(|| panic!("the laser is off"))).expect("a status");
        assert_eq!(code, OrtErrorCode::ORT_FAIL);
        assert!(message.ends_with("the laser is off"), "{message}");
    }

    #[test]
    fn a_failure_becomes_a_status_with_its_code_and_message() {
        let status = through_a_host(Err(Failure::invalid("K = 0\0!"))).expect("a status");
        assert_eq!(status, (OrtErrorCode::ORT_INVALID_ARGUMENT, "K = 0\\0!".to_owned()));
    }
}
