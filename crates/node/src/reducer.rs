//! The gradient reducer of DistributedDataParallel.

use crate::convert::count;
use crate::error::{Result, checked};
use crate::process_group::BindingGroup;
use crate::tensor::{BindingTensor, all};
use napi::bindgen_prelude::ClassInstance;
use napi_derive::napi;
use syncbn_runtime::{Reducer, reducer};

/// A reducer. Opaque to JavaScript.
#[napi]
pub struct BindingReducer(Reducer);

#[napi(catch_unwind)]
pub fn verify_parameters(
    group: &BindingGroup,
    names: Vec<String>,
    tensors: Vec<ClassInstance<'_, BindingTensor>>,
    others: Vec<ClassInstance<'_, BindingTensor>>,
    problem: Option<String>,
) -> Result<()> {
    let (tensors, others) = (all(&tensors)?, all(&others)?);
    checked(reducer::verify_parameters(group.get(), &names, &tensors, &others, problem.as_deref()))
}

#[napi(catch_unwind)]
pub fn broadcast_tensors(group: &BindingGroup, tensors: Vec<ClassInstance<'_, BindingTensor>>, src: f64) -> Result<()> {
    checked(reducer::broadcast_tensors(group.get(), &all(&tensors)?, count("broadcast", "src", src)?))
}

#[napi(catch_unwind)]
pub fn reducer_create(
    group: &BindingGroup,
    names: Vec<String>,
    parameters: Vec<ClassInstance<'_, BindingTensor>>,
    bucket_bytes: f64,
    first_bucket_bytes: f64,
) -> Result<BindingReducer> {
    const OP: &str = "DistributedDataParallel";
    let (cap, first) = (count(OP, "bucketCapMb", bucket_bytes)?, count(OP, "bucketCapMb", first_bucket_bytes)?);
    checked(Reducer::new(group.get().clone(), names, &all(&parameters)?, cap, first)).map(BindingReducer)
}

#[napi(catch_unwind)]
pub fn reducer_prepare(reducer: &mut BindingReducer, used: Option<Vec<bool>>) -> Result<Vec<bool>> {
    checked(reducer.0.prepare_for_backward(used.as_deref()))
}

#[napi(catch_unwind)]
pub fn reducer_mark_ready(reducer: &mut BindingReducer, index: u32, gradient: &BindingTensor) -> Result<()> {
    checked(reducer.0.mark_variable_ready(index as usize, &gradient.get()?))
}

#[napi(catch_unwind)]
pub fn reducer_finalize(
    reducer: &mut BindingReducer,
    gradients: Vec<ClassInstance<'_, BindingTensor>>,
    indices: Vec<u32>,
) -> Result<()> {
    let indices: Vec<usize> = indices.into_iter().map(|index| index as usize).collect();
    checked(reducer.0.finalize_backward(&indices, &all(&gradients)?))
}

#[napi(catch_unwind)]
pub fn reducer_abort(reducer: &mut BindingReducer) {
    reducer.0.abort();
}
