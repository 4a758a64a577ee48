//! The handle on a tensor, and functions that make, read, copy and reshape tensors.

use crate::array::{Numbers, to_numbers, with_numbers};
use crate::convert::{count, device, dtype, format, shape, sizes};
use crate::error::{Result, checked, to_js};
use crate::memory::adjust;
use napi::Env;
use napi::bindgen_prelude::{BigInt, ClassInstance, ObjectFinalize, Uint32Array};
use napi_derive::napi;
use std::cell::RefCell;
use syncbn_core::{Code, Error};
use syncbn_cpu::HostSlice;
use syncbn_runtime::random::{self, Distribution};
use syncbn_runtime::{Device, Tensor, layout, ops};

/// One reference on a tensor's storage. Opaque to JavaScript.
#[napi(custom_finalize)]
pub struct BindingTensor(RefCell<Option<Tensor>>);

impl BindingTensor {
    /// The tensor, unless disposed.
    pub fn get(&self) -> Result<Tensor> {
        let disposed = || to_js(Error::new(Code::Disposed, "this tensor was disposed"));
        self.0.borrow().clone().ok_or_else(disposed)
    }

    fn release(&self) {
        if let Some(tensor) = self.0.take() {
            adjust(-(tensor.storage().bytes() as i64));
        }
    }
}

impl From<Tensor> for BindingTensor {
    fn from(tensor: Tensor) -> Self {
        adjust(tensor.storage().bytes() as i64);
        Self(RefCell::new(Some(tensor)))
    }
}

impl ObjectFinalize for BindingTensor {
    fn finalize(self, _env: Env) -> Result<()> {
        self.release();
        Ok(())
    }
}

/// A handle on a new tensor.
pub fn handle(tensor: syncbn_core::Result<Tensor>) -> Result<BindingTensor> {
    checked(tensor).map(BindingTensor::from)
}

/// The tensor of an optional handle.
pub fn optional(handle: Option<&BindingTensor>) -> Result<Option<Tensor>> {
    handle.map(BindingTensor::get).transpose()
}

/// The tensors of many handles.
pub fn all(handles: &[ClassInstance<'_, BindingTensor>]) -> Result<Vec<Tensor>> {
    handles.iter().map(|handle| handle.get()).collect()
}

#[napi(catch_unwind)]
pub fn tensor_from_array(
    data: Numbers<'_>,
    shape: Vec<i64>,
    dtype_name: String,
    memory_format: String,
    device_name: String,
) -> Result<BindingTensor> {
    let device = device("tensor", &device_name)?;
    let (shape, dtype, format) = (sizes("tensor", &shape)?, dtype(&dtype_name)?, format(&memory_format)?);
    let tensor = with_numbers(&data, dtype, |data| Tensor::from_slice("tensor", data, &shape, dtype, format))?;
    handle(tensor.and_then(|tensor| tensor.to_device(&device)))
}

#[napi(catch_unwind)]
pub fn tensor_full(
    shape: Vec<i64>,
    value: f64,
    dtype_name: String,
    memory_format: String,
    device_name: String,
) -> Result<BindingTensor> {
    let device = device("full", &device_name)?;
    handle(Tensor::full(&device, &sizes("full", &shape)?, value, dtype(&dtype_name)?, format(&memory_format)?))
}

#[napi(catch_unwind)]
pub fn tensor_arange(end: f64, dtype_name: String, device_name: String) -> Result<BindingTensor> {
    let device = device("arange", &device_name)?;
    let tensor = Tensor::arange(count("arange", "end", end)?, dtype(&dtype_name)?);
    handle(tensor.and_then(|tensor| tensor.to_device(&device)))
}

/// Drawn on the CPU, so that a seed gives the same numbers on every device.
fn random_tensor(
    which: Distribution,
    shape: &[i64],
    dtype_name: &str,
    memory_format: &str,
    device_name: &str,
) -> Result<BindingTensor> {
    let device = device("rand", device_name)?;
    let tensor = random::random(which, &sizes("rand", shape)?, dtype(dtype_name)?, format(memory_format)?);
    handle(tensor.and_then(|tensor| tensor.to_device(&device)))
}

#[napi(catch_unwind)]
pub fn tensor_rand(
    shape: Vec<i64>,
    dtype_name: String,
    memory_format: String,
    device_name: String,
) -> Result<BindingTensor> {
    random_tensor(Distribution::Uniform, &shape, &dtype_name, &memory_format, &device_name)
}

#[napi(catch_unwind)]
pub fn tensor_randn(
    shape: Vec<i64>,
    dtype_name: String,
    memory_format: String,
    device_name: String,
) -> Result<BindingTensor> {
    random_tensor(Distribution::Normal, &shape, &dtype_name, &memory_format, &device_name)
}

#[napi(catch_unwind)]
pub fn manual_seed(seed: BigInt) -> Result<()> {
    let (negative, value, lossless) = seed.get_u64();
    if !lossless {
        return Err(to_js(Error::expected(Code::Argument, "manualSeed", "a seed of at most 64 bits", "more")));
    }
    random::manual_seed(if negative { value.wrapping_neg() } else { value });
    Ok(())
}

#[napi(catch_unwind)]
pub fn randperm(n: f64) -> Result<Uint32Array> {
    Ok(Uint32Array::new(checked(random::randperm(count("randperm", "n", n)?))?))
}

/// What JavaScript shows of a tensor.
#[napi(object)]
pub struct BindingTensorInfo {
    pub shape: Vec<i64>,
    pub dtype: String,
    pub device: String,
    pub memory_format: String,
    pub numel: i64,
}

#[napi(catch_unwind)]
pub fn tensor_info(tensor: &BindingTensor) -> Result<BindingTensorInfo> {
    let tensor = tensor.get()?;
    Ok(BindingTensorInfo {
        shape: shape(tensor.shape()),
        dtype: tensor.dtype().as_str().into(),
        device: tensor.device().to_string(),
        memory_format: tensor.format().as_str().into(),
        numel: tensor.numel() as i64,
    })
}

#[napi(catch_unwind)]
pub fn tensor_version(tensor: &BindingTensor) -> Result<u32> {
    Ok(tensor.get()?.storage().version())
}

#[napi(catch_unwind)]
pub fn tensor_dispose(tensor: &BindingTensor) {
    tensor.release();
}

#[napi(catch_unwind)]
pub fn tensor_to_array<'env>(env: &'env Env, tensor: &BindingTensor, raw: bool) -> Result<Numbers<'env>> {
    let tensor = checked(tensor.get()?.contiguous().and_then(|tensor| tensor.to_device(&Device::Cpu)))?;
    let guard = checked(tensor.read())?;
    to_numbers(env, guard.slice(), raw)
}

#[napi(catch_unwind)]
pub fn tensor_item(tensor: &BindingTensor) -> Result<f64> {
    let tensor = tensor.get()?;
    if tensor.numel() != 1 {
        let got = format!("shape {:?}", tensor.shape());
        return Err(to_js(Error::expected(Code::Shape, "item", "a tensor of one element", got)));
    }
    let tensor = checked(tensor.to_device(&Device::Cpu))?;
    let guard = checked(tensor.read())?;
    Ok(match guard.slice() {
        HostSlice::F32(values) => f64::from(values[0]),
        HostSlice::F64(values) => values[0],
        HostSlice::F16(values) => values[0].to_f64(),
        HostSlice::BF16(values) => values[0].to_f64(),
        HostSlice::I32(values) => f64::from(values[0]),
        HostSlice::I64(values) if values[0].unsigned_abs() <= 1 << 53 => values[0] as f64,
        HostSlice::I64(values) => {
            let message = format!("RangeError: item: {} is beyond 2^53 and no exact JavaScript number", values[0]);
            return Err(napi::Error::from_reason(message));
        }
    })
}

#[napi(catch_unwind)]
pub fn tensor_reshape(tensor: &BindingTensor, shape: Vec<i64>) -> Result<BindingTensor> {
    let tensor = tensor.get()?;
    let shape = checked(layout::resolve_shape("reshape", &shape, tensor.numel()))?;
    handle(tensor.reshape(&shape))
}

#[napi(catch_unwind)]
pub fn tensor_to(
    tensor: &BindingTensor,
    dtype_name: Option<String>,
    memory_format: Option<String>,
    device_name: Option<String>,
) -> Result<BindingTensor> {
    let mut tensor = tensor.get()?;
    // Every name is read before anything is copied.
    let device = device_name.map(|name| device("to", &name)).transpose()?;
    if let Some(device) = device {
        tensor = checked(tensor.to_device(&device))?;
    }
    if let Some(name) = memory_format {
        tensor = checked(tensor.to_format(format(&name)?))?;
    }
    if let Some(name) = dtype_name {
        tensor = checked(tensor.to_dtype(dtype(&name)?))?;
    }
    Ok(tensor.into())
}

#[napi(catch_unwind)]
pub fn tensor_clone(tensor: &BindingTensor) -> Result<BindingTensor> {
    handle(tensor.get()?.duplicate())
}

#[napi(catch_unwind)]
pub fn tensor_alias(tensor: &BindingTensor) -> Result<BindingTensor> {
    Ok(tensor.get()?.into())
}

#[napi(catch_unwind)]
pub fn tensor_copy_in_place(target: &BindingTensor, source: &BindingTensor) -> Result<()> {
    checked(target.get()?.copy_from(&source.get()?))
}

#[napi(catch_unwind)]
pub fn tensor_fill_in_place(target: &BindingTensor, value: f64) -> Result<()> {
    checked(ops::fill_in_place(&target.get()?, value))
}

#[napi(catch_unwind)]
pub fn tensor_stack(tensors: Vec<ClassInstance<'_, BindingTensor>>) -> Result<BindingTensor> {
    handle(ops::stack(&all(&tensors)?))
}

#[napi(catch_unwind)]
pub fn tensor_slice(tensor: &BindingTensor, start: f64, end: f64) -> Result<BindingTensor> {
    handle(ops::slice_rows(&tensor.get()?, count("slice", "start", start)?, count("slice", "end", end)?))
}

#[napi(catch_unwind)]
pub fn add_in_place(accumulator: &BindingTensor, addend: &BindingTensor) -> Result<()> {
    checked(ops::add_in_place(&accumulator.get()?, &addend.get()?))
}
