//! Agreeing on a backend, and meeting in a communicator.

use crate::device::Device;
use crate::gpu::{nccl_search, open};
use crate::nccl::enqueue::to_error;
use crate::text::gather_text;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, SystemTime};
use syncbn_comm::interrupt::is_interrupted;
use syncbn_comm::{CancelToken, Environment, Group, World};
use syncbn_core::{Code, Error, Result};
use syncbn_cuda::{Cuda, driver};
use syncbn_nccl::{Communicator, Nccl, Options, UniqueId, Wait};

/// How often a meeting looks whether it is cancelled.
const CANCEL_INTERVAL: Duration = Duration::from_millis(20);

/// How ranks exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Sockets; tensors on GPUs go through pinned host memory.
    Tcp,
    /// NCCL for tensors on GPUs, sockets for those on the CPU.
    Nccl,
}

impl Backend {
    /// The name used in TypeScript.
    pub const fn as_str(self) -> &'static str {
        match self {
            Backend::Tcp => "tcp",
            Backend::Nccl => "nccl",
        }
    }

    /// The backend whose [`as_str`](Self::as_str) is `name`.
    pub fn parse(name: &str) -> Result<Self> {
        [Backend::Tcp, Backend::Nccl].into_iter().find(|backend| backend.as_str() == name).ok_or_else(|| {
            Error::expected(Code::Argument, "initProcessGroup: backend", "'tcp' or 'nccl'", format!("'{name}'"))
        })
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a rank would use NCCL with.
pub(crate) struct Means {
    pub(crate) cuda: Cuda,
    pub(crate) nccl: Nccl,
    /// Whether some of the ranks share a GPU.
    pub(crate) shared: bool,
}

/// What was agreed on, and why.
pub(crate) struct Choice {
    /// For backend nccl.
    pub(crate) means: Option<Means>,
    /// One sentence for whoever asks.
    pub(crate) reason: String,
}

/// Finds out what this rank can use: the device asked for, or that of its local rank, and NCCL.
fn own_means(device: Option<&Device>, environment: &Environment, local_rank: Option<usize>) -> Result<Means> {
    let cuda = match device {
        Some(Device::Cuda(cuda)) => cuda.clone(),
        Some(Device::Cpu) => return Err(Error::new(Code::Device, "deviceId is 'cpu'")),
        None => {
            let (local, count) = (local_rank.unwrap_or(0), driver::device_count()?);
            if local >= count {
                let text = format!("local rank {local} has no GPU of its own: there are {count}");
                return Err(Error::new(Code::Device, text));
            }
            open(local)?
        }
    };
    Ok(Means { cuda, nccl: Nccl::load(&nccl_search(environment)).map_err(to_error)?, shared: false })
}

/// A number that no other process has, on whichever machine or in whichever container: process numbers come twice.
fn this_process() -> u64 {
    static NUMBER: OnceLock<u64> = OnceLock::new();
    *NUMBER.get_or_init(|| RandomState::new().hash_one((std::process::id(), SystemTime::now())))
}

/// What a rank tells the others.
struct Offer<'a> {
    /// `tcp`, `nccl` or `auto`.
    wish: &'a str,
    /// What it would use NCCL with; or why there is nothing.
    means: Result<Offered<'a>, &'a str>,
}

#[derive(Clone, Copy)]
struct Offered<'a> {
    gpu: &'a str,
    /// Whether NCCL may share it.
    shares: bool,
    /// What tells hosts apart, for NCCL.
    host: &'a str,
    /// What tells processes apart.
    process: &'a str,
    version: &'a str,
}

impl<'a> Offer<'a> {
    fn write(wish: Option<Backend>, means: &Result<Means>, environment: &Environment) -> String {
        let wish = wish.map_or("auto", Backend::as_str);
        match means {
            Ok(Means { cuda, nccl, .. }) => {
                let gpu: String = cuda.info().uuid.iter().map(|byte| format!("{byte:02x}")).collect();
                let enabled = environment.get("NCCL_MULTI_RANK_GPU_ENABLE") == Some("1");
                let shares = if enabled && nccl.supports_multi_rank_per_gpu() { "shares" } else { "alone" };
                let host = environment.get("NCCL_HOSTID").unwrap_or("");
                format!("{wish}\n{gpu}\n{shares}\n{host}\n{:016x}\n{}", this_process(), nccl.version())
            }
            Err(error) => format!("{wish}\n{}", error.message().replace('\n', " ")),
        }
    }

    fn read(text: &'a str) -> Self {
        let mut lines = text.split('\n');
        let (wish, first) = (lines.next().unwrap_or(""), lines.next().unwrap_or(""));
        let means = match (lines.next(), lines.next(), lines.next(), lines.next()) {
            (Some(shares), Some(host), Some(process), Some(version)) => {
                Ok(Offered { gpu: first, shares: shares == "shares", host, process, version })
            }
            _ => Err(first),
        };
        Self { wish, means }
    }
}

/// Agrees with all ranks of the world on a backend. Without a wish it is nccl where every rank has a GPU of its own and
/// NCCL, else tcp.
///
/// # Errors
/// On every rank: [`Code::Mismatch`] for different wishes; [`Code::BackendUnavailable`] if nccl is wished for and a rank
/// has no means, [`Code::Device`] if two ranks would share a GPU, [`Code::Mismatch`] for different versions of NCCL.
pub(crate) fn agree(
    group: &Group,
    wish: Option<Backend>,
    device: Option<&Device>,
    environment: &Environment,
    local_rank: Option<usize>,
) -> Result<Choice> {
    let means = match wish {
        Some(Backend::Tcp) => Err(Error::new(Code::BackendUnavailable, "backend 'tcp' was asked for")),
        _ => own_means(device, environment, local_rank),
    };
    let texts = gather_text(group, &Offer::write(wish, &means, environment))?;
    let offers: Vec<Offer<'_>> = texts.iter().map(|text| Offer::read(text)).collect();
    decide(&offers, group.ranks()).and_then(|decision| match decision {
        Decision::Nccl => {
            let means = Means { shared: some_share(&offers), ..means? };
            let reason = format!("nccl: every rank has a GPU and NCCL; here {} and {:?}", means.cuda, means.nccl);
            Ok(Choice { means: Some(means), reason })
        }
        Decision::Tcp(reason) => Ok(Choice { means: None, reason }),
    })
}

#[derive(Debug, PartialEq)]
enum Decision {
    Nccl,
    Tcp(String),
}

fn decide(offers: &[Offer<'_>], ranks: &[usize]) -> Result<Decision> {
    let wishing = |wish: &str| offers.iter().position(|offer| offer.wish == wish).map(|index| ranks[index]);
    let (tcp, nccl) = (wishing("tcp"), wishing("nccl"));
    if let (Some(tcp), Some(nccl)) = (tcp, nccl) {
        let (a, b) = if tcp < nccl { ((tcp, "tcp"), (nccl, "nccl")) } else { ((nccl, "nccl"), (tcp, "tcp")) };
        let text = format!("initProcessGroup: rank {} asked for backend '{}', rank {} for '{}'", a.0, a.1, b.0, b.1);
        return Err(Error::new(Code::Mismatch, text));
    }
    let Some(obstacle) = obstacle(offers, ranks) else { return Ok(Decision::Nccl) };
    if nccl.is_none() {
        return Ok(Decision::Tcp(format!("tcp: {}", obstacle.message())));
    }
    Err(obstacle)
}

/// Why nccl cannot be used.
fn obstacle(offers: &[Offer<'_>], ranks: &[usize]) -> Option<Error> {
    for (offer, rank) in offers.iter().zip(ranks) {
        if let Err(reason) = offer.means {
            let text = format!("initProcessGroup: rank {rank} cannot use backend 'nccl': {reason}");
            return Some(Error::new(Code::BackendUnavailable, text).with_peer(*rank));
        }
    }
    let offered: Vec<Offered<'_>> = offers.iter().filter_map(|offer| offer.means.ok()).collect();
    if let Some(b) = offered.iter().position(|other| other.version != offered[0].version) {
        return Some(other_version((ranks[0], offered[0].version), (ranks[b], offered[b].version)));
    }
    for (a, b) in on_one_gpu(&offered) {
        let (first, second) = (offered[a], offered[b]);
        if first.process == second.process {
            return Some(shared_in_process(ranks[a], ranks[b]));
        }
        if first.host == second.host && !(first.shares && second.shares) {
            return Some(shared_gpu(ranks[a], ranks[b]));
        }
    }
    None
}

/// Pairs of ranks that would use the same GPU.
fn on_one_gpu(offered: &[Offered<'_>]) -> impl Iterator<Item = (usize, usize)> {
    let pairs = (0..offered.len()).flat_map(|a| (a + 1..offered.len()).map(move |b| (a, b)));
    pairs.filter(|&(a, b)| offered[a].gpu == offered[b].gpu)
}

fn some_share(offers: &[Offer<'_>]) -> bool {
    let offered: Vec<Offered<'_>> = offers.iter().filter_map(|offer| offer.means.ok()).collect();
    on_one_gpu(&offered).next().is_some()
}

#[cold]
fn other_version(a: (usize, &str), b: (usize, &str)) -> Error {
    let text = format!(
        "initProcessGroup: rank {} has NCCL {} and rank {} has NCCL {}, expected one version on all ranks: set \
         SYNCBN_NCCL_PATH, or use backend 'tcp'",
        a.0, a.1, b.0, b.1
    );
    Error::new(Code::Mismatch, text).with_peer(b.0)
}

/// Threads of one process would share the device's streams, in which the kernels of one wait for those of the other
/// behind them.
#[cold]
fn shared_in_process(a: usize, b: usize) -> Error {
    let text = format!(
        "initProcessGroup: ranks {a} and {b} are threads of one process and use the same GPU, expected another GPU \
         (deviceId) or process for each: or use backend 'tcp'"
    );
    Error::new(Code::Device, text).with_peer(b)
}

#[cold]
fn shared_gpu(a: usize, b: usize) -> Error {
    let text = format!(
        "initProcessGroup: ranks {a} and {b} use the same GPU, expected one for each rank: set deviceId, or set \
         NCCL_MULTI_RANK_GPU_ENABLE=1 on both ranks (NCCL 2.30.3 or newer), or another NCCL_HOSTID on each with \
         NCCL_SOCKET_IFNAME=lo, or use backend 'tcp'"
    );
    Error::new(Code::Device, text).with_peer(b)
}

/// Thread blocks of a collective where ranks share a GPU: the kernels of all must fit on it at once, beside others'.
const SHARED_GPU_CTAS: u16 = 4;

fn options(shared: bool) -> Options {
    Options { max_ctas: shared.then_some(SHARED_GPU_CTAS), ..Options::default() }
}

/// The communicator of all members of `group`: the first makes an id, which the group's connections bring to the others.
///
/// # Errors
/// What failed here, of which the others are told; else the group's first error, which is another rank's.
pub(crate) fn meet(group: &Group, means: &Means, timeout: Duration, cancel: &CancelToken) -> Result<Communicator> {
    let index = group.rank().ok_or_else(|| Error::internal("a rank that is no member has no communicator"))?;
    let mut message = [0; 1 + UniqueId::BYTES];
    let mut failed = None;
    if index == 0 {
        match means.nccl.unique_id() {
            Ok(id) => {
                message[0] = 1;
                message[1..].copy_from_slice(id.as_bytes());
            }
            Err(error) => failed = Some(to_error(error)),
        }
    }
    group.broadcast(&mut message, 0)?;
    if let Some(error) = failed {
        return Err(error);
    }
    if message[0] != 1 {
        let text = format!("initProcessGroup: rank {} could not make an NCCL id", group.ranks()[0]);
        return Err(Error::new(Code::Nccl, text).with_peer(group.ranks()[0]));
    }
    let id = UniqueId::from_bytes(message[1..].try_into().expect("an id's size"));
    means.cuda.bind()?;
    let keep_waiting = || !is_interrupted() && !group.is_poisoned() && !cancel.is_cancelled();
    let wait = Wait::at_most(timeout).while_true(&keep_waiting);
    means.nccl.communicator(&id, index, group.size(), &options(means.shared), wait).map_err(|error| {
        // A group that is poisoned has an error already, which its next call returns at once.
        if group.is_poisoned()
            && let Err(first) = group.barrier()
        {
            return first;
        }
        let error = to_error(error).with_group(group.name());
        group.abort(error.message());
        error
    })
}

/// Runs `meeting` and ends its waits on the groups of `world` once `cancel` is used.
pub(crate) fn cancellable<T>(world: &World, cancel: &CancelToken, meeting: impl FnOnce() -> Result<T>) -> Result<T> {
    let (done, is_done) = channel::<()>();
    let watch = move || {
        while is_done.recv_timeout(CANCEL_INTERVAL) == Err(RecvTimeoutError::Timeout) {
            if cancel.is_cancelled() {
                return world.abort("cancelled");
            }
        }
    };
    let met = std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("syncbn-cancel".into())
            .spawn_scoped(scope, watch)
            .map_err(|cause| Error::internal(format!("cannot start a thread: {cause}")))?;
        let met = meeting();
        drop(done);
        met
    });
    // Whatever the end of the waits looks like, this is why.
    if met.is_err() && cancel.is_cancelled() {
        return Err(Error::new(Code::Aborted, "initProcessGroup: cancelled"));
    }
    met
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offers(texts: &[&'static str]) -> Vec<Offer<'static>> {
        texts.iter().map(|text| Offer::read(text)).collect()
    }

    #[test]
    fn without_a_wish_nccl_is_taken_where_every_rank_has_the_means() {
        let (a, b) = ("auto\naa\nalone\n\np\n2.30.3", "auto\nbb\nalone\n\nq\n2.30.3");
        assert_eq!(decide(&offers(&[a, b]), &[0, 1]).unwrap(), Decision::Nccl);
        let Decision::Tcp(reason) = decide(&offers(&[a, "auto\nno driver"]), &[0, 1]).unwrap() else { panic!() };
        assert!(reason.contains("rank 1") && reason.contains("no driver"), "{reason}");
        let shared = "auto\naa\nalone\n\nq\n2.30.3";
        let Decision::Tcp(reason) = decide(&offers(&[a, shared]), &[0, 1]).unwrap() else { panic!() };
        assert!(reason.contains("same GPU"), "{reason}");
    }

    #[test]
    fn a_wish_that_cannot_be_met_is_an_error_on_every_rank() {
        let a = "nccl\naa\nalone\n\np\n2.30.3";
        let missing = decide(&offers(&[a, "nccl\nno NCCL"]), &[0, 1]).unwrap_err();
        assert_eq!((missing.code(), missing.peer()), (Code::BackendUnavailable, Some(1)));
        let mixed = decide(&offers(&[a, "tcp\nasked for"]), &[0, 1]).unwrap_err();
        assert_eq!(mixed.code(), Code::Mismatch);
    }

    #[test]
    fn ranks_share_a_gpu_only_where_nccl_was_told_so() {
        let (alone, shares) = ("nccl\naa\nalone\n\np\n2.30.3", "nccl\naa\nshares\n\nq\n2.30.3");
        let shared = decide(&offers(&[alone, shares]), &[0, 1]).unwrap_err();
        assert_eq!(shared.code(), Code::Device);
        assert!(shared.message().contains("NCCL_MULTI_RANK_GPU_ENABLE"), "{}", shared.message());
        let other = "nccl\naa\nshares\n\nr\n2.30.3";
        let hosts = ["nccl\naa\nalone\nx\np\n2.30.3", "nccl\naa\nalone\ny\nq\n2.30.3"];
        for texts in [[shares, other], hosts] {
            assert_eq!(decide(&offers(&texts), &[0, 1]).unwrap(), Decision::Nccl);
            assert!(some_share(&offers(&texts)));
        }
        assert_eq!((options(true).max_ctas, options(false)), (Some(SHARED_GPU_CTAS), Options::default()));
        assert!(!some_share(&offers(&[alone, "nccl\nbb\nalone\n\nq\n2.30.3"])));
    }

    #[test]
    fn threads_of_one_process_do_not_share_a_gpu() {
        for (shares, hosts) in [("alone", ["", ""]), ("shares", ["", ""]), ("alone", ["x", "y"])] {
            for (wish, expected) in [("nccl", None), ("auto", Some("tcp: "))] {
                let texts = hosts.map(|host| format!("{wish}\naa\n{shares}\n{host}\np\n2.30.3"));
                let offers: Vec<_> = texts.iter().map(|text| Offer::read(text)).collect();
                let text = match (decide(&offers, &[0, 1]), expected) {
                    (Err(error), None) if error.code() == Code::Device => error.message().to_string(),
                    (Ok(Decision::Tcp(reason)), Some(prefix)) if reason.starts_with(prefix) => reason,
                    (other, _) => panic!("{other:?}"),
                };
                assert!(text.contains("ranks 0 and 1 are threads of one process"), "{text}");
            }
        }
    }

    #[test]
    fn ranks_have_one_version_of_nccl() {
        let (a, b) = ("nccl\naa\nalone\n\np\n2.30.3", "nccl\nbb\nalone\n\nq\n2.20.3");
        let error = decide(&offers(&[a, a, b]), &[0, 1, 2]).unwrap_err();
        assert_eq!((error.code(), error.peer()), (Code::Mismatch, Some(2)));
        assert!(error.message().contains("2.30.3") && error.message().contains("2.20.3"), "{error}");
    }
}
