//! Samplers and checkpoints.

use crate::convert::count;
use crate::error::{Result, checked};
use crate::process_group::promise;
use crate::tensor::{BindingTensor, all};
use napi::Env;
use napi::bindgen_prelude::{ClassInstance, Object, Uint32Array};
use napi_derive::napi;
use std::collections::HashMap;
use std::path::PathBuf;
use syncbn_core::sampler::DistributedSampling;
use syncbn_runtime::checkpoint::{self, Loaded, Snapshot};

#[allow(clippy::too_many_arguments, reason = "the seven numbers of a sampler")]
#[napi(catch_unwind)]
pub fn distributed_indices(
    length: f64,
    num_replicas: f64,
    rank: f64,
    shuffle: bool,
    seed: f64,
    epoch: f64,
    drop_last: bool,
) -> Result<Uint32Array> {
    let number = |what: &str, value: f64| count("DistributedSampler", what, value);
    let rule = DistributedSampling {
        length: number("length", length)?,
        num_replicas: number("numReplicas", num_replicas)?,
        rank: number("rank", rank)?,
        shuffle,
        seed: number("seed", seed)? as u64,
        epoch: number("epoch", epoch)? as u64,
        drop_last,
    };
    Ok(Uint32Array::new(checked(rule.indices())?))
}

#[napi(catch_unwind, ts_return_type = "Promise<void>")]
pub fn save_safetensors<'env>(
    env: &'env Env,
    path: String,
    names: Vec<String>,
    tensors: Vec<ClassInstance<'_, BindingTensor>>,
    metadata: Option<HashMap<String, String>>,
) -> Result<Object<'env>> {
    let tensors: Vec<_> = names.into_iter().zip(all(&tensors)?).collect();
    let (snapshot, path) = (checked(Snapshot::new(&tensors, metadata))?, PathBuf::from(path));
    promise(env, move || snapshot.write(&path), |()| ())
}

/// Result of [`load_safetensors`].
#[napi(object, object_from_js = false)]
pub struct BindingCheckpoint {
    pub names: Vec<String>,
    pub tensors: Vec<BindingTensor>,
    pub metadata: HashMap<String, String>,
}

fn to_binding((tensors, metadata): Loaded) -> BindingCheckpoint {
    let (names, tensors) = tensors.into_iter().map(|(name, tensor)| (name, BindingTensor::from(tensor))).unzip();
    BindingCheckpoint { names, tensors, metadata }
}

#[napi(catch_unwind, ts_return_type = "Promise<BindingCheckpoint>")]
pub fn load_safetensors<'env>(env: &'env Env, path: String) -> Result<Object<'env>> {
    let path = PathBuf::from(path);
    promise(env, move || checkpoint::load(&path), to_binding)
}
