//! The threads CPU kernels share: [`parallel`] spreads units of work over the caller and a few persistent workers.
//!
//! Workers are made when first needed, spin for [`SPIN`] after each job (the gap between two layers of a training step)
//! and then park. The caller works too, and never waits for a worker that has not joined. With one thread
//! ([`set_num_threads`]\(1\)) no worker is ever made: the setting for many processes that share few cores, where
//! spinning would take time from a neighbour. A second caller while the pool is busy, or a nested one, runs its work
//! inline, so nothing here blocks. What a unit computes must not depend on who runs it.

mod affinity;

use std::any::Any;
use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How long a worker without work spins before it parks.
const SPIN: Duration = Duration::from_micros(200);
/// How long the caller spins for workers still inside before it yields its time slices to them.
const JOIN_SPIN: Duration = Duration::from_micros(50);
/// Work on fewer bytes stays on one thread.
const SHARE_BYTES: usize = 256 << 10;
/// Work on fewer bytes gets help only from workers that still spin: waking one takes 30 to 60 µs.
const WAKE_BYTES: usize = 1 << 20;
/// More threads than this are never used.
const MAX_THREADS: usize = 256;
/// Tasks for each thread: enough to even out a thread that is slowed down by others.
const TASKS_PER_THREAD: usize = 4;

/// Set in [`Pool::state`] while workers may join the job.
const OPEN: u64 = 1 << 15;

type Task = dyn Fn(usize) + Sync;

/// The job: a closure, how many tasks it has, and how many threads may work on it.
#[derive(Clone, Copy)]
struct Job {
    run: *const Task,
    tasks: usize,
    threads: usize,
}

struct Pool {
    /// Job number << 16 | OPEN | workers inside.
    state: AtomicU64,
    /// The next task to take.
    next: AtomicUsize,
    job: UnsafeCell<Option<Job>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Held by the caller whose job runs.
    workers: Mutex<Vec<Arc<Worker>>>,
}

// SAFETY: `job` is written only by the holder of `workers` while no worker is inside, and read only by workers counted
// inside, which keep the writer waiting; the state's acquire and release orders the two.
unsafe impl Sync for Pool {}

struct Worker {
    thread: Mutex<Option<Thread>>,
    parked: AtomicBool,
    place: affinity::Place,
}

static POOL: Pool = Pool {
    state: AtomicU64::new(0),
    next: AtomicUsize::new(0),
    job: UnsafeCell::new(None),
    panic: Mutex::new(None),
    workers: Mutex::new(Vec::new()),
};

/// 0 stands for "as many as the machine has".
static NUM_THREADS: AtomicUsize = AtomicUsize::new(0);

/// Threads one operation uses, the caller included; by default as many as this process may run at once.
pub fn num_threads() -> usize {
    match NUM_THREADS.load(Relaxed) {
        0 => {
            let default = thread::available_parallelism().map_or(1, |threads| threads.get()).min(MAX_THREADS);
            // Only the default is filled in: a number set in the meantime stays.
            NUM_THREADS.compare_exchange(0, default, Relaxed, Relaxed).map_or_else(|set| set, |_| default)
        }
        threads => threads,
    }
}

/// Uses `threads` threads from the next operation on, at least 1 and at most 256. Results do not depend on it.
pub fn set_num_threads(threads: usize) {
    NUM_THREADS.store(threads.clamp(1, MAX_THREADS), Relaxed);
}

/// Calls `f` with 0, 1, …, `units` − 1, each once, on any thread and in any order, and returns when all are done.
///
/// `bytes` is the memory all units touch together: small work stays on the calling thread. Neighbouring units go to one
/// thread; interleaved, prefetches of one thread disturb the output lines of the other, and two are as slow as one.
///
/// # Panics
/// With the panic of `f`, after every thread has left it; units not begun by then are skipped.
pub fn parallel(bytes: usize, units: usize, f: &(dyn Fn(usize) + Sync)) {
    let threads = num_threads().min(units);
    if threads < 2 || bytes < SHARE_BYTES {
        return (0..units).for_each(f);
    }
    let Some(workers) = POOL.enter(threads - 1) else { return (0..units).for_each(f) };
    if bytes < WAKE_BYTES && workers.iter().all(|worker| worker.parked.load(Relaxed)) {
        drop(workers);
        return (0..units).for_each(f);
    }
    let each = units.div_ceil(TASKS_PER_THREAD * threads);
    let task = |task: usize| chunk(task, each, units).for_each(f);
    POOL.run(&workers, threads, units.div_ceil(each), &task);
    drop(workers);
    let panic = POOL.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(panic) = panic {
        resume_unwind(panic)
    }
}

fn chunk(index: usize, each: usize, units: usize) -> Range<usize> {
    index * each..units.min(index * each + each)
}

impl Pool {
    /// The workers, at least `wanted` if the system lets us, unless another thread's job runs.
    fn enter(&'static self, wanted: usize) -> Option<MutexGuard<'static, Vec<Arc<Worker>>>> {
        let mut workers = match self.workers.try_lock() {
            Ok(workers) => workers,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        while workers.len() < wanted {
            let Some(worker) = self.spawn(workers.len()) else { break };
            workers.push(worker);
        }
        (!workers.is_empty()).then_some(workers)
    }

    fn spawn(&'static self, index: usize) -> Option<Arc<Worker>> {
        let worker =
            Arc::new(Worker { thread: Mutex::new(None), parked: false.into(), place: affinity::Place::default() });
        let its = worker.clone();
        let handle =
            thread::Builder::new().name(format!("syncbn-cpu-{index}")).spawn(move || self.work(index, &its)).ok()?;
        *worker.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle.thread().clone());
        Some(worker)
    }

    /// The life of a worker.
    fn work(&self, index: usize, me: &Worker) {
        me.place.arrive();
        let mut done = 0;
        loop {
            let state = self.await_job(done);
            if !joinable(state, done) {
                self.park(me, done);
                continue;
            }
            if self.state.compare_exchange(state, state + 1, AcqRel, Relaxed).is_err() {
                continue;
            }
            done = state >> 16;
            // SAFETY: this worker is counted inside, so the caller that wrote the job waits, and nobody writes it now.
            let job = unsafe { *self.job.get() }.expect("an open job is set");
            if index + 1 < job.threads {
                // SAFETY: the caller keeps the closure alive while a worker is inside.
                self.drain(unsafe { &*job.run }, job.tasks);
            }
            self.state.fetch_sub(1, AcqRel);
        }
    }

    /// Spins until there is a job other than `done`, or [`SPIN`] has passed.
    fn await_job(&self, done: u64) -> u64 {
        let start = Instant::now();
        loop {
            let state = self.state.load(Acquire);
            if joinable(state, done) || start.elapsed() >= SPIN {
                return state;
            }
            std::hint::spin_loop();
        }
    }

    fn park(&self, me: &Worker, done: u64) {
        me.place.leave();
        me.parked.store(true, SeqCst);
        // The caller publishes the job and then looks for the parked, both in SeqCst order: one of us sees the other.
        if !joinable(self.state.load(SeqCst), done) {
            thread::park();
        }
        me.parked.store(false, SeqCst);
        me.place.arrive();
    }

    /// Takes tasks until none is left. A panic is kept for the caller, and what is not begun is skipped.
    fn drain(&self, task: &(dyn Fn(usize) + Sync), tasks: usize) {
        let work = || {
            loop {
                match self.next.fetch_add(1, Relaxed) {
                    index if index < tasks => task(index),
                    _ => return,
                }
            }
        };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
            self.next.store(tasks, Relaxed);
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
        }
    }

    /// Runs the tasks on this thread and on the workers that join in time. The caller holds the lock of `workers`.
    fn run(&self, workers: &[Arc<Worker>], threads: usize, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        // SAFETY: only the lifetime changes, and this function does not return before every worker has left the job.
        let run = unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const Task>(task) };
        // SAFETY: the job before was closed and left by all, and the lock keeps other callers out.
        unsafe { *self.job.get() = Some(Job { run, tasks, threads }) };
        self.next.store(0, Relaxed);
        let number = (self.state.load(Relaxed) >> 16) + 1;
        self.state.store(number << 16 | OPEN, SeqCst);
        let helpers = (threads - 1).min(tasks - 1).min(workers.len());
        workers[..helpers].iter().filter(|worker| worker.parked.load(SeqCst)).for_each(|worker| worker.wake());
        self.drain(task, tasks);
        self.state.fetch_and(!OPEN, AcqRel);
        self.join();
    }

    /// Waits until no worker is inside the closed job.
    fn join(&self) {
        let start = Instant::now();
        while self.state.load(Acquire) & (OPEN - 1) != 0 {
            if start.elapsed() < JOIN_SPIN { std::hint::spin_loop() } else { thread::yield_now() }
        }
    }
}

fn joinable(state: u64, done: u64) -> bool {
    state & OPEN != 0 && state >> 16 != done
}

impl Worker {
    fn wake(&self) {
        self.place.clear_of_caller();
        if let Some(thread) = &*self.thread.lock().unwrap_or_else(PoisonError::into_inner) {
            thread.unpark();
        }
    }
}

/// A slice several threads write, each its own elements.
pub(crate) struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it is only a pointer; each use promises that threads keep to distinct elements.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// The elements of `range`.
    ///
    /// # Safety
    /// Nobody else uses these elements while the result lives.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub(crate) unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "range in slice");
        // SAFETY: in bounds by the assertion, unique by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// The first element's address; elements others use must not be touched through it.
    #[inline(always)]
    pub(crate) fn as_mut_ptr(&self) -> *mut T {
        self.start
    }
}

#[cfg(test)]
mod tests;
