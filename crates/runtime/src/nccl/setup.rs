//! Agreeing on a backend, and meeting in a communicator.

use crate::device::Device;
use crate::gpu::{nccl_search, open};
use crate::nccl::enqueue::to_error;
use crate::text::gather_text;
use std::fmt;
use std::time::Duration;
use syncbn_comm::interrupt::is_interrupted;
use syncbn_comm::{Environment, Group};
use syncbn_core::{Code, Error, Result};
use syncbn_cuda::{Cuda, driver};
use syncbn_nccl::{Communicator, Nccl, Options, UniqueId, Wait};

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
    Ok(Means { cuda, nccl: Nccl::load(&nccl_search(environment)).map_err(to_error)? })
}

/// What a rank tells the others.
struct Offer<'a> {
    /// `tcp`, `nccl` or `auto`.
    wish: &'a str,
    /// GPU, whether NCCL may share it, what tells hosts apart; or why there is none.
    means: Result<[&'a str; 3], &'a str>,
}

impl<'a> Offer<'a> {
    fn write(wish: Option<Backend>, means: &Result<Means>, environment: &Environment) -> String {
        let wish = wish.map_or("auto", Backend::as_str);
        match means {
            Ok(Means { cuda, nccl }) => {
                let gpu: String = cuda.info().uuid.iter().map(|byte| format!("{byte:02x}")).collect();
                let enabled = environment.get("NCCL_MULTI_RANK_GPU_ENABLE") == Some("1");
                let shares = enabled && nccl.supports_multi_rank_per_gpu();
                let host = environment.get("NCCL_HOSTID").unwrap_or("");
                format!("{wish}\n{gpu}\n{}\n{host}", if shares { "shares" } else { "alone" })
            }
            Err(error) => format!("{wish}\n{}", error.message().replace('\n', " ")),
        }
    }

    fn read(text: &'a str) -> Self {
        let mut lines = text.split('\n');
        let (wish, first) = (lines.next().unwrap_or(""), lines.next().unwrap_or(""));
        let means = match (lines.next(), lines.next()) {
            (Some(shares), Some(host)) => Ok([first, shares, host]),
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
/// has no means, [`Code::Device`] if two ranks would share a GPU.
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
            let means = means?;
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
    let gpus: Vec<[&str; 3]> = offers.iter().filter_map(|offer| offer.means.ok()).collect();
    for (a, [gpu, shares, host]) in gpus.iter().enumerate() {
        for (b, other) in gpus.iter().enumerate().skip(a + 1).filter(|(_, other)| other[0] == *gpu) {
            let apart = host != &other[2];
            if !apart && (*shares != "shares" || other[1] != "shares") {
                return Some(shared_gpu(ranks[a], ranks[b]));
            }
        }
    }
    None
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

/// The communicator of all members of `group`: the first makes an id, which the group's connections bring to the others.
pub(crate) fn meet(group: &Group, means: &Means, timeout: Duration) -> Result<Communicator> {
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
    let keep_waiting = || !is_interrupted() && !group.is_poisoned();
    let wait = Wait::at_most(timeout).while_true(&keep_waiting);
    means.nccl.communicator(&id, index, group.size(), &Options::default(), wait).map_err(|error| {
        let error = to_error(error).with_group(group.name());
        group.abort(error.message());
        error
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offers(texts: &[&'static str]) -> Vec<Offer<'static>> {
        texts.iter().map(|text| Offer::read(text)).collect()
    }

    #[test]
    fn without_a_wish_nccl_is_taken_where_every_rank_has_the_means() {
        let (a, b) = ("auto\naa\nalone\n", "auto\nbb\nalone\n");
        assert_eq!(decide(&offers(&[a, b]), &[0, 1]).unwrap(), Decision::Nccl);
        let Decision::Tcp(reason) = decide(&offers(&[a, "auto\nno driver"]), &[0, 1]).unwrap() else { panic!() };
        assert!(reason.contains("rank 1") && reason.contains("no driver"), "{reason}");
        let Decision::Tcp(reason) = decide(&offers(&[a, a]), &[0, 1]).unwrap() else { panic!() };
        assert!(reason.contains("same GPU"), "{reason}");
    }

    #[test]
    fn a_wish_that_cannot_be_met_is_an_error_on_every_rank() {
        let a = "nccl\naa\nalone\n";
        let missing = decide(&offers(&[a, "nccl\nno NCCL"]), &[0, 1]).unwrap_err();
        assert_eq!((missing.code(), missing.peer()), (Code::BackendUnavailable, Some(1)));
        let mixed = decide(&offers(&[a, "tcp\nasked for"]), &[0, 1]).unwrap_err();
        assert_eq!(mixed.code(), Code::Mismatch);
    }

    #[test]
    fn ranks_share_a_gpu_only_where_nccl_was_told_so() {
        let shared = decide(&offers(&["nccl\naa\nalone\n", "nccl\naa\nshares\n"]), &[0, 1]).unwrap_err();
        assert_eq!(shared.code(), Code::Device);
        assert!(shared.message().contains("NCCL_MULTI_RANK_GPU_ENABLE"), "{}", shared.message());
        for texts in [["nccl\naa\nshares\n"; 2], ["nccl\naa\nalone\nx", "nccl\naa\nalone\ny"]] {
            assert_eq!(decide(&offers(&texts), &[0, 1]).unwrap(), Decision::Nccl);
        }
    }
}
