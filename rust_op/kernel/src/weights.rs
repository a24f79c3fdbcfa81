//! Weights, quantised, checked and laid out for a tier.

mod lay_out;

use std::sync::Mutex;

use crate::cost;
use crate::error::Error;
use crate::executor::{Executor, run_each};
use crate::microkernel::Tier;
use crate::microkernel::amx::TILE_BYTES;
use crate::microkernel::buffer::{Buffer, Unfilled};
use crate::microkernel::panels::{PANEL, Storage};
use crate::pack;
use crate::params::{OutputRange, Params};
use crate::quantize::{self, levels};
use crate::saved::CodesMut;
use lay_out::{LayOutChannels, PanelSink};

/// Approximate bytes of weights that a core's own caches hold.
const NEAR_BYTES: usize = 3 << 19;

/// Where weights come from.
#[derive(Clone, Copy, Debug)]
pub enum WeightSource<'a> {
    /// `[N, K]`: quantised here, or used as they are with weight_bits 0.
    F32(&'a [f32]),
    /// `[N, K]`: codes of 1..8 bits.
    Codes(&'a [i8]),
    /// `[N, ceil(K*b/8)]`: codes of b = 1, 2 or 4 bits as [`pack`] stores them.
    Packed(&'a [u8]),
}

/// Weights in panels of [`PANEL`] channels. A panel holds its tiles, one after another, each laid out as a panel of as
/// many inputs as the tile has.
#[derive(Clone, Debug)]
pub(crate) enum Panels {
    Int { storage: Storage, bytes: Buffer<u8> },
    Float(Buffer<f32>),
}

/// Where one tile of a panel is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// In elements.
    pub(crate) start: usize,
    pub(crate) len: usize,
    /// Inputs.
    pub(crate) k: usize,
}

/// Elements of a panel of `k` inputs, of which `tile` are a tile.
fn panel_elements(storage: Option<Storage>, k: usize, tile: usize) -> usize {
    match storage {
        Some(storage) => k / tile * storage.panel_bytes(tile) + storage.panel_bytes(k % tile),
        None => PANEL * k,
    }
}

impl Panels {
    /// How codes are stored; `None` where the panels hold floats.
    fn storage(&self) -> Option<Storage> {
        match self {
            Panels::Int { storage, .. } => Some(*storage),
            Panels::Float(_) => None,
        }
    }
}

/// The same before they are laid out.
enum UnfilledPanels {
    Int { storage: Storage, bytes: Unfilled<u8> },
    Float(Unfilled<f32>),
}

impl UnfilledPanels {
    fn finish(self) -> Panels {
        match self {
            UnfilledPanels::Int { storage, bytes } => Panels::Int { storage, bytes: bytes.finish() },
            UnfilledPanels::Float(values) => Panels::Float(values.finish()),
        }
    }
}

/// The weights of a layer.
#[derive(Clone, Debug)]
pub struct Weights {
    tier: Tier,
    params: Params,
    n: usize,
    k: usize,
    /// `[N]`, padded with zeros to whole panels.
    scale: Vec<f32>,
    panels: Panels,
    /// Inputs of a tile, and elements of a tile of a panel, and of a panel.
    tile: usize,
    tile_elements: usize,
    panel_elements: usize,
}

/// Weights that a task lays out, rounded down to whole panels, but at least one panel.
const WEIGHTS_PER_TASK: usize = 16_384;

impl Weights {
    /// Quantises (or unpacks), checks and lays out W `[n, k]` for a layer with these parameters.
    ///
    /// `scale` has 1 or N elements. Without it f32 weights take the default scale; codes require one, and
    /// analog weights must not have one. `codes`, if given, receives the codes.
    ///
    /// # Errors
    /// A shape or parameter that does not fit, a weight or scale that is not finite, a code out of range.
    #[allow(clippy::too_many_arguments, reason = "the arguments are independent of each other")]
    pub fn new(
        tier: Tier,
        executor: &dyn Executor,
        params: &Params,
        (n, k): (usize, usize),
        source: WeightSource<'_>,
        scale: Option<&[f32]>,
        mut codes: Option<CodesMut<'_>>,
    ) -> Result<Self, Error> {
        params.check_shape(n, k)?;
        check_source(params, n, k, source, scale)?;
        if let Some(codes) = &codes {
            codes.check("w_codes", n, k, params.weight_bits)?;
        }

        let count = n.div_ceil(PANEL);
        let mut scales = vec![0.0; count * PANEL];
        let panels_per_task = (WEIGHTS_PER_TASK / (PANEL * k)).clamp(1, count);
        let rows_per_task = panels_per_task * PANEL;
        let tile = params.tile(k);
        let mut panels = if params.is_integer() {
            let storage = Storage::of(params.weight_bits, tier.signed_codes());
            // Matrix tiles read past the end of the last tile, which may be shorter than the others.
            let behind = tier.tiles().map_or(0, |_| TILE_BYTES);
            UnfilledPanels::Int {
                storage,
                bytes: Unfilled::new(count * panel_elements(Some(storage), k, tile) + behind),
            }
        } else {
            UnfilledPanels::Float(Unfilled::new(count * PANEL * k))
        };
        let sinks: Vec<PanelSink<'_>> = match &mut panels {
            UnfilledPanels::Int { storage, bytes } => {
                let size = panel_elements(Some(*storage), k, tile);
                bytes.parts(count * size, panels_per_task * size).map(|part| PanelSink::Int(*storage, part)).collect()
            }
            UnfilledPanels::Float(values) => {
                values.parts(count * PANEL * k, rows_per_task * k).map(PanelSink::Float).collect()
            }
        };
        let tasks = sinks.into_iter().zip(scales.chunks_mut(rows_per_task)).enumerate();
        let tasks = tasks.map(|(index, (sink, scale_out))| {
            let rows = index * rows_per_task..n.min((index + 1) * rows_per_task);
            let codes = codes.as_mut().map(|codes| codes.take_rows(rows_per_task, k));
            let channels = LayOutChannels { bits: params.weight_bits, k, tile, rows, source, scale, scale_out, codes };
            (channels, sink)
        });

        let failure: Mutex<Option<(usize, Error)>> = Mutex::new(None);
        run_each(executor, cost::work(tier, cost::weights_ns(tier, n, k)), tasks, |(channels, sink)| {
            let first = channels.rows.start;
            if let Err(error) = tier.vectorize(channels.into(sink)) {
                let mut failure = failure.lock().expect("no task panics with the lock");
                if failure.as_ref().is_none_or(|(row, _)| first < *row) {
                    *failure = Some((first, error));
                }
            }
        });
        if let Some((_, error)) = failure.into_inner().expect("no task panics with the lock") {
            return Err(error);
        }
        check_bounds(params, &scales[..n])?;
        let panels = panels.finish();
        let storage = panels.storage();
        let (tile_elements, panel_elements) = (panel_elements(storage, tile, tile), panel_elements(storage, k, tile));
        let params = params.clone();
        Ok(Weights { tier, params, n, k, scale: scales, panels, tile, tile_elements, panel_elements })
    }

    /// The tier that they are laid out for and that multiplies with them.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// The parameters of their layer.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Outputs.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        self.k
    }

    /// `[N]`: the step of one code; 1 where W is analog.
    pub fn scale(&self) -> &[f32] {
        &self.scale[..self.n]
    }

    /// Whether their products need the magnitudes of X's codes.
    pub(crate) fn needs_magnitudes(&self) -> bool {
        self.tier.magnitudes() && matches!(self.panels, Panels::Int { storage: Storage { zero: 0, .. }, .. })
    }

    /// Bytes of the panels, which a product reads.
    pub(crate) fn bytes(&self) -> usize {
        match &self.panels {
            Panels::Int { bytes, .. } => bytes.as_slice().len(),
            Panels::Float(values) => size_of_val(values.as_slice()),
        }
    }

    /// Whether the panels fit a core's own caches. Prefetching what is there already costs more than it saves.
    pub(crate) fn fit_near_caches(&self) -> bool {
        self.fit_near_caches_of(1)
    }

    /// Whether they fit the own caches of `cores` cores.
    pub(crate) fn fit_near_caches_of(&self, cores: usize) -> bool {
        self.bytes() <= cores * NEAR_BYTES
    }

    pub(crate) fn panels(&self) -> &Panels {
        &self.panels
    }

    /// Where tile `tile` of panel `panel` is.
    #[inline(always)]
    pub(crate) fn place(&self, panel: usize, tile: usize) -> Place {
        let start = panel * self.panel_elements;
        if self.tile == self.k {
            return Place { start, len: self.panel_elements, k: self.k };
        }
        let k = self.tile.min(self.k - tile * self.tile);
        Place { start: start + tile * self.tile_elements, len: panel_elements(self.panels.storage(), k, k), k }
    }

    /// Elements from a panel to the next.
    #[inline(always)]
    pub(crate) fn panel_distance(&self) -> usize {
        self.panel_elements
    }

    /// The scales of panel `panel`.
    pub(crate) fn panel_scale(&self, panel: usize) -> &[f32; PANEL] {
        &self.scale.as_chunks::<PANEL>().0[panel]
    }
}

/// Checks that a bounded full scale is finite for every output.
fn check_bounds(params: &Params, scale: &[f32]) -> Result<(), Error> {
    let OutputRange::Bound(bound) = params.output_range else { return Ok(()) };
    let l_w = params.weight_full_scale() as f32;
    match scale.iter().position(|scale| !(bound * (scale * l_w)).is_finite()) {
        None => Ok(()),
        Some(n) => Err(Error::value(
            "output_bound",
            bound,
            format!("a number with which output_bound * weight_scale * L_w is finite, which it is not for output {n}"),
        )),
    }
}

fn check_source(
    params: &Params,
    n: usize,
    k: usize,
    source: WeightSource<'_>,
    scale: Option<&[f32]>,
) -> Result<(), Error> {
    let bits = params.weight_bits;
    match scale {
        Some(scale) if bits == 0 => {
            return Err(Error::Ignored {
                name: "weight_scale",
                value: match scale {
                    [one] => one.to_string(),
                    more => format!("{} numbers", more.len()),
                },
                because: "with weight_bits 0 the weights are analog",
            });
        }
        Some(scale) => quantize::check_scale(scale, n, levels(bits))?,
        None if matches!(source, WeightSource::F32(_)) => {}
        None => return Err(Error::value("weight_scale", "none", "1 or N numbers where the weights are codes")),
    }
    let (length, expected) = match source {
        WeightSource::F32(w) => (w.len(), n * k),
        WeightSource::Codes(codes) => {
            if !(1..=8).contains(&bits) {
                return Err(Error::value("weight_bits", bits, "1..8 where the weights are int8 codes"));
            }
            (codes.len(), n * k)
        }
        WeightSource::Packed(packed) => {
            if !pack::PACKED_BITS.contains(&bits) {
                return Err(Error::value("weight_bits", bits, "1, 2 or 4 where the weights are packed in uint8"));
            }
            (packed.len(), n * pack::packed_row_bytes(bits, k))
        }
    };
    if length == expected {
        Ok(())
    } else {
        Err(Error::Length { name: "weight", length, allowed: format!("{expected} for N = {n}, K = {k}") })
    }
}
