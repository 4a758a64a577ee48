//! Averages gradients over ranks, in buckets, while backward goes on.
//!
//! Buckets of half-precision gradients are float32, so that sums lose nothing on the way. The verbs are those of
//! PyTorch's c10d `Reducer`. Buckets are handed to the group's thread in the order of the plan,
//! whatever order gradients become ready in, so that all ranks make the same calls.

use crate::device::{Device, expect_one_device};
use crate::process_group::{ProcessGroup, all_reduce, broadcast_on_device};
use crate::region::Region;
use crate::tensor::Tensor;
use crate::text::gather_text;
use crate::work::Work;
use syncbn_core::bucket::{Bucket, ParameterSize, plan_buckets};
use syncbn_core::{Code, DType, Error, MemoryFormat, ReduceOp, Result};

/// One bucket of one step.
struct Slot {
    plan: Bucket,
    memory: Tensor,
    ready: Vec<bool>,
    work: Option<Work>,
}

/// Where a parameter lies.
#[derive(Clone, Copy)]
struct Place {
    bucket: usize,
    position: usize,
}

/// See the [module documentation](self).
pub struct Reducer {
    group: ProcessGroup,
    device: Device,
    names: Vec<String>,
    /// Of the parameters and their gradients.
    dtypes: Vec<DType>,
    places: Vec<Place>,
    slots: Vec<Slot>,
    next: usize,
    armed: bool,
}

impl std::fmt::Debug for Reducer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reducer").field("parameters", &self.names.len()).field("buckets", &self.slots.len()).finish()
    }
}

impl Reducer {
    /// Plans buckets of at most `bucket_bytes`, the first of at most `first_bucket_bytes`.
    pub fn new(
        group: ProcessGroup,
        names: Vec<String>,
        parameters: &[Tensor],
        bucket_bytes: usize,
        first_bucket_bytes: usize,
    ) -> Result<Self> {
        group.expect_member("DistributedDataParallel")?;
        parameters.iter().try_for_each(|parameter| parameter.expect_float("DistributedDataParallel"))?;
        let dtypes: Vec<DType> = parameters.iter().map(Tensor::dtype).collect();
        let size = |p: &Tensor| ParameterSize { numel: p.numel(), dtype: p.dtype().accumulate() };
        let sizes: Vec<_> = parameters.iter().map(size).collect();
        let all: Vec<&Tensor> = parameters.iter().collect();
        expect_one_device("DistributedDataParallel", &all)?;
        let device = parameters.first().map_or(Device::Cpu, Tensor::device);
        if let Device::Cuda(cuda) = &device {
            group.expect_device("DistributedDataParallel", cuda)?;
        }
        let slots = plan_buckets(&sizes, first_bucket_bytes.min(bucket_bytes), bucket_bytes)
            .into_iter()
            .map(|plan| {
                let format = MemoryFormat::Contiguous;
                let memory = Tensor::empty("DistributedDataParallel", &device, &[plan.numel], plan.dtype, format)?;
                Ok(Slot { ready: vec![false; plan.parameters.len()], memory, work: None, plan })
            })
            .collect::<Result<Vec<_>>>()?;
        let mut places = vec![Place { bucket: 0, position: 0 }; parameters.len()];
        for (bucket, slot) in slots.iter().enumerate() {
            for (position, &index) in slot.plan.parameters.iter().enumerate() {
                places[index] = Place { bucket, position };
            }
        }
        Ok(Self { group, device, names, dtypes, places, slots, next: 0, armed: false })
    }

    /// Starts a backward pass. `used` tells which parameters this rank's graph reaches; the answer tells which any
    /// rank's does. Parameters this rank does not use take part with zeros. Without `used`, all are.
    pub fn prepare_for_backward(&mut self, used: Option<&[bool]>) -> Result<Vec<bool>> {
        self.abort();
        let Some(used) = used else {
            self.armed = true;
            return Ok(vec![true; self.names.len()]);
        };
        if used.len() != self.names.len() {
            return Err(Error::expected(Code::Argument, "reducer", format!("{} flags", self.names.len()), used.len()));
        }
        if let Device::Cuda(cuda) = &self.device {
            cuda.refuse_in_capture("findUnusedParameters")?;
        }
        let mut flags: Vec<u8> = used.iter().flat_map(|&used| i32::from(used).to_ne_bytes()).collect();
        self.group.run(|group| group.all_reduce(&mut flags, DType::I32, ReduceOp::Max))?;
        self.armed = true;
        for index in (0..used.len()).rev().filter(|&index| !used[index]) {
            self.fill(index, |region| region.zero())?;
        }
        Ok(flags.chunks_exact(4).map(|flag| flag.iter().any(|&byte| byte != 0)).collect())
    }

    /// Copies a finished gradient to its bucket; a full bucket is handed to the group's thread.
    pub fn mark_variable_ready(&mut self, index: usize, gradient: &Tensor) -> Result<()> {
        if !self.armed {
            return Ok(());
        }
        let Place { bucket, position } = self.place(index)?;
        gradient.expect_dtype("DistributedDataParallel", "a gradient", self.dtypes[index])?;
        if self.slots[bucket].ready[position] {
            let message = format!("parameter {} was marked ready twice in one backward pass", self.names[index]);
            return Err(Error::new(Code::UnusedParameters, message));
        }
        self.fill(index, |region| region.copy_from(gradient))
    }

    fn place(&self, index: usize) -> Result<Place> {
        self.places.get(index).copied().ok_or_else(|| Error::internal(format!("no parameter {index} in the reducer")))
    }

    fn fill(&mut self, index: usize, write: impl FnOnce(&Region<'_>) -> Result<()>) -> Result<()> {
        let Place { bucket, position } = self.place(index)?;
        let slot = &mut self.slots[bucket];
        write(&Region::new(&slot.memory, range(&slot.plan, position)))?;
        slot.ready[position] = true;
        self.mark_buckets_ready()
    }

    fn mark_buckets_ready(&mut self) -> Result<()> {
        while let Some(slot) = self.slots.get_mut(self.next).filter(|slot| slot.ready.iter().all(|&ready| ready)) {
            slot.work = Some(all_reduce(&self.group, &slot.memory, ReduceOp::Avg)?);
            self.next += 1;
        }
        Ok(())
    }

    /// Waits for every bucket and writes the averages to `gradients`, one for each of `indices`.
    ///
    /// # Errors
    /// [`Code::UnusedParameters`] naming the parameters whose gradients were not made, and any error of the exchange.
    pub fn finalize_backward(&mut self, indices: &[usize], gradients: &[Tensor]) -> Result<()> {
        let missing = self.missing();
        if !missing.is_empty() {
            self.abort();
            return Err(Error::new(
                Code::UnusedParameters,
                format!(
                    "these parameters got no gradient in this backward pass: {}; pass findUnusedParameters: true if \
                     that is intended",
                    missing.join(", ")
                ),
            ));
        }
        let works: Vec<Work> = self.slots.iter_mut().filter_map(|slot| slot.work.take()).collect();
        self.reset();
        works.into_iter().try_for_each(|work| work.wait())?;
        for (&index, gradient) in indices.iter().zip(gradients) {
            let Place { bucket, position } = self.place(index)?;
            let slot = &self.slots[bucket];
            Region::new(&slot.memory, range(&slot.plan, position)).copy_to(gradient)?;
        }
        Ok(())
    }

    fn missing(&self) -> Vec<String> {
        let unready = |slot: &Slot| -> Vec<usize> {
            slot.plan
                .parameters
                .iter()
                .zip(&slot.ready)
                .filter(|(_, ready)| !**ready)
                .map(|(&index, _)| index)
                .collect()
        };
        let mut indices: Vec<usize> = self.slots.iter().flat_map(unready).collect();
        indices.sort_unstable();
        indices.into_iter().map(|index| self.names[index].clone()).collect()
    }

    /// Forgets a step that failed: waits for what is under way and drops it.
    pub fn abort(&mut self) {
        self.slots.iter_mut().filter_map(|slot| slot.work.take()).for_each(|work| {
            // The step has failed already; this error would only repeat why.
            let _ = work.wait();
        });
        self.reset();
    }

    fn reset(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.ready.fill(false));
        (self.next, self.armed) = (0, false);
    }
}

/// The elements of a parameter in its bucket.
fn range(plan: &Bucket, position: usize) -> std::ops::Range<usize> {
    plan.offsets[position]..plan.offsets.get(position + 1).copied().unwrap_or(plan.numel)
}

/// Fails on every rank unless all have the same tensors: number, names, shapes, types and formats, in order; and unless
/// every rank's tensors, `others` included, are where its group exchanges, and no rank has found a `problem` by itself.
pub fn verify_parameters(
    group: &ProcessGroup,
    names: &[String],
    tensors: &[Tensor],
    others: &[Tensor],
    problem: Option<&str>,
) -> Result<()> {
    const OP: &str = "DistributedDataParallel";
    group.expect_member(OP)?;
    // The others learn of it before anybody is kept waiting.
    let places =
        problem.map_or_else(|| check_places(group, tensors, others), |problem| Err(Error::new(Code::Device, problem)));
    let verdict = places.as_ref().map_or_else(|error| error.message().replace('\n', " "), |()| String::new());
    let describe = |(name, tensor): (&String, &Tensor)| {
        // A name may have a line's end.
        let name = name.escape_debug();
        // Over NCCL, ranks whose tensors are on the CPU would make other exchanges than the rest.
        let place = match tensor.device() {
            Device::Cpu if group.device().is_some() => " on cpu",
            _ => "",
        };
        format!("{name} {:?} {} {}{place}", tensor.shape(), tensor.dtype(), tensor.format())
    };
    let lines: Vec<String> = [verdict].into_iter().chain(names.iter().zip(tensors).map(describe)).collect();
    let all = group.run(|group| gather_text(group, &lines.join("\n")))?;
    places?;
    let texts: Vec<Vec<&str>> = all.iter().map(|text| text.split('\n').collect()).collect();
    if let Some(index) = texts.iter().position(|text| !text[0].is_empty()) {
        let (rank, why) = (group.ranks()[index], texts[index][0]);
        let error = Error::new(Code::Device, format!("{OP}: rank {rank} cannot take part: {why}"));
        return Err(error.with_group(group.name()).with_peer(rank));
    }
    for (index, theirs) in texts.iter().enumerate().skip(1) {
        let first = &texts[0];
        let differs = (1..first.len().max(theirs.len())).find(|&i| first.get(i) != theirs.get(i));
        if let Some(i) = differs {
            let show = |lines: &[&str]| lines.get(i).map_or("nothing".to_string(), |line| (*line).to_string());
            let (r0, r) = (group.ranks()[0], group.ranks()[index]);
            let message = format!(
                "{OP}: parameter {} differs between ranks: rank {r0} has {}, rank {r} has {}",
                i - 1,
                show(first),
                show(theirs)
            );
            return Err(Error::new(Code::ParameterMismatch, message).with_group(group.name()).with_peer(r));
        }
    }
    Ok(())
}

/// Whether this rank's tensors are on one device, on which its group exchanges.
fn check_places(group: &ProcessGroup, tensors: &[Tensor], others: &[Tensor]) -> Result<()> {
    const OP: &str = "DistributedDataParallel";
    let all: Vec<&Tensor> = tensors.iter().collect();
    expect_one_device(OP, &all)?;
    tensors.iter().try_for_each(|tensor| tensor.expect_float(OP))?;
    tensors.iter().chain(others).try_for_each(|tensor| match tensor.device() {
        Device::Cpu => Ok(()),
        Device::Cuda(cuda) => group.expect_device(OP, &cuda),
    })
}

/// Replaces tensors by those of global rank `src`, in one message. Versions stay: the values were never another's.
pub fn broadcast_tensors(group: &ProcessGroup, tensors: &[Tensor], src: usize) -> Result<()> {
    group.expect_member("broadcast")?;
    let src = group.index_of("broadcast", src)?;
    let (host, device): (Vec<Tensor>, Vec<Tensor>) =
        tensors.iter().cloned().partition(|tensor| tensor.device() == Device::Cpu);
    if !device.is_empty() {
        broadcast_on_device(group, &device, src)?.wait()?;
    }
    if !host.is_empty() {
        broadcast_on_host(group, &host, src)?;
    }
    Ok(())
}

fn broadcast_on_host(group: &ProcessGroup, tensors: &[Tensor], src: usize) -> Result<()> {
    let mut bytes = Vec::with_capacity(tensors.iter().map(|tensor| tensor.storage().bytes()).sum());
    for tensor in tensors {
        bytes.extend_from_slice(tensor.read()?.bytes());
    }
    group.run(|group| group.broadcast(&mut bytes, src))?;
    if group.member_rank() == Some(src) {
        return Ok(());
    }
    let mut rest = &bytes[..];
    for tensor in tensors {
        let (mine, others) = rest.split_at(tensor.storage().bytes());
        tensor.write()?.bytes().copy_from_slice(mine);
        rest = others;
    }
    Ok(())
}
