//! Process groups and their collectives.

use crate::convert::{count, device, milliseconds, sizes};
use crate::error::{Result, checked, to_js};
use crate::tensor::{BindingTensor, all};
use napi::Env;
use napi::bindgen_prelude::{ClassInstance, Object, ToNapiValue};
use napi_derive::napi;
use std::cell::RefCell;
use syncbn_comm::{CancelToken, Environment};
use syncbn_core::ReduceOp;
use syncbn_runtime::process_group::{self, Backend, ProcessGroupOptions};
use syncbn_runtime::{ProcessGroup, Work};

thread_local! {
    /// The groups of this JavaScript environment: its end is theirs.
    static GROUPS: RefCell<Vec<ProcessGroup>> = const { RefCell::new(Vec::new()) };
}

/// Ends the groups of an environment that goes. Bounded: a default group ends those made from it at the same time, which
/// are left with nothing to do.
pub fn abort_all() {
    let groups = GROUPS.take();
    groups.iter().for_each(|group| group.abort("the JavaScript environment of this rank ended"));
}

/// A handle on a process group. Opaque to JavaScript.
#[napi]
pub struct BindingGroup(ProcessGroup);

impl BindingGroup {
    /// The group.
    pub fn get(&self) -> &ProcessGroup {
        &self.0
    }

    fn register(group: ProcessGroup) -> Self {
        GROUPS.with_borrow_mut(|groups| groups.push(group.clone()));
        Self(group)
    }
}

/// Ends the wait of an [`init_process_group`] early. Opaque to JavaScript.
#[napi]
#[derive(Default)]
pub struct BindingCancel(CancelToken);

#[napi]
impl BindingCancel {
    #[napi(constructor)]
    pub fn new() -> Self {
        Self::default()
    }

    #[napi(catch_unwind)]
    pub fn cancel(&self) {
        self.0.cancel();
    }
}

/// How this process joins the world.
#[napi(object)]
pub struct BindingGroupOptions {
    pub init_method: String,
    pub rank: Option<f64>,
    pub world_size: Option<f64>,
    pub timeout: f64,
    pub token: Option<String>,
    /// 'tcp' or 'nccl'; chosen if absent.
    pub backend: Option<String>,
    /// The GPU of backend nccl; that of the local rank if absent.
    pub device_id: Option<String>,
}

/// Runs `work` on a thread of its own and settles a promise with what `finish` makes of it on the JavaScript thread.
pub fn promise<'env, T: Send + 'static, R: ToNapiValue + 'static>(
    env: &'env Env,
    work: impl FnOnce() -> syncbn_core::Result<T> + Send + 'static,
    finish: fn(T) -> R,
) -> Result<Object<'env>> {
    let (deferred, promise) = env.create_deferred::<R, Box<dyn FnOnce(Env) -> Result<R>>>()?;
    let run = move || match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
        Ok(Ok(value)) => deferred.resolve(Box::new(move |_| Ok(finish(value)))),
        Ok(Err(error)) => deferred.reject(to_js(error)),
        Err(_) => deferred.reject(to_js(syncbn_core::Error::internal("a native thread panicked"))),
    };
    std::thread::Builder::new()
        .name("syncbn-promise".into())
        .spawn(run)
        .map_err(|cause| to_js(syncbn_core::Error::internal(format!("cannot start a thread: {cause}"))))?;
    Ok(promise)
}

#[napi(catch_unwind, ts_return_type = "Promise<BindingGroup>")]
pub fn init_process_group<'env>(
    env: &'env Env,
    options: BindingGroupOptions,
    cancel: &BindingCancel,
) -> Result<Object<'env>> {
    const OP: &str = "initProcessGroup";
    let number = |what: &str, value: Option<f64>| value.map(|value| count(OP, what, value)).transpose();
    let options = ProcessGroupOptions {
        init_method: options.init_method,
        rank: number("rank", options.rank)?,
        world_size: number("worldSize", options.world_size)?,
        timeout: milliseconds(OP, options.timeout)?,
        token: options.token,
        backend: checked(options.backend.as_deref().map(Backend::parse).transpose())?,
        device: options.device_id.map(|name| device(OP, &name)).transpose()?,
    };
    let cancel = cancel.0.clone();
    promise(env, move || ProcessGroup::init(&options, cancel), BindingGroup::register)
}

#[napi(catch_unwind, ts_return_type = "Promise<BindingGroup>")]
pub fn new_group<'env>(env: &'env Env, world: &BindingGroup, ranks: Vec<i64>, timeout: f64) -> Result<Object<'env>> {
    let (ranks, timeout) = (sizes("newGroup", &ranks)?, milliseconds("newGroup", timeout)?);
    // Here its place among the calls of the program is fixed, whenever the thread gets to run.
    let made = checked(world.0.start_new_group(&ranks, Some(timeout)))?;
    promise(env, move || made.finish(), BindingGroup::register)
}

#[napi(catch_unwind, ts_return_type = "Promise<void>")]
pub fn destroy_group<'env>(env: &'env Env, group: &BindingGroup) -> Result<Object<'env>> {
    let group = group.0.clone();
    GROUPS.with_borrow_mut(|groups| groups.retain(|other| !other.ends_with(&group)));
    promise(
        env,
        move || {
            group.destroy();
            Ok(())
        },
        |()| (),
    )
}

#[napi(catch_unwind)]
pub fn abort_group(group: &BindingGroup) {
    group.0.abort("aborted by this rank");
}

/// What JavaScript shows of a group.
#[napi(object)]
pub struct BindingGroupInfo {
    /// −1 on a rank that is not a member.
    pub rank: i64,
    pub size: i64,
    pub ranks: Vec<i64>,
    pub backend: String,
    /// Why that backend, in a sentence.
    pub reason: String,
    /// The GPU of backend nccl.
    pub device: Option<String>,
    pub timeout: f64,
    pub name: String,
}

#[napi(catch_unwind)]
pub fn group_info(group: &BindingGroup) -> BindingGroupInfo {
    let group = &group.0;
    BindingGroupInfo {
        rank: group.member_rank().map_or(-1, |rank| rank as i64),
        size: group.size() as i64,
        ranks: group.ranks().iter().map(|&rank| rank as i64).collect(),
        backend: group.backend().as_str().into(),
        reason: group.backend_reason().into(),
        device: group.device().map(ToString::to_string),
        timeout: group.timeout().as_secs_f64() * 1e3,
        name: group.name().into(),
    }
}

#[napi(catch_unwind)]
pub fn local_rank() -> Result<u32> {
    let environment = Environment::from_process();
    let rank = checked(environment.number("LOCAL_RANK"))?.or(checked(environment.number("SLURM_LOCALID"))?);
    Ok(rank.unwrap_or(0) as u32)
}

/// A collective under way. Opaque to JavaScript.
#[napi]
pub struct BindingWork(Work);

fn started(work: syncbn_core::Result<Work>) -> Result<BindingWork> {
    checked(work).map(BindingWork)
}

#[napi(catch_unwind)]
pub fn all_reduce(group: &BindingGroup, data: &BindingTensor, op: String) -> Result<BindingWork> {
    started(process_group::all_reduce(&group.0, &data.get()?, checked(ReduceOp::parse(&op))?))
}

#[napi(catch_unwind)]
pub fn all_gather(
    group: &BindingGroup,
    outputs: Vec<ClassInstance<'_, BindingTensor>>,
    input: &BindingTensor,
) -> Result<BindingWork> {
    started(process_group::all_gather(&group.0, &all(&outputs)?, &input.get()?))
}

#[napi(catch_unwind)]
pub fn broadcast(group: &BindingGroup, data: &BindingTensor, src: f64) -> Result<BindingWork> {
    started(process_group::broadcast(&group.0, &data.get()?, count("broadcast", "src", src)?))
}

#[napi(catch_unwind)]
pub fn barrier(group: &BindingGroup) -> Result<BindingWork> {
    started(process_group::barrier(&group.0))
}

#[napi(catch_unwind)]
pub fn monitored_barrier(group: &BindingGroup, timeout: Option<f64>) -> Result<BindingWork> {
    let timeout = timeout.map(|timeout| milliseconds("monitoredBarrier", timeout)).transpose()?;
    started(process_group::monitored_barrier(&group.0, timeout))
}

#[napi(catch_unwind)]
pub fn work_wait(work: &BindingWork) -> Result<()> {
    checked(work.0.wait())
}

#[napi(catch_unwind)]
pub fn work_completed(work: &BindingWork) -> bool {
    work.0.completed()
}

#[napi(catch_unwind, ts_return_type = "Promise<void>")]
pub fn work_promise<'env>(env: &'env Env, work: &BindingWork) -> Result<Object<'env>> {
    let (deferred, promise) = env.create_deferred::<(), fn(Env) -> Result<()>>()?;
    work.0.on_complete(move |result| match result {
        Ok(()) => deferred.resolve(|_| Ok(())),
        Err(error) => deferred.reject(to_js(error)),
    });
    Ok(promise)
}
