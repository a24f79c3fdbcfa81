//! One run of a kernel: its inputs, its outputs and the session's threads.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::ops::Range;

use ort_sys::OrtKernelContext;

use super::tensor::{Tensor, element_count};
use super::{Api, call};
use crate::guard::Failure;

/// A run in progress.
pub(crate) struct KernelContext<'a> {
    api: Api,
    context: *mut OrtKernelContext,
    alive: PhantomData<&'a OrtKernelContext>,
}

// SAFETY: the executor that holds a reference to this value is shared with the tasks on other threads, but
// these call none of its methods: `parallel_for` is called on the run's own thread.
unsafe impl Sync for KernelContext<'_> {}

impl<'a> KernelContext<'a> {
    /// # Safety
    /// - `context` lives during `'a`, and its inputs do not change.
    pub(super) unsafe fn new(api: Api, context: *mut OrtKernelContext) -> Self {
        KernelContext { api, context, alive: PhantomData }
    }

    /// Input `index`; `None` if it is left out.
    pub(crate) fn input(&self, index: usize) -> Result<Option<Tensor<'a>>, Failure> {
        let mut value = std::ptr::null();
        // SAFETY: the context is alive; its inputs are tensors in the CPU's memory.
        unsafe {
            call!(self.api, KernelContext_GetInput(self.context, index, &mut value))?;
            if value.is_null() { Ok(None) } else { Tensor::new(self.api, value).map(Some) }
        }
    }

    /// Creates output 0 with dimensions `dims` and lets `fill` write it in place. Its memory may be the
    /// user's own; `inputs` are the slices that `fill` reads.
    ///
    /// # Errors
    /// Memory that is not aligned, or that overlaps an input.
    pub(crate) fn output<T>(
        &mut self,
        dims: &[i64],
        inputs: &[&[f32]],
        fill: impl FnOnce(&Self, &mut [f32]) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let length = element_count(dims)?;
        let (mut value, mut data) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the context is alive; output 0 is a tensor of f32 by the operator's declaration.
        unsafe {
            call!(self.api, KernelContext_GetOutput(self.context, 0, dims.as_ptr(), dims.len(), &mut value))?;
            call!(self.api, GetTensorMutableData(value, &mut data))?;
        }
        let data = data.cast::<f32>();
        if length == 0 || data.is_null() {
            return fill(self, &mut []);
        }
        if !data.is_aligned() {
            return Err(Failure::invalid("output Y: its memory is not aligned to 4 bytes"));
        }
        let bytes = |data: *const f32, length: usize| -> Range<usize> { data.addr()..data.addr() + 4 * length };
        let out = bytes(data, length);
        if inputs.iter().map(|input| bytes(input.as_ptr(), input.len())).any(|x| x.start < out.end && out.start < x.end)
        {
            return Err(Failure::invalid("output Y: its memory overlaps that of input X"));
        }
        // SAFETY: `length` elements, aligned and disjoint from every slice that is read (checked above); the host
        // gives the output of a run to this call alone.
        fill(self, unsafe { std::slice::from_raw_parts_mut(data, length) })
    }

    /// Calls `task(0)` .. `task(count - 1)` on the session's threads, which include the caller's.
    /// `task` must not panic.
    pub(crate) fn parallel_for(&self, count: usize, task: &(dyn Fn(usize) + Sync)) -> Result<(), Failure> {
        unsafe extern "system" fn trampoline(task: *mut c_void, index: usize) {
            // SAFETY: `task` is the address of the reference below, which outlives the call.
            (unsafe { *task.cast::<&(dyn Fn(usize) + Sync)>() })(index);
        }
        let mut task = task;
        // SAFETY: the context is alive; the host returns when all tasks have returned. There are as many
        // batches as tasks, so that a thread that is done takes the next task.
        unsafe {
            call!(self.api, KernelContext_ParallelFor(self.context, trampoline, count, count, (&raw mut task).cast()))
        }
    }
}
