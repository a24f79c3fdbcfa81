//! How much memory the passes take beside their arrays. The test is alone in its process, whose allocations it counts.

#![allow(unsafe_code, reason = "an allocator is unsafe to write")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use lumina_kernel::backward::{Factor, Inputs, Operand, Outputs, Weight};
use lumina_kernel::saved::{CodesMut, code_stride};
use lumina_kernel::{Layer, NoiseKey, Params, Precision, Saved, Serial, Spec, Tier, WeightSource, Weights};

/// The system's allocator, which counts the bytes that are allocated, and the most that were at once.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;
static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        MOST.fetch_max(NOW.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        // SAFETY: by the contract of this method, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: by the contract of this method, which is the same.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// The most bytes that were allocated at once while `work` ran, and the bytes afterwards.
fn allocated(work: impl FnOnce()) -> (usize, usize) {
    MOST.store(NOW.load(Relaxed), Relaxed);
    work();
    (MOST.load(Relaxed), NOW.load(Relaxed))
}

/// A layer of 8 bits, with the arrays of its passes.
struct Step {
    shape: (usize, usize, usize),
    params: Params,
    x: Vec<f32>,
    weight: Vec<f32>,
    y: Vec<f32>,
    codes: Vec<i8>,
    x_step: Vec<f32>,
    scale: Vec<f32>,
    dx: Vec<f32>,
    dw: Vec<f32>,
    db: Vec<f32>,
}

impl Step {
    fn new((m, n, k): (usize, usize, usize)) -> Self {
        let spec = Spec { input_bits: 8, weight_bits: 8, output_bits: 8, noise_relative: 0.02, ..Spec::default() };
        let zeros = |count| vec![0.0; count];
        Step {
            shape: (m, n, k),
            params: Params::new(&spec).expect("parameters"),
            x: vec![0.5; m * k],
            weight: vec![0.25; n * k],
            y: zeros(m * n),
            codes: vec![0; m * code_stride(k)],
            x_step: zeros(m),
            scale: zeros(n),
            dx: zeros(m * k),
            dw: zeros(n * k),
            db: zeros(n),
        }
    }

    fn forward(&mut self, tier: Tier) {
        let (_, n, k) = self.shape;
        let source = WeightSource::F32(&self.weight);
        let weights = Weights::new(tier, &Serial, &self.params, (n, k), source, None, None).expect("weights");
        let layer = Layer::new(weights, None).expect("a layer");
        self.scale.copy_from_slice(layer.weights().scale());
        let codes = Some(CodesMut::I8(&mut self.codes));
        let saved = Saved { x_codes: codes, x_step: Some(&mut self.x_step), ..Saved::default() };
        layer.forward(&Serial, &self.x, NoiseKey { seed: 1, stream: 2 }, &mut self.y, Some(saved)).expect("a pass");
    }

    fn backward(&mut self, tier: Tier, precision: Precision) {
        let inputs = Inputs {
            shape: self.shape,
            dy: &self.y,
            x: Some(Factor { values: Operand::I8(&self.codes), steps: &self.x_step }),
            weight: Some(Weight { values: &self.weight, scale: &self.scale }),
            adc_mask: None,
            dac_mask: None,
        };
        let outputs = Outputs { x: Some(&mut self.dx), weight: Some(&mut self.dw), bias: Some(&mut self.db) };
        lumina_kernel::backward(tier, &Serial, &self.params, precision, &inputs, outputs).expect("a pass");
    }
}

/// Bytes beside the arrays and, in a forward pass, the panels of the weights. Matrix tiles take whole tiles of rows.
const FORWARD: usize = 512 << 10;
const BACKWARD: [(Precision, usize); 3] =
    [(Precision::Bits8, 512 << 10), (Precision::Bits16, 528 << 10), (Precision::Highest, 1 << 20)];

/// On one thread. Nothing of what a call or a layer has taken is added to what the next one takes.
#[test]
fn a_pass_takes_little_memory_and_leaves_no_panels_behind() {
    let tier = Tier::selected().expect("a tier");
    let before = NOW.load(Relaxed);
    // More than two strips and blocks in both products, once with as many weights as rows; then few rows.
    let shapes = [(1100, 1100, 40), (500, 300, 70), (2000, 20, 900), (7, 1100, 2000), (1000, 600, 500)];
    let mut steps = shapes.map(Step::new);
    let arrays = NOW.load(Relaxed) - before;
    for (precision, limit) in BACKWARD {
        for _ in 0..2 {
            for step in &mut steps {
                let (_, n, k) = step.shape;
                let panels = n.next_multiple_of(32) * k.next_multiple_of(4);
                let (most, after) = allocated(|| step.forward(tier));
                assert!(most <= before + arrays + panels + FORWARD.max(limit), "{most} in {:?} forward", step.shape);
                assert!(after <= before + arrays + limit, "{after} after {:?} forward", step.shape);
                let (most, _) = allocated(|| step.backward(tier, precision));
                assert!(
                    most <= before + arrays + limit,
                    "{} in {:?} {precision:?}",
                    most - before - arrays,
                    step.shape
                );
            }
        }
    }
}
