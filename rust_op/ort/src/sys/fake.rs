//! A host for tests. It can create statuses and run a kernel, and nothing else. It allocates nothing while a kernel
//! runs, so whatever the test's thread allocates in that time is the kernel's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ffi::{CStr, c_char, c_void};
use std::mem::MaybeUninit;
use std::ptr;

use ort_sys::{
    ONNXTensorElementDataType as Onnx, OrtApi, OrtErrorCode, OrtKernelContext, OrtStatusPtr, OrtTensorTypeAndShapeInfo,
    OrtValue,
};

use super::{Api, CustomOp, KernelContext};

/// A status of this host.
type Status = (OrtErrorCode, String);

const SUCCESS: OrtStatusPtr = OrtStatusPtr(ptr::null_mut());

unsafe extern "system" fn create_status(code: OrtErrorCode, message: *const c_char) -> OrtStatusPtr {
    // SAFETY: called by `Api::status` alone, with a C string.
    let message = unsafe { CStr::from_ptr(message) }.to_str().expect("UTF-8").to_owned();
    OrtStatusPtr(Box::into_raw(Box::<Status>::new((code, message))).cast())
}

/// A tensor of f32. This host's values, and its infos on types and shapes, are pointers to one.
struct Tensor<'a> {
    dims: &'a [i64],
    data: *mut f32,
}

/// A run; this host's context is a pointer to one.
struct Run<'a> {
    x: Tensor<'a>,
    y: Tensor<'a>,
}

unsafe extern "system" fn get_input(
    context: *const OrtKernelContext,
    index: usize,
    out: *mut *const OrtValue,
) -> OrtStatusPtr {
    assert_eq!(index, 0, "a run reads X alone");
    // SAFETY: the context is a `Run`; `out` is the caller's place for a pointer.
    unsafe { out.write((&raw const (*context.cast::<Run<'_>>()).x).cast()) };
    SUCCESS
}

unsafe extern "system" fn get_output(
    context: *mut OrtKernelContext,
    index: usize,
    dims: *const i64,
    rank: usize,
    out: *mut *mut OrtValue,
) -> OrtStatusPtr {
    assert_eq!(index, 0);
    // SAFETY: the context is a `Run`, `dims` has `rank` elements, `out` is the caller's place for a pointer.
    unsafe {
        assert_eq!(std::slice::from_raw_parts(dims, rank), (*context.cast::<Run<'_>>()).y.dims);
        out.write((&raw mut (*context.cast::<Run<'_>>()).y).cast());
    }
    SUCCESS
}

unsafe extern "system" fn get_data(value: *mut OrtValue, out: *mut *mut c_void) -> OrtStatusPtr {
    // SAFETY: a value is a `Tensor`; `out` is the caller's place for a pointer.
    unsafe { out.write((*value.cast::<Tensor<'_>>()).data.cast()) };
    SUCCESS
}

unsafe extern "system" fn get_info(value: *const OrtValue, out: *mut *mut OrtTensorTypeAndShapeInfo) -> OrtStatusPtr {
    // SAFETY: `out` is the caller's place for a pointer.
    unsafe { out.write(value.cast_mut().cast()) };
    SUCCESS
}

unsafe extern "system" fn release_info(_: *mut OrtTensorTypeAndShapeInfo) {}

unsafe extern "system" fn get_element_type(_: *const OrtTensorTypeAndShapeInfo, out: *mut Onnx) -> OrtStatusPtr {
    // SAFETY: the caller's place for an element type.
    unsafe { out.write(Onnx::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) };
    SUCCESS
}

unsafe extern "system" fn get_rank(info: *const OrtTensorTypeAndShapeInfo, out: *mut usize) -> OrtStatusPtr {
    // SAFETY: an info is a `Tensor`; `out` is the caller's place for a number.
    unsafe {
        let tensor = &*info.cast::<Tensor<'_>>();
        out.write(tensor.dims.len());
    }
    SUCCESS
}

unsafe extern "system" fn get_dims(info: *const OrtTensorTypeAndShapeInfo, out: *mut i64, rank: usize) -> OrtStatusPtr {
    // SAFETY: an info is a `Tensor`; `out` has room for `rank` numbers.
    unsafe {
        let tensor = &*info.cast::<Tensor<'_>>();
        ptr::copy_nonoverlapping(tensor.dims[..rank].as_ptr(), out, rank);
    }
    SUCCESS
}

unsafe extern "system" fn parallel_for(
    _: *const OrtKernelContext,
    task: unsafe extern "system" fn(*mut c_void, usize),
    total: usize,
    _: usize,
    data: *mut c_void,
) -> OrtStatusPtr {
    for index in 0..total {
        // SAFETY: the caller passed `task` and `data` for each other.
        unsafe { task(data, index) };
    }
    SUCCESS
}

/// The host's table, of which only these entries may be read.
pub(super) fn table() -> *const OrtApi {
    let table = Box::leak(Box::new(MaybeUninit::<OrtApi>::uninit())).as_mut_ptr();
    // SAFETY: entries of the table are written, without a reference to the rest.
    unsafe {
        (&raw mut (*table).CreateStatus).write(create_status);
        (&raw mut (*table).KernelContext_GetInput).write(get_input);
        (&raw mut (*table).KernelContext_GetOutput).write(get_output);
        (&raw mut (*table).GetTensorMutableData).write(get_data);
        (&raw mut (*table).GetTensorTypeAndShape).write(get_info);
        (&raw mut (*table).ReleaseTensorTypeAndShapeInfo).write(release_info);
        (&raw mut (*table).GetTensorElementType).write(get_element_type);
        (&raw mut (*table).GetDimensionsCount).write(get_rank);
        (&raw mut (*table).GetDimensions).write(get_dims);
        (&raw mut (*table).KernelContext_ParallelFor).write(parallel_for);
    }
    table
}

/// The contents of a status; `None` for NULL.
pub(super) fn take(status: OrtStatusPtr) -> Option<Status> {
    // SAFETY: a status that is not NULL is the box that `create_status` made.
    (!status.0.is_null()).then(|| *unsafe { Box::from_raw(status.0.cast::<Status>()) })
}

/// Runs `kernel` on X with dimensions `x_dims`; returns Y and how many allocations this thread made meanwhile.
pub(crate) fn run<K: CustomOp>(kernel: &K, x_dims: &[i64], x: &mut [f32], y_dims: &[i64]) -> (Vec<f32>, usize) {
    let size = |dims: &[i64]| dims.iter().product::<i64>() as usize;
    assert_eq!(x.len(), size(x_dims));
    let mut y = vec![0.0; size(y_dims)];
    let mut run =
        Run { x: Tensor { dims: x_dims, data: x.as_mut_ptr() }, y: Tensor { dims: y_dims, data: y.as_mut_ptr() } };
    // SAFETY: the table has the functions that a run needs; `run` outlives the context.
    let context = unsafe { KernelContext::new(Api::new(table()), (&raw mut run).cast()) };
    let before = ALLOCATIONS.get();
    let result = kernel.compute(context);
    let allocations = ALLOCATIONS.get() - before;
    assert_eq!(result, Ok(()));
    (y, allocations)
}

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, with a counter.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call goes to the system's allocator; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: by the contract of this method, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: by the contract of this method, which is the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: by the contract of this method, which is the same.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: by the contract of this method, which is the same.
        unsafe { System.dealloc(memory, layout) }
    }
}
