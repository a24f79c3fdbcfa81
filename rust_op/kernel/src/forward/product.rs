//! Rows times panels: which tiles multiply them, and where the results go.

use crate::executor::{Executor, Work, run_from_both_ends};
use crate::microkernel::amx::{ConfiguredTiles, Tiles, bytes_behind};
use crate::microkernel::buffer::Buffer;
use crate::microkernel::isa::{Isa, Vectorized};
use crate::microkernel::output::OutputBlock;
use crate::microkernel::panels::{BLOCK_BYTES, PANEL};
use crate::microkernel::tile::Scaling;
use crate::microkernel::tile::float::{FloatRows, float_panel};
use crate::microkernel::tile::int::{
    CodeRows, IntPanel, STREAMS, has_streams, int_panel, put_row, row_with_streams, unpack_panel,
};
use crate::microkernel::tile::matrix::matrix_panel;
use crate::weights::{Panels, Weights};

/// Rows of X as the product reads them.
#[derive(Clone, Copy)]
pub(super) enum StagedRows<'a> {
    Int(CodeRows<'a>),
    Float(FloatRows<'a>),
}

/// One product: rows of X, weights, bias, of one tile.
pub(super) struct Product<'a> {
    pub(super) weights: &'a Weights,
    /// The tile.
    pub(super) tile: usize,
    /// Padded to whole panels; `None` for zeros.
    pub(super) bias: Option<&'a [f32]>,
    pub(super) rows: StagedRows<'a>,
    /// s_x of each row.
    pub(super) x_step: &'a [f32],
    /// Whether panels are read from last to first. Calls that alternate between the two orders find in the cache what
    /// the previous call read last; in a fixed order, each call would find the first panels evicted.
    pub(super) backwards: bool,
}

impl Product<'_> {
    /// What turns the sums of panel `panel` into z.
    #[inline(always)]
    fn scaling(&self, panel: usize) -> Scaling<'_> {
        Scaling {
            x_step: self.x_step,
            weight_scale: self.weights.panel_scale(panel),
            bias: self.bias.map_or(&[0.0; PANEL], |bias| &bias.as_chunks::<PANEL>().0[panel]),
        }
    }

    /// z of all rows of codes in the columns of panel `panel`, which are the columns of `output`.
    #[inline(always)]
    fn code_panel<S: Isa>(
        &self,
        isa: S,
        tiles: Option<&ConfiguredTiles>,
        panel: usize,
        unpacked: &mut Option<Buffer<u8>>,
        output: OutputBlock<'_>,
    ) {
        let (Panels::Int { storage, bytes }, StagedRows::Int(rows)) = (self.weights.panels(), &self.rows) else {
            unreachable!("rows are staged for the weights that they meet")
        };
        let scaling = self.scaling(panel);
        let place = self.weights.place(panel, self.tile);
        let fetch = !self.weights.fit_near_caches();
        let from_here = &bytes.as_slice()[place.start..];
        let packed = &from_here[..place.len];
        let groups = place.k.div_ceil(4);
        let unpack = storage.bits < 8 && (tiles.is_some() || self.x_step.len() > S::STAY_PACKED);
        let bytes = if unpack {
            let length = groups * BLOCK_BYTES + bytes_behind(groups);
            let unpacked = unpacked.get_or_insert_with(|| Buffer::new(length));
            unpack_panel(isa, *storage, packed, groups, unpacked.as_mut_slice());
            unpacked.as_slice()
        } else {
            from_here
        };
        // The next panel is the one after this in memory, or the one before it.
        let distance = self.weights.panel_distance();
        let next = match self.backwards {
            true => packed.as_ptr().wrapping_sub(distance),
            false => packed.as_ptr().wrapping_add(distance),
        };
        let panel = IntPanel { storage: *storage, unpacked: unpack, bytes, groups, fetch, next };
        match tiles {
            Some(tiles) => matrix_panel(isa, tiles, rows, &panel, &scaling, output),
            None => int_panel(isa, rows, &panel, &scaling, output),
        }
    }

    /// Whether [`Product::row_of_panels`] multiplies.
    #[inline]
    fn has_streams(&self) -> bool {
        let (Panels::Int { storage, .. }, 1) = (self.weights.panels(), self.x_step.len()) else { return false };
        let k = self.weights.place(0, self.tile).k;
        has_streams(self.weights.tier().streamed_bits(), storage.bits, k.div_ceil(4))
    }

    /// Panels of a task, of `panels` in all: these in `tasks` tasks, or more at a time if they are multiplied side by side
    /// and each of `threads` threads still has two tasks.
    pub(super) fn panels_per_task(&self, panels: usize, tasks: usize, threads: usize) -> usize {
        let per_task = panels.div_ceil(tasks);
        let whole = per_task.next_multiple_of(STREAMS);
        if self.has_streams() && panels.div_ceil(whole) >= 2 * threads { whole } else { per_task }
    }

    /// Sums of the only row of codes with `panels`.
    #[inline(always)]
    fn row_of_panels<S: Isa>(&self, isa: S, panels: [usize; STREAMS]) -> [[[S::I; 2]; 1]; STREAMS] {
        let (Panels::Int { storage, bytes }, StagedRows::Int(rows)) = (self.weights.panels(), &self.rows) else {
            unreachable!("rows are staged for the weights that they meet")
        };
        let places = panels.map(|panel| self.weights.place(panel, self.tile));
        let panels = places.map(|place| &bytes.as_slice()[place.start..place.start + place.len]);
        row_with_streams(isa, rows, *storage, panels, places[0].k.div_ceil(4))
    }

    /// The same for rows of floats.
    #[inline(always)]
    fn float_panel<S: Isa>(&self, isa: S, panel: usize, output: OutputBlock<'_>) {
        let (Panels::Float(values), StagedRows::Float(rows)) = (self.weights.panels(), &self.rows) else {
            unreachable!("rows are staged for the weights that they meet")
        };
        let place = self.weights.place(panel, self.tile);
        let values = &values.as_slice()[place.start..place.start + place.len];
        float_panel(isa, rows, values, place.k, &self.scaling(panel), output);
    }

    /// The permission to use matrix tiles, if this product is one for them.
    fn tiles(&self) -> Option<Tiles> {
        match self.rows {
            StagedRows::Int(_) => self.weights.tier().tiles_for(self.x_step.len()),
            StagedRows::Float(_) => None,
        }
    }

    /// z of all rows and columns, on the calling thread.
    pub(super) fn into_rows(self, z: OutputBlock<'_>) {
        self.weights.tier().vectorize(MultiplyPanels { product: &self, first_panel: 0, z });
    }

    /// z of all rows and columns, in tasks of `panels_per_task` panels each.
    pub(super) fn into_columns(
        self,
        executor: &dyn Executor,
        work: Work,
        panels_per_task: usize,
        mut z: OutputBlock<'_>,
    ) {
        let tier = self.weights.tier();
        let count = z.columns().div_ceil(PANEL).div_ceil(panels_per_task);
        let mut front = 0;
        let tasks = (0..count).map(|index| {
            let first_panel = index * panels_per_task;
            let z = if index == front {
                front += 1;
                z.take_columns(z.columns().min(panels_per_task * PANEL))
            } else {
                z.take_columns_from((index - front) * panels_per_task * PANEL)
            };
            MultiplyPanels { product: &self, first_panel, z }
        });
        // Parts that fit the caches of two cores stay there if each thread keeps its own; more is found in the cache that
        // they share by going backwards.
        let from_last = self.backwards && !self.weights.fit_near_caches_of(2);
        run_from_both_ends(executor, work, tasks, from_last, |task| tier.vectorize(task));
    }
}

/// All rows of a product in the columns of `z`, the first of which is the first of a panel.
struct MultiplyPanels<'a> {
    product: &'a Product<'a>,
    first_panel: usize,
    z: OutputBlock<'a>,
}

impl MultiplyPanels<'_> {
    /// The panel that is the `step`-th to be read, of the first ones of `z`, and its columns there.
    #[inline(always)]
    fn next(&mut self, step: usize) -> (usize, OutputBlock<'_>) {
        let (rows, columns) = (self.z.rows(), self.z.columns());
        let panel = if self.product.backwards { columns.div_ceil(PANEL) - 1 - step } else { step };
        (self.first_panel + panel, self.z.part(0..rows, panel * PANEL..columns.min((panel + 1) * PANEL)))
    }
}

impl Vectorized for MultiplyPanels<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(mut self, isa: S) {
        if let StagedRows::Int(_) = self.product.rows {
            return isa.with_products(MultiplyCodePanels(self));
        }
        for step in 0..self.z.columns().div_ceil(PANEL) {
            let product = self.product;
            let (panel, output) = self.next(step);
            product.float_panel(isa, panel, output);
        }
    }
}

/// The same for codes.
struct MultiplyCodePanels<'a>(MultiplyPanels<'a>);

impl Vectorized for MultiplyCodePanels<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(mut self, isa: S) {
        let product = self.0.product;
        let tiles = product.tiles().map(Tiles::configure);
        let mut unpacked = None;
        let count = self.0.z.columns().div_ceil(PANEL);
        let mut step = 0;
        if tiles.is_none() && product.has_streams() {
            while step + STREAMS <= count {
                let sums = product.row_of_panels(isa, std::array::from_fn(|index| self.0.next(step + index).0));
                for sums in sums {
                    let (panel, output) = self.0.next(step);
                    put_row(isa, &product.scaling(panel), output, sums);
                    step += 1;
                }
            }
        }
        for step in step..count {
            let (panel, output) = self.0.next(step);
            product.code_panel(isa, tiles.as_ref(), panel, &mut unpacked, output);
        }
    }
}
