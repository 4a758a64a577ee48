//! Keeps a waking worker off its caller's CPU (Linux; nothing elsewhere).
//!
//! Where the scheduler knows of no shared cache, as on many virtual machines, a thread wakes on the CPU it slept on,
//! even if its caller computes there now: two threads then share one core, which is slower than no help at all. So the
//! caller moves such a worker away before it wakes it, and the worker takes back its full set of CPUs once it runs.

#[cfg(target_os = "linux")]
pub(super) use linux::Place;

#[cfg(not(target_os = "linux"))]
#[derive(Default)]
pub(super) struct Place;

#[cfg(not(target_os = "linux"))]
impl Place {
    pub(super) fn arrive(&self) {}
    pub(super) fn leave(&self) {}
    pub(super) fn clear_of_caller(&self) {}
}

#[cfg(target_os = "linux")]
mod linux {
    use libc::{CPU_CLR, CPU_COUNT, cpu_set_t, sched_getaffinity, sched_getcpu, sched_setaffinity};
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::Relaxed};

    /// Where a worker is, for its caller to see.
    pub(crate) struct Place {
        thread: AtomicI32,
        cpu: AtomicI32,
        moved: AtomicBool,
        /// The CPUs it may use, as it found them when it started.
        cpus: OnceLock<Option<cpu_set_t>>,
    }

    impl Default for Place {
        fn default() -> Self {
            Self { thread: 0.into(), cpu: (-1).into(), moved: false.into(), cpus: OnceLock::new() }
        }
    }

    impl Place {
        /// The worker runs: it may go anywhere again.
        pub(crate) fn arrive(&self) {
            // SAFETY: gettid has no preconditions.
            self.thread.store(unsafe { libc::gettid() }, Relaxed);
            let cpus = self.cpus.get_or_init(|| get_cpus(0));
            if self.moved.swap(false, Relaxed)
                && let Some(cpus) = cpus
            {
                set_cpus(0, cpus);
            }
        }

        /// The worker is about to sleep.
        pub(crate) fn leave(&self) {
            // SAFETY: sched_getcpu has no preconditions.
            self.cpu.store(unsafe { sched_getcpu() }, Relaxed);
        }

        /// The caller is about to wake the worker.
        pub(crate) fn clear_of_caller(&self) {
            // SAFETY: sched_getcpu has no preconditions.
            let here = unsafe { sched_getcpu() };
            if here < 0 || here != self.cpu.load(Relaxed) {
                return;
            }
            let Some(mut cpus) = get_cpus(0) else { return };
            // SAFETY: the CPU number comes from the kernel; sets of 1024 CPUs hold it, or get_cpus had failed.
            let others = unsafe {
                CPU_CLR(here as usize, &mut cpus);
                CPU_COUNT(&cpus)
            };
            if others > 0 && set_cpus(self.thread.load(Relaxed), &cpus) {
                self.moved.store(true, Relaxed);
            }
        }
    }

    fn get_cpus(thread: i32) -> Option<cpu_set_t> {
        // SAFETY: a cpu_set_t is plain bits, all zero is the empty set.
        let mut cpus: cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: the pointer is valid for the size given.
        (unsafe { sched_getaffinity(thread, size_of::<cpu_set_t>(), &mut cpus) } == 0).then_some(cpus)
    }

    fn set_cpus(thread: i32, cpus: &cpu_set_t) -> bool {
        // SAFETY: the pointer is valid for the size given.
        unsafe { sched_setaffinity(thread, size_of::<cpu_set_t>(), cpus) == 0 }
    }
}
