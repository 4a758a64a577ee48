//! What the tests of this crate share: ranks as threads over loopback sockets, tensors from numbers and back.

#![allow(dead_code, reason = "each test binary uses a part")]

pub mod place;

pub use place::{Place, place};

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;
use syncbn_comm::CancelToken;
use syncbn_core::{Code, DType, Error, MemoryFormat, Result};
use syncbn_cpu::HostSlice;
use syncbn_runtime::process_group::{Backend, ProcessGroupOptions};
use syncbn_runtime::{Device, ProcessGroup, Tensor};

/// Bounds every wait of a test, long enough for a loaded machine.
pub const TIMEOUT: Duration = Duration::from_secs(20);

/// Where the search for a free port is made.
const FIRST_PORT: u16 = 12_000;
const SPAN: u32 = 20_000;

/// A port that is free, and that no other test of this process was given.
///
/// It lies below the range from which systems choose the ports of connections, one of which could take it before the
/// rendezvous does.
pub fn free_port() -> u16 {
    static TRIED: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(97);
    (0..SPAN)
        .map(|_| start.wrapping_add(TRIED.fetch_add(1, Ordering::Relaxed)) % SPAN)
        .map(|offset| FIRST_PORT + offset as u16)
        .find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        .expect("a free port")
}

/// Runs `body(group)` on every rank of a fresh world of `size`, each rank a thread; the results in rank order.
///
/// A rank leaves only after all have returned from `body`, so that no goodbye is taken for a failure.
pub fn ranks<T: Send>(size: usize, body: impl Fn(&ProcessGroup) -> T + Sync) -> Vec<T> {
    let port = free_port();
    let groups: Vec<ProcessGroup> = join_all(size, |rank| {
        place::set_rank(rank);
        let options = ProcessGroupOptions {
            init_method: format!("tcp://127.0.0.1:{port}"),
            rank: Some(rank),
            world_size: Some(size),
            timeout: TIMEOUT,
            token: Some("secret".into()),
            backend: Some(if place() == Place::CudaNccl { Backend::Nccl } else { Backend::Tcp }),
            device: Some(place::device()),
        };
        ProcessGroup::init(&options, CancelToken::default()).unwrap()
    });
    let results = join_all(size, |rank| {
        place::set_rank(rank);
        body(&groups[rank])
    });
    join_all(size, |rank| groups[rank].destroy());
    results
}

/// Runs `body(0)`, …, `body(count − 1)` at the same time.
pub fn join_all<T: Send>(count: usize, body: impl Fn(usize) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let body = &body;
        let handles: Vec<_> = (0..count).map(|index| scope.spawn(move || body(index))).collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    })
}

/// A tensor of `values`, given in row-major order, on this rank's device.
pub fn tensor(values: &[f64], shape: &[usize], dtype: DType, format: MemoryFormat) -> Tensor {
    let tensor = Tensor::from_slice("test", HostSlice::F64(values), shape, dtype, format).unwrap();
    tensor.to_device(&place::device()).unwrap()
}

/// A one-dimensional tensor of float32 on this rank's device.
pub fn row(values: &[f32]) -> Tensor {
    let wide: Vec<f64> = values.iter().map(|&value| value.into()).collect();
    tensor(&wide, &[values.len()], DType::F32, MemoryFormat::Contiguous)
}

/// The values of a tensor in row-major order.
pub fn values(tensor: &Tensor) -> Vec<f64> {
    let tensor = tensor.to_device(&Device::Cpu).unwrap();
    let wide = tensor.to_dtype(DType::F64).unwrap().contiguous().unwrap();
    let guard = wide.read().unwrap();
    let HostSlice::F64(values) = guard.slice() else { panic!("converted to float64") };
    values.to_vec()
}

/// The values of a float32 tensor.
pub fn floats(tensor: &Tensor) -> Vec<f32> {
    assert_eq!(tensor.dtype(), DType::F32);
    values(tensor).into_iter().map(|value| value as f32).collect()
}

/// The memory of a tensor.
pub fn bytes(tensor: &Tensor) -> Vec<u8> {
    tensor.to_device(&Device::Cpu).unwrap().read().unwrap().bytes().to_vec()
}

/// Asserts the code of an error and returns it.
#[track_caller]
pub fn expect<T>(result: Result<T>, code: Code) -> Error {
    match result {
        Err(error) if error.code() == code => error,
        Err(error) => panic!("expected {}, got {error:?}", code.as_str()),
        Ok(_) => panic!("expected {}, got success", code.as_str()),
    }
}
