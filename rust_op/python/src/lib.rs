//! The Python module `lumina_kernel`: checks arguments, chooses threads, and calls the kernel.

mod arrays;
mod dlpack;
mod error;
mod executor;
mod forward;
mod layer;
mod luminaflow;
mod noise;
mod numbers;
mod openmp;
mod params;
mod saved_layout;
mod schema;
mod tensors;
mod training;

// Imported so that it is linked: the module also exports `RegisterCustomOps`.
use lumina_ort as _;
use pyo3::prelude::*;

/// The OpticalLinear kernel: y = ADC(DAC(x) . W + b + noise), fused, on numpy arrays and CPU torch tensors.
#[pymodule(name = "lumina_kernel")]
mod module {
    #[pymodule_export]
    use super::executor::{num_threads, set_num_threads};
    #[pymodule_export]
    use super::forward::optical_linear_forward;
    #[pymodule_export]
    use super::layer::{PyPreparedLayer, pack_weight, quantize_weight, unpack_weight};
    #[pymodule_export]
    use super::luminaflow::{
        hello_lumina, optical_linear_backward_kernel, optical_linear_fused, optical_linear_infer, version,
    };
    #[pymodule_export]
    use super::noise::{manual_seed, noise};
    #[pymodule_export]
    use super::params::PyParams;
    #[pymodule_export]
    use super::saved_layout::saved_bytes;
    #[pymodule_export]
    use super::schema::{available_isas, isa, schema};
    #[pymodule_export]
    use super::tensors::Tensors;
    #[pymodule_export]
    use super::training::{PySaved, forward_train};
    use super::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        super::executor::loaded(module.py());
        module.add("__version__", lumina_kernel::VERSION)?;
        module.add("OP_DOMAIN", lumina_kernel::schema::DOMAIN)?;
        module.add("OP_NAME", lumina_kernel::schema::OPERATOR)?;
        module.add("OP_VERSION_ATTRIBUTE", lumina_kernel::schema::VERSION_ATTRIBUTE)?;
        module.add("OP_DOMAIN_VERSION", lumina_kernel::schema::DOMAIN_VERSION)?;
        module.add("OP_VERSION", lumina_kernel::schema::VERSION)
    }
}
