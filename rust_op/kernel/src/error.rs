//! Errors: one variant per cause. A message names the argument, what it was given and what is allowed.

use std::any::Any;
use std::fmt;

/// Why a layer could not be built or run.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// An argument has a value that is not allowed.
    Value {
        /// The argument.
        name: &'static str,
        /// The value it was given.
        value: String,
        /// What would have been allowed.
        allowed: String,
    },
    /// An argument has the wrong number of elements.
    Length {
        /// The argument.
        name: &'static str,
        /// How many elements it has.
        length: usize,
        /// How many are allowed, and why.
        allowed: String,
    },
    /// An element of an array is not allowed.
    Element {
        /// The array.
        name: &'static str,
        /// The position of the element, one index per dimension.
        index: Vec<usize>,
        /// The element.
        value: String,
        /// What would have been allowed.
        allowed: &'static str,
    },
    /// A row of an array changed between two reads of it.
    Changed {
        /// The array.
        name: &'static str,
        /// The row.
        row: usize,
    },
    /// A parameter is set although others make it meaningless.
    Ignored {
        /// The parameter.
        name: &'static str,
        /// Its value.
        value: String,
        /// Why nothing would read it.
        because: &'static str,
    },
    /// The requested instruction set is not available.
    Tier {
        /// Its name, or whatever was given instead of one.
        name: String,
        /// What this processor has.
        available: String,
    },
}

impl Error {
    pub(crate) fn value(name: &'static str, value: impl fmt::Display, allowed: impl Into<String>) -> Self {
        Error::Value { name, value: value.to_string(), allowed: allowed.into() }
    }

    pub(crate) fn element(name: &'static str, index: Vec<usize>, value: f32, allowed: &'static str) -> Self {
        Error::Element { name, index, value: value.to_string(), allowed }
    }

    /// The argument at fault.
    pub fn argument(&self) -> &str {
        match self {
            Error::Value { name, .. }
            | Error::Length { name, .. }
            | Error::Element { name, .. }
            | Error::Changed { name, .. }
            | Error::Ignored { name, .. } => name,
            Error::Tier { .. } => "LUMINA_ISA",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Value { name, value, allowed } => write!(f, "{name} = {value}: allowed is {allowed}"),
            Error::Length { name, length, allowed } => {
                write!(f, "{name} has {length} elements: allowed is {allowed}")
            }
            Error::Element { name, index, value, allowed } => {
                write!(f, "{name}{index:?} = {value}: allowed is {allowed}")
            }
            Error::Changed { name, row } => {
                write!(
                    f,
                    "{name}[{row}] changed while it was read: allowed is memory that nobody writes to during the call"
                )
            }
            Error::Ignored { name, value, because } => {
                write!(f, "{name} = {value} would be ignored: {because}")
            }
            Error::Tier { name, available } => {
                write!(f, "LUMINA_ISA = {name}: this processor has {available}")
            }
        }
    }
}

impl std::error::Error for Error {}

/// The message for a user when the library panics, which is always its own fault.
pub fn of_panic(panic: &(dyn Any + Send)) -> String {
    let reason = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a message");
    format!("internal error in LuminaKernel {}, please report it: {reason}", crate::VERSION)
}
