//! Where tensors lie, and the way from tensors to the kernels of that place.
//!
//! An operation is written once: [`run!`](crate::device::run) opens its operands for the device they are on and calls
//! the same method of [`Cpu`] or [`Cuda`].

use crate::storage::{CudaReading, CudaWriting};
use crate::tensor::Tensor;
use std::fmt;
use syncbn_comm::interrupt::is_interrupted;
use syncbn_core::{Code, Error, Kernels, Ops, Result};
use syncbn_cpu::Cpu;
use syncbn_cpu::buffer::{ReadGuard, WriteGuard};
use syncbn_cuda::Cuda;

/// A place for tensors.
#[derive(Clone, Debug, PartialEq)]
pub enum Device {
    /// The host's memory.
    Cpu,
    /// A GPU's.
    Cuda(Cuda),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(cuda) => cuda.fmt(f),
        }
    }
}

impl Device {
    /// The device called `cpu` or `cuda:N`.
    ///
    /// # Errors
    /// [`Code::Device`] for another name and an index out of range; [`Code::BackendUnavailable`] for a GPU where there
    /// is no driver or none that can be used.
    pub fn parse(op: &str, name: &str) -> Result<Self> {
        if name == "cpu" {
            return Ok(Device::Cpu);
        }
        let digits = |text: &&str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let ordinal = name.strip_prefix("cuda:").filter(digits).and_then(|digits| digits.parse().ok());
        let Some(ordinal) = ordinal else {
            return Err(Error::expected(Code::Device, op, "device 'cpu' or 'cuda:N'", format!("'{name}'")));
        };
        crate::gpu::open(ordinal).map(Device::Cuda)
    }

    /// The GPU, if it is one.
    pub fn cuda(&self) -> Option<&Cuda> {
        match self {
            Device::Cpu => None,
            Device::Cuda(cuda) => Some(cuda),
        }
    }
}

/// Whether a thread that waits for a GPU is to go on: not if it is being ended.
pub(crate) fn keep_waiting() -> Result<()> {
    if !is_interrupted() {
        return Ok(());
    }
    Err(Error::new(Code::Aborted, "this thread is ending; the device was not waited for"))
}

/// Fails unless all tensors are on one device.
pub(crate) fn expect_one_device(op: &str, tensors: &[&Tensor]) -> Result<()> {
    let Some((first, rest)) = tensors.split_first() else { return Ok(()) };
    let Some(other) = rest.iter().find(|other| other.device() != first.device()) else { return Ok(()) };
    let expected = format!("all tensors on one device, {}", first.device());
    Err(Error::expected(Code::Device, op, expected, format!("one on {}", other.device())))
}

/// A device operations run on: its kernels, and how tensors are opened for them.
pub(crate) trait Backend: Kernels + Ops {
    /// A tensor open for reading.
    type Reading<'t>;
    /// A tensor open for writing.
    type Writing<'t>;

    /// Opens `tensor`, which is on this kind of device.
    fn read(tensor: &Tensor) -> Result<Self::Reading<'_>>;

    /// Opens `tensor`, which is on this kind of device.
    fn write(tensor: &Tensor) -> Result<Self::Writing<'_>>;

    /// What kernels read.
    fn input<'g>(guard: &'g Self::Reading<'_>) -> Self::In<'g>;

    /// What kernels write.
    fn output<'g>(guard: &'g mut Self::Writing<'_>) -> Self::Out<'g>;
}

impl Backend for Cpu {
    type Reading<'t> = ReadGuard<'t>;
    type Writing<'t> = WriteGuard<'t>;

    fn read(tensor: &Tensor) -> Result<ReadGuard<'_>> {
        tensor.read()
    }

    fn write(tensor: &Tensor) -> Result<WriteGuard<'_>> {
        tensor.write()
    }

    fn input<'g>(guard: &'g ReadGuard<'_>) -> Self::In<'g> {
        guard.slice()
    }

    fn output<'g>(guard: &'g mut WriteGuard<'_>) -> Self::Out<'g> {
        guard.slice()
    }
}

impl Backend for Cuda {
    type Reading<'t> = CudaReading<'t>;
    type Writing<'t> = CudaWriting<'t>;

    fn read(tensor: &Tensor) -> Result<CudaReading<'_>> {
        tensor.storage().cuda()?.read()
    }

    fn write(tensor: &Tensor) -> Result<CudaWriting<'_>> {
        tensor.storage().cuda()?.write()
    }

    fn input<'g>(guard: &'g CudaReading<'_>) -> Self::In<'g> {
        guard.slice()
    }

    fn output<'g>(guard: &'g mut CudaWriting<'_>) -> Self::Out<'g> {
        guard.slice()
    }
}

/// Runs one operation on the device its operands are on.
///
/// `run!("relu"; read(x = x); write(output = &output); device => device.relu(x, output))`: in the last expression the
/// names are views of the tensors and `device` the kernels. Fails if the tensors are on different devices.
macro_rules! run {
    (
        $op:expr; read($($r:ident = $read:expr),* $(,)?); write($($w:ident = $write:expr),* $(,)?);
        $kernels:ident => $call:expr
    ) => {{
        let operands: &[&$crate::tensor::Tensor] = &[$($read,)* $($write,)*];
        $crate::device::expect_one_device($op, operands)?;
        match operands[0].device() {
            $crate::device::Device::Cpu => {
                let $kernels = &syncbn_cpu::Cpu;
                $crate::device::run!(@open syncbn_cpu::Cpu; read($($r = $read),*); write($($w = $write),*); $call)
            }
            $crate::device::Device::Cuda(cuda) => {
                let $kernels = &cuda;
                $crate::device::run!(@open syncbn_cuda::Cuda; read($($r = $read),*); write($($w = $write),*); $call)
            }
        }
    }};
    (@open $D:ty; read($($r:ident = $read:expr),*); write($($w:ident = $write:expr),*); $call:expr) => {{
        use $crate::device::Backend;
        $(let $r = <$D as Backend>::read($read)?;)*
        $(let mut $w = <$D as Backend>::write($write)?;)*
        $(let $r = <$D as Backend>::input(&$r);)*
        $(let $w = <$D as Backend>::output(&mut $w);)*
        $call
    }};
}
pub(crate) use run;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_device_are_refused() {
        for name in ["", "cuda", "cuda:", "cuda:-1", "cuda:+1", "cuda:1x", "gpu:0", "CPU"] {
            assert_eq!(Device::parse("to", name).unwrap_err().code(), Code::Device, "{name}");
        }
        assert_eq!(Device::parse("to", "cpu").unwrap(), Device::Cpu);
    }
}
