//! An operator as ONNX Runtime sees it: a table of C functions, made from a [`CustomOp`].

use std::ffi::{CString, c_char, c_int, c_void};
use std::ptr;

use ort_sys::{
    ONNXTensorElementDataType as Onnx, OrtApi, OrtCustomOp, OrtCustomOpInputOutputCharacteristic as Characteristic,
    OrtKernelContext, OrtKernelInfo, OrtMemType, OrtShapeInferContext, OrtStatusPtr,
};

use super::{API_VERSION, Api, KernelContext, KernelInfo, ShapeContext, c_string};
use crate::guard::{Failure, guard};

/// An input of an operator, which checks the input's type itself.
pub(crate) struct Input {
    /// Whether a node may leave it out; such inputs come last.
    pub(crate) optional: bool,
}

/// A kernel of an operator with one output of f32. A value belongs to one node of one session.
pub(crate) trait CustomOp: Sized + Send + Sync + 'static {
    /// The operator's name in its domain.
    const NAME: &'static str;
    /// The operator's version.
    const VERSION: i32;
    /// Its inputs.
    const INPUTS: &'static [Input];

    /// Sets the shape of the output, as far as it is known. The host ignores a failure here;
    /// [`CustomOp::create`] reports what is wrong.
    fn infer_shape(context: &ShapeContext<'_>) -> Result<(), Failure>;

    /// Creates the kernel of a node.
    fn create(info: &KernelInfo<'_>) -> Result<Self, Failure>;

    /// Runs the kernel; several threads may do so at once.
    fn compute(&self, context: KernelContext<'_>) -> Result<(), Failure>;
}

/// What the host holds of an operator; the table of functions comes first.
#[repr(C)]
pub(super) struct Table {
    op: OrtCustomOp,
    api: Api,
    name: CString,
}

/// What the host holds of a kernel.
struct Kernel<K> {
    api: Api,
    kernel: K,
}

impl Table {
    pub(super) fn new<K: CustomOp>(api: Api) -> Self {
        let op = OrtCustomOp {
            version: API_VERSION,
            CreateKernel: None,
            GetName: Some(get_name),
            GetExecutionProviderType: Some(get_execution_provider_type),
            GetInputType: Some(get_input_type),
            GetInputTypeCount: Some(get_input_type_count::<K>),
            GetOutputType: Some(get_output_type),
            GetOutputTypeCount: Some(get_output_type_count),
            KernelCompute: None,
            KernelDestroy: Some(kernel_destroy::<K>),
            GetInputCharacteristic: Some(get_input_characteristic::<K>),
            GetOutputCharacteristic: Some(get_output_characteristic),
            GetInputMemoryType: Some(get_input_memory_type),
            GetVariadicInputMinArity: Some(zero),
            GetVariadicInputHomogeneity: Some(zero),
            GetVariadicOutputMinArity: Some(zero),
            GetVariadicOutputHomogeneity: Some(zero),
            CreateKernelV2: Some(create_kernel::<K>),
            KernelComputeV2: Some(kernel_compute::<K>),
            InferOutputShapeFn: Some(infer_output_shape::<K>),
            GetStartVersion: Some(get_version::<K>),
            GetEndVersion: Some(get_version::<K>),
        };
        Table { op, api, name: c_string(K::NAME) }
    }

    pub(super) fn op(&self) -> *const OrtCustomOp {
        ptr::from_ref(self).cast()
    }
}

/// # Safety
/// - `op` is the first field of a living [`Table`].
unsafe fn table<'a>(op: *const OrtCustomOp) -> &'a Table {
    // SAFETY: by this function's contract; the layout is C's.
    unsafe { &*op.cast::<Table>() }
}

unsafe extern "system" fn get_name(op: *const OrtCustomOp) -> *const c_char {
    // SAFETY: the host calls with the table it was given.
    unsafe { table(op) }.name.as_ptr()
}

/// NULL: the CPU.
unsafe extern "system" fn get_execution_provider_type(_: *const OrtCustomOp) -> *const c_char {
    ptr::null()
}

/// Any type: the kernel checks it, with a message of its own.
unsafe extern "system" fn get_input_type(_: *const OrtCustomOp, _: usize) -> Onnx {
    Onnx::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED
}

unsafe extern "system" fn get_input_type_count<K: CustomOp>(_: *const OrtCustomOp) -> usize {
    K::INPUTS.len()
}

unsafe extern "system" fn get_output_type(_: *const OrtCustomOp, _: usize) -> Onnx {
    Onnx::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT
}

unsafe extern "system" fn get_output_type_count(_: *const OrtCustomOp) -> usize {
    1
}

unsafe extern "system" fn get_input_characteristic<K: CustomOp>(_: *const OrtCustomOp, index: usize) -> Characteristic {
    match K::INPUTS.get(index) {
        Some(Input { optional: true }) => Characteristic::INPUT_OUTPUT_OPTIONAL,
        _ => Characteristic::INPUT_OUTPUT_REQUIRED,
    }
}

unsafe extern "system" fn get_output_characteristic(_: *const OrtCustomOp, _: usize) -> Characteristic {
    Characteristic::INPUT_OUTPUT_REQUIRED
}

unsafe extern "system" fn get_input_memory_type(_: *const OrtCustomOp, _: usize) -> OrtMemType {
    OrtMemType::OrtMemTypeDefault
}

unsafe extern "system" fn zero(_: *const OrtCustomOp) -> c_int {
    0
}

unsafe extern "system" fn get_version<K: CustomOp>(_: *const OrtCustomOp) -> c_int {
    K::VERSION
}

unsafe extern "system" fn create_kernel<K: CustomOp>(
    op: *const OrtCustomOp,
    _: *const OrtApi,
    info: *const OrtKernelInfo,
    kernel: *mut *mut c_void,
) -> OrtStatusPtr {
    // SAFETY: the host calls with the table it was given.
    let api = unsafe { table(op) }.api;
    let result = guard(|| {
        // SAFETY: `info` lives during this call.
        let info = unsafe { KernelInfo::new(api, info) };
        let made = Box::new(Kernel { api, kernel: K::create(&info)? });
        // SAFETY: `kernel` is the host's place for the pointer; `kernel_destroy` takes the box back.
        unsafe { kernel.write(Box::into_raw(made).cast()) };
        Ok(())
    });
    api.status(result)
}

unsafe extern "system" fn kernel_compute<K: CustomOp>(
    kernel: *mut c_void,
    context: *mut OrtKernelContext,
) -> OrtStatusPtr {
    // SAFETY: a living kernel from `create_kernel`, shared between threads as `&`.
    let Kernel { api, kernel } = unsafe { &*kernel.cast::<Kernel<K>>() };
    // SAFETY: `context` lives during this call.
    api.status(guard(|| kernel.compute(unsafe { KernelContext::new(*api, context) })))
}

unsafe extern "system" fn kernel_destroy<K: CustomOp>(kernel: *mut c_void) {
    // There is nobody to whom a panic in a destructor could be reported.
    let _ = guard(|| {
        if !kernel.is_null() {
            // SAFETY: a kernel from `create_kernel`; the host destroys it once, when no run is in progress.
            drop(unsafe { Box::from_raw(kernel.cast::<Kernel<K>>()) });
        }
        Ok(())
    });
}

unsafe extern "system" fn infer_output_shape<K: CustomOp>(
    op: *const OrtCustomOp,
    context: *mut OrtShapeInferContext,
) -> OrtStatusPtr {
    // SAFETY: the host calls with the table it was given.
    let api = unsafe { table(op) }.api;
    // SAFETY: `context` lives during this call.
    api.status(guard(|| K::infer_shape(&unsafe { ShapeContext::new(api, context) })))
}
