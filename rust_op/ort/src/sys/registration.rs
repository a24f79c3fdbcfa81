//! The symbol that hosts call, and what it does with their session options.

use std::ffi::CStr;
use std::ptr;
use std::sync::Mutex;

use ort_sys::{OrtApiBase, OrtCustomOpDomain, OrtErrorCode, OrtSessionOptions, OrtStatusPtr};

use super::custom_op::{CustomOp, Table};
use super::{API_VERSION, Api, c_string, call, read_string, string};
use crate::guard::{Failure, guard};

/// An entry of the session options that marks them as having these operators. A host accepts a domain
/// twice and fails when a session is created, so the second registration adds nothing. The value of the
/// entry is the options' address, which distinguishes a clone from its original.
const REGISTERED: &CStr = c"lumina.custom_ops_registered";

/// The first minor version of ONNX Runtime 1 whose `CloneSessionOptions` copies the domains (determined by
/// trial); earlier ones copy only the entries.
const CLONES_KEEP_DOMAINS: u32 = 22;

/// Adds the operators of this library to `options`, unless they are there already. Returns NULL, or
/// a status that the host releases.
///
/// # Safety
/// - `options` and `base` belong to one ONNX Runtime and are alive during the call. Hosts call this for the
///   user, who passes the library to `RegisterCustomOpsLibrary`.
#[unsafe(no_mangle)]
#[allow(non_snake_case, reason = "the name that ONNX Runtime looks for")]
pub unsafe extern "C" fn RegisterCustomOps(options: *mut OrtSessionOptions, base: *const OrtApiBase) -> OrtStatusPtr {
    if base.is_null() {
        return OrtStatusPtr(ptr::null_mut());
    }
    // SAFETY: the host's base; GetApi returns NULL for a version that it does not serve, and always serves 1.
    let (api, oldest, version) = unsafe {
        let base = &*base;
        ((base.GetApi)(API_VERSION), (base.GetApi)(1), string((base.GetVersionString)()))
    };
    if api.is_null() {
        let too_old = format!(
            "LuminaKernel {} needs ONNX Runtime 1.{API_VERSION} or newer; this process loaded {version}",
            lumina_kernel::VERSION
        );
        if oldest.is_null() {
            eprintln!("{too_old}");
            return OrtStatusPtr(ptr::null_mut());
        }
        // SAFETY: not NULL, from GetApi; only CreateStatus is called, which version 1 has.
        return unsafe { Api::new(oldest) }
            .status(Err(Failure { code: OrtErrorCode::ORT_NOT_IMPLEMENTED, message: too_old }));
    }
    // SAFETY: not NULL, from GetApi.
    let api = unsafe { Api::new(api) };
    api.status(guard(|| {
        if options.is_null() {
            return Err(Failure::invalid("RegisterCustomOps: options = NULL: allowed are session options"));
        }
        let registration = Registration { api, options, version: &version };
        if registration.is_done()? {
            return Ok(());
        }
        crate::register(&registration)?;
        registration.mark_done()
    }))
}

/// Session options that ask for the operators of this library.
pub(crate) struct Registration<'a> {
    api: Api,
    options: *mut OrtSessionOptions,
    version: &'a str,
}

/// A host's domain, which lives as long as the process: sessions point to it, and all of them share one.
struct Domain {
    api: Api,
    version: String,
    name: &'static str,
    domain: *mut OrtCustomOpDomain,
}

// SAFETY: the domain is not changed after its creation, and hosts only read it.
unsafe impl Send for Domain {}

static DOMAINS: Mutex<Vec<Domain>> = Mutex::new(Vec::new());

impl Registration<'_> {
    /// Adds `K` as the operator of the domain called `name`.
    pub(crate) fn add<K: CustomOp>(&self, name: &'static str) -> Result<(), Failure> {
        let domain = self.domain::<K>(name)?;
        // SAFETY: the options are alive, and the domain lives as long as the process.
        unsafe { call!(self.api, AddCustomOpDomain(self.options, domain)) }
    }

    fn is_done(&self) -> Result<bool, Failure> {
        let mut known = 0;
        // SAFETY: the options are alive.
        unsafe { call!(self.api, HasSessionConfigEntry(self.options, REGISTERED.as_ptr(), &mut known))? };
        if known == 0 {
            return Ok(false);
        }
        let registered = read_string(|out, size| {
            // SAFETY: the options are alive; `out` is NULL or has `size` bytes.
            unsafe { call!(self.api, GetSessionConfigEntry(self.options, REGISTERED.as_ptr(), out, size)) }
        })?;
        Ok(registered == self.address() || clones_keep_domains(self.version))
    }

    fn mark_done(&self) -> Result<(), Failure> {
        let address = c_string(&self.address());
        // SAFETY: the options are alive; the strings are copied.
        unsafe { call!(self.api, AddSessionConfigEntry(self.options, REGISTERED.as_ptr(), address.as_ptr())) }
    }

    fn address(&self) -> String {
        format!("{:p}", self.options)
    }

    /// The domain of this host, created on first use. A process can hold several ONNX Runtimes, each with
    /// its own functions and layout.
    fn domain<K: CustomOp>(&self, name: &'static str) -> Result<*mut OrtCustomOpDomain, Failure> {
        let mut domains = DOMAINS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(known) = domains.iter().find(|d| d.api == self.api && d.version == self.version && d.name == name) {
            return Ok(known.domain);
        }
        let mut domain = ptr::null_mut();
        let c_name = c_string(name);
        // SAFETY: the name is copied; the table is leaked, since the host points to it from then on; a domain
        // that could not be filled is released before anything else refers to it.
        unsafe {
            call!(self.api, CreateCustomOpDomain(c_name.as_ptr(), &mut domain))?;
            let table: &'static Table = Box::leak(Box::new(Table::new::<K>(self.api)));
            if let Err(failure) = call!(self.api, CustomOpDomain_Add(domain, table.op())) {
                ((*self.api.table()).ReleaseCustomOpDomain)(domain);
                return Err(failure);
            }
        }
        domains.push(Domain { api: self.api, version: self.version.to_owned(), name, domain });
        Ok(domain)
    }
}

fn clones_keep_domains(version: &str) -> bool {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().ok());
    match (parts.next().flatten(), parts.next().flatten()) {
        (Some(1), Some(minor)) => minor >= CLONES_KEEP_DOMAINS,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake;
    use super::*;
    use ort_sys::OrtApi;
    use std::ffi::c_char;

    unsafe extern "system" fn only_version_one(version: u32) -> *const OrtApi {
        if version == 1 { fake::table() } else { ptr::null() }
    }

    unsafe extern "system" fn every_version(_: u32) -> *const OrtApi {
        fake::table()
    }

    unsafe extern "system" fn version_string() -> *const c_char {
        c"1.16.3".as_ptr()
    }

    #[test]
    fn a_host_that_is_too_old_is_told_so() {
        let base = OrtApiBase { GetApi: only_version_one, GetVersionString: version_string };
        // SAFETY: the options are not read.
        let status = fake::take(unsafe { RegisterCustomOps(ptr::null_mut(), &base) });
        let message = format!(
            "LuminaKernel {} needs ONNX Runtime 1.17 or newer; this process loaded 1.16.3",
            lumina_kernel::VERSION
        );
        assert_eq!(status, Some((OrtErrorCode::ORT_NOT_IMPLEMENTED, message)));
    }

    #[test]
    fn options_that_are_null_are_an_error() {
        let base = OrtApiBase { GetApi: every_version, GetVersionString: version_string };
        // SAFETY: NULL is refused.
        let (code, message) = fake::take(unsafe { RegisterCustomOps(ptr::null_mut(), &base) }).expect("a status");
        assert_eq!(code, OrtErrorCode::ORT_INVALID_ARGUMENT);
        assert!(message.starts_with("RegisterCustomOps: options = NULL"), "{message}");
    }

    #[test]
    fn versions_whose_clones_keep_domains() {
        for (version, expected) in
            [("1.17.3", false), ("1.21.1", false), ("1.22.0", true), ("1.32.0-dev", true), ("2.0.0", true), ("", true)]
        {
            assert_eq!(clones_keep_domains(version), expected, "{version}");
        }
    }
}
