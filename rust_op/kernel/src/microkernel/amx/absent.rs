//! Processors other than x86-64 have no such tiles: there is no value of these types.

use super::Sums;

/// Permission to use matrix tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tiles {}

impl Tiles {
    pub(crate) fn detect() -> Option<Self> {
        None
    }

    pub(crate) fn configure(self) -> ConfiguredTiles {
        match self {}
    }
}

/// The calling thread's tiles, configured.
pub(crate) enum ConfiguredTiles {}

impl ConfiguredTiles {
    /// # Safety
    /// There is no value to call it on.
    pub(crate) unsafe fn sums(
        &self,
        _codes: *const i8,
        _stride: usize,
        _two: bool,
        _panel: *const u8,
        _steps: usize,
        _sums: &mut Sums,
    ) {
        match *self {}
    }
}
