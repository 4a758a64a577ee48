//! An NCCL that does what a test tells it: no device, no other ranks, one [`Script`] per communicator.
//!
//! It also watches over NCCL's rules: no two threads inside a call, no call on what was freed, none while another is in
//! progress, and what is in progress is put away by the thread that began it. A broken rule fails the test through
//! [`Script::broken_rules`].

use std::collections::VecDeque;
use std::ffi::{c_char, c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::Duration;
use syncbn_nccl::sys::*;
use syncbn_nccl::{Nccl, UniqueId};

/// What a communicator does, and what was done with it.
#[derive(Default)]
pub struct Script {
    busy: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    plan: Plan,
    calls: Vec<&'static str>,
    in_progress: Option<Pending>,
    /// The thread whose memory holds what is or was in progress, until that is put away.
    began: Option<ThreadId>,
    sticky: ncclResult_t,
    freed: bool,
    broken_rules: Vec<String>,
    config: Option<(c_int, c_int, c_int)>,
    child: Option<(usize, usize)>,
}

/// How the background work of one call goes.
#[derive(Clone, Copy)]
pub struct Pending {
    /// How often it is still in progress when looked at; absent: for ever.
    pub looks: Option<usize>,
    /// How it ends.
    pub end: ncclResult_t,
}

/// What calls return; the rest succeed at once.
#[derive(Default)]
pub struct Plan {
    /// The results of calls, in order, by name; `NCCL_IN_PROGRESS` goes on as the `Pending` beside it says.
    pub results: VecDeque<(&'static str, ncclResult_t, Option<Pending>)>,
    /// How long collectives stay inside the call.
    pub inside: Duration,
    /// The call that does not return: before an abort, or, if it is one that ends the communicator, at all.
    pub stuck: Option<&'static str>,
}

impl Script {
    /// A script for a communicator; lives as long as the process, as what NCCL's handles point to.
    pub fn new(results: &[(&'static str, ncclResult_t, Option<Pending>)]) -> &'static Self {
        let script = Box::leak(Box::<Self>::default());
        script.lock().plan.results = results.iter().copied().collect();
        script
    }

    /// Lets collectives stay inside the call for a while.
    pub fn stay_inside(&self, time: Duration) {
        self.lock().plan.inside = time;
    }

    /// Lets a call stay inside until the communicator is aborted; an abort or a destroy stays for ever.
    pub fn stick_in(&self, name: &'static str) {
        self.lock().plan.stuck = Some(name);
    }

    /// The id that leads a communicator to this script.
    pub fn id(&'static self) -> UniqueId {
        let mut bytes = [0; UniqueId::BYTES];
        bytes[..size_of::<usize>()].copy_from_slice(&(&raw const *self as usize).to_ne_bytes());
        UniqueId::from_bytes(bytes)
    }

    /// The functions called so far, without the looks at the status.
    pub fn calls(&self) -> Vec<&'static str> {
        self.lock().calls.clone()
    }

    /// `(blocking, minCTAs, maxCTAs)` of the configuration the communicator was made with.
    pub fn config(&self) -> Option<(c_int, c_int, c_int)> {
        self.lock().config
    }

    /// Which of NCCL's rules the calls broke.
    pub fn broken_rules(&self) -> Vec<String> {
        self.lock().broken_rules.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One call, made under NCCL's rules.
    fn call(&self, name: &'static str) -> ncclResult_t {
        let mut inner = self.enter(name);
        inner.calls.push(name);
        let ends = matches!(name, "ncclCommAbort" | "ncclCommDestroy");
        inner.put_away(name);
        if inner.in_progress.is_some() && name != "ncclCommAbort" {
            inner.broken_rules.push(format!("{name} while another call is in progress"));
        }
        inner.freed |= ends;
        let planned = inner.plan.results.front().is_some_and(|(function, ..)| *function == name);
        let (result, pending) = if planned {
            let (_, result, pending) = inner.plan.results.pop_front().unwrap();
            (result, pending)
        } else {
            (NCCL_SUCCESS, None)
        };
        inner.in_progress = pending;
        if result == NCCL_IN_PROGRESS {
            inner.began = Some(std::thread::current().id());
        }
        let (stay, stuck) = (inner.plan.inside, inner.plan.stuck == Some(name));
        drop(inner);
        while stuck && (ends || !self.lock().freed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        if !ends {
            std::thread::sleep(stay);
        }
        self.busy.store(false, Ordering::SeqCst);
        result
    }

    fn look(&self) -> ncclResult_t {
        let mut inner = self.enter("ncclCommGetAsyncError");
        let state = match &mut inner.in_progress {
            None => inner.sticky,
            Some(Pending { looks: None, .. }) => NCCL_IN_PROGRESS,
            Some(Pending { looks: Some(0), end }) => {
                inner.sticky = *end;
                inner.in_progress = None;
                inner.sticky
            }
            Some(Pending { looks: Some(looks), .. }) => {
                *looks -= 1;
                NCCL_IN_PROGRESS
            }
        };
        drop(inner);
        self.busy.store(false, Ordering::SeqCst);
        state
    }

    fn enter(&self, name: &'static str) -> MutexGuard<'_, Inner> {
        let other = self.busy.swap(true, Ordering::SeqCst);
        let mut inner = self.lock();
        // What only an abort ends has to be aborted from under its thread.
        let last_resort = name == "ncclCommAbort" && inner.plan.stuck == inner.calls.last().copied();
        if other && !last_resort {
            inner.broken_rules.push(format!("{name} while another thread is inside a call"));
        }
        if inner.freed {
            inner.broken_rules.push(format!("{name} after the communicator was freed"));
        }
        inner
    }
}

impl Inner {
    /// The calls that need the communicator to be ready put away what was in progress.
    fn put_away(&mut self, name: &str) {
        let own = self.began.take().is_none_or(|thread| thread == std::thread::current().id());
        // The thread that began it waits for the abort, and so is still there.
        if !own && name != "ncclCommAbort" {
            self.broken_rules.push(format!("{name} puts away what another thread began"));
        }
    }
}

thread_local! {
    static GROUP: std::cell::RefCell<Option<&'static Script>> = const { std::cell::RefCell::new(None) };
}

/// # Safety
/// `communicator` came from [`comm_init_rank_config`] or [`comm_split`].
unsafe fn script(communicator: ncclComm_t) -> &'static Script {
    // SAFETY: handles are addresses of scripts, which are leaked.
    unsafe { &*communicator.cast::<Script>() }
}

unsafe extern "C" fn get_version(version: *mut c_int) -> ncclResult_t {
    // SAFETY: the caller's pointer is good for a number.
    unsafe { version.write(22809) };
    NCCL_SUCCESS
}

unsafe extern "C" fn get_old_version(version: *mut c_int) -> ncclResult_t {
    // SAFETY: the caller's pointer is good for a number.
    unsafe { version.write(21805) };
    NCCL_SUCCESS
}

unsafe extern "C" fn get_unique_id(id: *mut ncclUniqueId) -> ncclResult_t {
    // SAFETY: the caller's pointer is good for an id.
    unsafe { id.write((&Script::new(&[]).id()).into()) };
    NCCL_SUCCESS
}

unsafe extern "C" fn comm_init_rank_config(
    communicator: *mut ncclComm_t,
    _ranks: c_int,
    id: ncclUniqueId,
    _rank: c_int,
    config: *mut ncclConfig_t,
) -> ncclResult_t {
    let address = UniqueId::from(id).as_bytes()[..size_of::<usize>()].try_into().unwrap();
    let handle = usize::from_ne_bytes(address) as ncclComm_t;
    // SAFETY: the id holds the address of a leaked script.
    let script = unsafe { script(handle) };
    // SAFETY: the caller's pointers are good for a configuration and a handle.
    unsafe {
        let config = &*config;
        assert_eq!((config.size, config.magic), (size_of::<ncclConfig_t>(), 0xcafe_beef));
        script.lock().config = Some((config.blocking, config.minCTAs, config.maxCTAs));
        communicator.write(handle);
    }
    script.call("ncclCommInitRankConfig")
}

unsafe extern "C" fn comm_get_async_error(communicator: ncclComm_t, state: *mut ncclResult_t) -> ncclResult_t {
    // SAFETY: the caller's handle is a script, its pointer good for a result.
    unsafe { state.write(script(communicator).look()) };
    NCCL_SUCCESS
}

/// Functions that only have a communicator.
macro_rules! on_communicator {
    ($($name:ident: $symbol:literal,)*) => {$(
        unsafe extern "C" fn $name(communicator: ncclComm_t) -> ncclResult_t {
            // SAFETY: the caller's handle is a script.
            unsafe { script(communicator) }.call($symbol)
        }
    )*};
}

on_communicator! {
    comm_abort: "ncclCommAbort",
    comm_finalize: "ncclCommFinalize",
    comm_destroy: "ncclCommDestroy",
}

unsafe extern "C" fn comm_count(communicator: ncclComm_t, count: *mut c_int) -> ncclResult_t {
    // SAFETY: the caller's handle is a script.
    let script = unsafe { script(communicator) };
    let mut inner = script.enter("ncclCommCount");
    inner.put_away("ncclCommCount");
    // SAFETY: the caller's pointer is good for a number.
    unsafe { count.write(inner.child.map_or(0, |(_, ranks)| ranks as c_int)) };
    drop(inner);
    script.busy.store(false, Ordering::SeqCst);
    NCCL_SUCCESS
}

unsafe extern "C" fn comm_user_rank(communicator: ncclComm_t, rank: *mut c_int) -> ncclResult_t {
    // SAFETY: the caller's handle is a script, its pointer good for a number.
    unsafe { rank.write(script(communicator).lock().child.unwrap().0 as c_int) };
    NCCL_SUCCESS
}

/// The colour is the child's rank, the key its number of ranks.
unsafe extern "C" fn comm_split(
    communicator: ncclComm_t,
    color: c_int,
    key: c_int,
    child: *mut ncclComm_t,
    _config: *mut ncclConfig_t,
) -> ncclResult_t {
    if color != NCCL_SPLIT_NOCOLOR {
        let made = Script::new(&[]);
        made.lock().child = Some((color as usize, key as usize));
        // SAFETY: the caller's pointer is good for a handle.
        unsafe { child.write((&raw const *made).cast_mut().cast()) };
    }
    // SAFETY: the caller's handle is a script.
    unsafe { script(communicator) }.call("ncclCommSplit")
}

fn collective(name: &'static str, communicator: ncclComm_t) -> ncclResult_t {
    // SAFETY: the caller's handle is a script.
    let script = unsafe { script(communicator) };
    GROUP.with_borrow_mut(|group| *group = Some(script));
    script.call(name)
}

unsafe extern "C" fn all_gather(
    _: *const c_void,
    _: *mut c_void,
    _: usize,
    _: ncclDataType_t,
    communicator: ncclComm_t,
    _: cudaStream_t,
) -> ncclResult_t {
    collective("ncclAllGather", communicator)
}

unsafe extern "C" fn all_reduce(
    _: *const c_void,
    _: *mut c_void,
    _: usize,
    _: ncclDataType_t,
    _: ncclRedOp_t,
    communicator: ncclComm_t,
    _: cudaStream_t,
) -> ncclResult_t {
    collective("ncclAllReduce", communicator)
}

unsafe extern "C" fn broadcast(
    _: *const c_void,
    _: *mut c_void,
    _: usize,
    _: ncclDataType_t,
    _: c_int,
    communicator: ncclComm_t,
    _: cudaStream_t,
) -> ncclResult_t {
    collective("ncclBroadcast", communicator)
}

unsafe extern "C" fn reduce(
    _: *const c_void,
    _: *mut c_void,
    _: usize,
    _: ncclDataType_t,
    _: ncclRedOp_t,
    _: c_int,
    communicator: ncclComm_t,
    _: cudaStream_t,
) -> ncclResult_t {
    collective("ncclReduce", communicator)
}

unsafe extern "C" fn group_start() -> ncclResult_t {
    GROUP.with_borrow_mut(Option::take);
    NCCL_SUCCESS
}

/// Belongs to the script of the group's collectives.
unsafe extern "C" fn group_end() -> ncclResult_t {
    GROUP.with_borrow_mut(Option::take).map_or(NCCL_SUCCESS, |script| script.call("ncclGroupEnd"))
}

unsafe extern "C" fn get_error_string(code: ncclResult_t) -> *const c_char {
    if code == NCCL_REMOTE_ERROR { c"remote process exited".as_ptr() } else { c"scripted error".as_ptr() }
}

unsafe extern "C" fn get_last_error(_: ncclComm_t) -> *const c_char {
    c"as the script says".as_ptr()
}

/// The table of the functions above.
pub const FUNCTIONS: Functions = Functions {
    get_version,
    get_unique_id,
    comm_init_rank_config,
    comm_get_async_error,
    comm_abort,
    comm_finalize,
    comm_destroy,
    comm_count,
    comm_user_rank,
    all_gather,
    all_reduce,
    broadcast,
    reduce,
    group_start,
    group_end,
    get_error_string,
    get_last_error,
    comm_split,
};

/// The table of a library too old for this crate.
pub const OLD_FUNCTIONS: Functions = Functions { get_version: get_old_version, ..FUNCTIONS };

/// The scripted NCCL.
pub fn nccl() -> Nccl {
    // SAFETY: the functions above keep NCCL's contracts, and are part of the program.
    unsafe { Nccl::from_functions(FUNCTIONS, "scripted") }.unwrap()
}
