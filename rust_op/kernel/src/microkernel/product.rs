//! Rows times panels: which tile runs on what, and where its results go.

use std::ops::Range;

use super::buffer::Buffer;
use super::isa::{Isa, Vectorized};
use super::tile::float::{FloatRows, float_panel};
use super::tile::int::{IntPanel, IntRows, int_panel, unpack_panel};
use super::tile::target::{SharedRows, Target};
use super::tile::{BLOCK_BYTES, PANEL, Scaling};
use crate::executor::{Executor, run_each};
use crate::weights::{Panels, Weights};

/// Rows up to which packed panels are read as they are; for more, unpacking once pays. Where sums of 16 bits make
/// the products cheap ([`Isa::SMALL_SUMS`]), it pays earlier.
const PACKED_ROWS: usize = 24;
const PACKED_ROWS_OF_SMALL_SUMS: usize = 8;

/// Bytes of weights that a core's own caches hold, about. To fetch what is there already costs more than it saves.
const NEAR_BYTES: usize = 3 << 19;

/// Rows of X as the product reads them.
#[derive(Clone, Copy)]
pub(crate) enum Staged<'a> {
    Int(IntRows<'a>),
    Float(FloatRows<'a>),
}

/// One product: rows of X, weights, bias.
#[derive(Clone, Copy)]
pub(crate) struct Product<'a> {
    pub(crate) weights: &'a Weights,
    /// Filled up to whole panels; zeros where the bias is digital or absent.
    pub(crate) bias: &'a [f32],
    pub(crate) rows: Staged<'a>,
    /// s_x of each row.
    pub(crate) x_step: &'a [f32],
    /// Whether the panels are taken from the last to the first. Calls that take turns at it find in the cache what the
    /// one before has read last; in one order each would find the beginning gone.
    pub(crate) backwards: bool,
}

impl Product<'_> {
    /// z of all rows in the columns of one panel.
    ///
    /// # Safety
    /// `target` holds `x_step.len()` rows.
    #[inline(always)]
    unsafe fn panel<S: Isa>(&self, isa: S, panel: usize, unpacked: &mut Option<Buffer<u8>>, target: Target) {
        let k = self.weights.k();
        let scaling = Scaling {
            x_step: self.x_step,
            weight_scale: self.weights.panel_scale(panel),
            bias: &self.bias.as_chunks::<PANEL>().0[panel],
        };
        match (self.weights.panels(), &self.rows) {
            (Panels::Int { storage, bytes }, Staged::Int(rows)) => {
                let size = storage.panel_bytes(k);
                let fetch = bytes.as_slice().len() > NEAR_BYTES;
                let packed = &bytes.as_slice()[panel * size..(panel + 1) * size];
                let groups = k.div_ceil(4);
                let unpack = storage.bits < 8
                    && self.x_step.len() > if S::SMALL_SUMS { PACKED_ROWS_OF_SMALL_SUMS } else { PACKED_ROWS };
                let bytes = if unpack {
                    let unpacked = unpacked.get_or_insert_with(|| Buffer::new(groups * BLOCK_BYTES));
                    unpack_panel(isa, *storage, packed, groups, unpacked.as_mut_slice());
                    unpacked.as_slice()
                } else {
                    packed
                };
                // Next is the panel at higher addresses, or at lower ones.
                let next = if self.backwards { packed.as_ptr().wrapping_sub(size) } else { packed.as_ptr_range().end };
                let panel = IntPanel { storage: *storage, unpacked: unpack, bytes, groups, fetch, next };
                // SAFETY: passed on.
                unsafe { int_panel(isa, rows, &panel, &scaling, target) };
            }
            (Panels::Float(values), Staged::Float(rows)) => {
                let values = &values.as_slice()[panel * PANEL * k..(panel + 1) * PANEL * k];
                // SAFETY: passed on.
                unsafe { float_panel(isa, rows, self.x_step.len(), values, k, &scaling, target) };
            }
            _ => unreachable!("rows are staged for the weights that they meet"),
        }
    }

    /// z of all rows and columns, on the calling thread.
    pub(crate) fn into_rows(&self, z: &mut [f32]) {
        let (tier, n) = (self.weights.tier(), self.weights.n());
        assert_eq!(z.len(), self.x_step.len() * n);
        tier.vectorize(Columns { product: self, z: &SharedRows::new(z, n), panels: 0..n.div_ceil(PANEL) });
    }

    /// z of all rows and columns, in tasks of `together` panels each.
    pub(crate) fn into_columns(&self, executor: &dyn Executor, work_ns: u64, together: usize, z: &mut [f32]) {
        let (tier, n) = (self.weights.tier(), self.weights.n());
        assert_eq!(z.len(), self.x_step.len() * n);
        let panels = n.div_ceil(PANEL);
        let shared = SharedRows::new(z, n);
        let count = panels.div_ceil(together);
        let tasks = (0..count).map(|index| {
            let first = together * if self.backwards { count - 1 - index } else { index };
            Columns { product: self, z: &shared, panels: first..panels.min(first + together) }
        });
        // Each task runs once, whatever the executor does: two at the same columns would race.
        run_each(executor, work_ns, tasks, |task| tier.vectorize(task));
    }
}

/// A task of [`Product::into_columns`].
struct Columns<'a> {
    product: &'a Product<'a>,
    z: &'a SharedRows<'a>,
    panels: Range<usize>,
}

impl Vectorized for Columns<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        let n = self.product.weights.n();
        let mut unpacked = None;
        let Range { start, end } = self.panels;
        for step in 0..end - start {
            let panel = if self.product.backwards { end - 1 - step } else { start + step };
            // SAFETY: `z` holds rows of n for every row of the product, and no other task has these columns.
            unsafe {
                let target = Target::new(self.z.at(0, panel * PANEL), n, n - panel * PANEL);
                self.product.panel(isa, panel, &mut unpacked, target);
            }
        }
    }
}
