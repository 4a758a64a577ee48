//! Tensors in safetensors files, the format PyTorch users exchange.
//!
//! A file is written under a temporary name beside its own, synced and renamed: a crash leaves the old file or the new.

use crate::device::Device;
use crate::tensor::Tensor;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use syncbn_core::{Code, DType, Error, MemoryFormat, Result};

const DTYPES: [(DType, Dtype); 6] = [
    (DType::F32, Dtype::F32),
    (DType::F64, Dtype::F64),
    (DType::F16, Dtype::F16),
    (DType::BF16, Dtype::BF16),
    (DType::I32, Dtype::I32),
    (DType::I64, Dtype::I64),
];

fn file_error(path: &Path, what: &str, cause: impl std::fmt::Display) -> Error {
    Error::new(Code::File, format!("cannot {what} {}: {cause}", path.display()))
}

fn expect_names(tensors: &[(String, Tensor)]) -> Result<()> {
    let mut seen = HashSet::from(["__metadata__"]);
    match tensors.iter().find(|(name, _)| !seen.insert(name)) {
        None => Ok(()),
        Some((name, _)) => {
            let expected = "distinct names other than '__metadata__'";
            Err(Error::expected(Code::Argument, "saveSafetensors", expected, format!("'{name}'")))
        }
    }
}

/// One file's bytes, taken now so that later changes of the tensors do not reach it.
#[derive(Debug)]
pub struct Snapshot(Vec<u8>);

impl Snapshot {
    /// Serialises tensors under their names; values are in row-major order.
    ///
    /// # Errors
    /// [`Code::Argument`] for a name that comes twice or is the format's own `__metadata__`.
    pub fn new(tensors: &[(String, Tensor)], metadata: Option<HashMap<String, String>>) -> Result<Self> {
        expect_names(tensors)?;
        let on_host = |tensor: &Tensor| tensor.contiguous()?.to_device(&Device::Cpu);
        let contiguous = tensors.iter().map(|(_, tensor)| on_host(tensor)).collect::<Result<Vec<_>>>()?;
        let guards = contiguous.iter().map(Tensor::read).collect::<Result<Vec<_>>>()?;
        let views = tensors
            .iter()
            .zip(&guards)
            .map(|((name, tensor), guard)| {
                let dtype = DTYPES.iter().find(|(ours, _)| *ours == tensor.dtype()).map(|(_, theirs)| *theirs);
                let dtype = dtype.ok_or_else(|| Error::internal("a dtype without a safetensors name"))?;
                let view = TensorView::new(dtype, tensor.shape().to_vec(), guard.bytes());
                Ok((name.as_str(), view.map_err(|cause| Error::new(Code::File, format!("tensor {name}: {cause}")))?))
            })
            .collect::<Result<Vec<_>>>()?;
        let bytes = safetensors::serialize(views, metadata);
        bytes.map(Self).map_err(|cause| Error::new(Code::File, format!("cannot serialize tensors: {cause}")))
    }

    /// Writes the file whole or not at all.
    pub fn write(&self, path: &Path) -> Result<()> {
        let temporary = temporary_name(path);
        let written = File::create(&temporary).and_then(|mut file| {
            file.write_all(&self.0)?;
            file.sync_all()
        });
        let renamed = written.and_then(|()| std::fs::rename(&temporary, path));
        renamed.map_err(|cause| {
            // Best effort: the error that matters is the one that is reported.
            let _ = std::fs::remove_file(&temporary);
            file_error(path, "write", cause)
        })?;
        // The rename itself is durable once the folder is; not every file system lets one sync a folder.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
        Ok(())
    }
}

/// A name no other write uses: ranks may be threads of one process.
fn temporary_name(path: &Path) -> PathBuf {
    static WRITES: AtomicU64 = AtomicU64::new(0);
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}-{}.tmp", std::process::id(), WRITES.fetch_add(1, Ordering::Relaxed)));
    path.with_file_name(name)
}

/// Tensors in file order, and the file's metadata.
pub type Loaded = (Vec<(String, Tensor)>, HashMap<String, String>);

/// Reads every tensor of a file.
pub fn load(path: &Path) -> Result<Loaded> {
    let bytes = std::fs::read(path).map_err(|cause| file_error(path, "read", cause))?;
    let malformed = |cause: safetensors::SafeTensorError| file_error(path, "understand", cause);
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(malformed)?;
    let file = SafeTensors::deserialize(&bytes).map_err(malformed)?;
    let tensors = header
        .offset_keys()
        .into_iter()
        .map(|name| {
            let view = file.tensor(&name).map_err(malformed)?;
            let dtype = DTYPES.iter().find(|(_, theirs)| *theirs == view.dtype()).map(|(ours, _)| *ours);
            let dtype = dtype.ok_or_else(|| {
                let got = format!("{:?} for {name} in {}", view.dtype(), path.display());
                Error::expected(Code::DType, "loadSafetensors", "float32/64/16, bfloat16 or int32/64", got)
            })?;
            let tensor = Tensor::empty("loadSafetensors", &Device::Cpu, view.shape(), dtype, MemoryFormat::Contiguous)?;
            tensor.write()?.bytes().copy_from_slice(view.data());
            Ok((name, tensor))
        })
        .collect::<Result<Vec<_>>>()?;
    Ok((tensors, header.metadata().clone().unwrap_or_default()))
}
