//! Who this process is and where the ranks meet, from the options and the environment; nothing is opened here.

use crate::environment::Environment;
use crate::options::InitOptions;
use std::path::PathBuf;
use std::sync::Arc;
use syncbn_core::error::{Code, Error, Result};

/// The largest world: bounds what a peer can make this process allocate.
pub(crate) const MAX_WORLD_SIZE: usize = 1 << 16;

/// Where the ranks meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    /// Rank 0 serves a store at this host and port.
    Tcp { host: String, port: u16 },
    /// A path that every rank can write; `interface` is the host whose network the ranks share.
    File { path: PathBuf, interface: Option<String> },
    /// A world of one rank needs no meeting.
    Alone,
}

/// The checked settings of one process.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) method: Method,
    pub(crate) rank: usize,
    pub(crate) world_size: usize,
    pub(crate) local_rank: Option<usize>,
    /// Empty: no token.
    pub(crate) token: Arc<[u8]>,
}

impl Plan {
    /// Reads and checks everything.
    pub(crate) fn new(options: &InitOptions, env: &Environment) -> Result<Self> {
        if options.timeout.is_zero() {
            return Err(Error::expected(Code::Argument, "init: timeout", "more than 0 ms", "0 ms"));
        }
        let url = Url::parse(&options.init_method)?;
        let world_size = identity(options.world_size.or(url.world_size), env, "WORLD_SIZE", "SLURM_NTASKS", None)?;
        let default_rank = (world_size == 1).then_some(0);
        let rank = identity(options.rank.or(url.rank), env, "RANK", "SLURM_PROCID", default_rank)?;
        check_identity(rank, world_size)?;
        let local_rank =
            env.number("LOCAL_RANK")?.map_or_else(|| env.number("SLURM_LOCALID"), |rank| Ok(Some(rank)))?;
        let token = options.token.as_deref().or_else(|| env.get("SYNCBN_TOKEN").map(str::as_bytes)).unwrap_or_default();
        let method = if world_size == 1 { Method::Alone } else { url.method(env)? };
        Ok(Self { method, rank, world_size, local_rank, token: token.into() })
    }
}

fn identity(
    chosen: Option<usize>,
    env: &Environment,
    name: &str,
    slurm: &str,
    default: Option<usize>,
) -> Result<usize> {
    match chosen.or(env.number(name)?).or(env.number(slurm)?).or(default) {
        Some(number) => Ok(number),
        None => env.require(name).and(Err(Error::internal("a variable that was absent is there"))),
    }
}

fn check_identity(rank: usize, world_size: usize) -> Result<()> {
    if !(1..=MAX_WORLD_SIZE).contains(&world_size) {
        return Err(Error::expected(Code::Argument, "init: world size", format!("1 to {MAX_WORLD_SIZE}"), world_size));
    }
    if rank >= world_size {
        return Err(Error::expected(Code::Argument, "init: rank", format!("0 to {}", world_size - 1), rank));
    }
    Ok(())
}

/// An init method, taken apart.
struct Url<'a> {
    text: &'a str,
    scheme: &'a str,
    rest: &'a str,
    rank: Option<usize>,
    world_size: Option<usize>,
}

impl<'a> Url<'a> {
    fn parse(text: &'a str) -> Result<Self> {
        let (scheme, rest) = text.split_once("://").ok_or_else(|| malformed(text))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut url = Self { text, scheme, rest, rank: None, world_size: None };
        for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            let number = value.parse().map_err(|_| malformed(text))?;
            match name {
                "rank" => url.rank = Some(number),
                "world_size" => url.world_size = Some(number),
                _ => return Err(malformed(text)),
            }
        }
        matches!(scheme, "env" | "tcp" | "file").then_some(url).ok_or_else(|| malformed(text))
    }

    fn method(&self, env: &Environment) -> Result<Method> {
        match self.scheme {
            "env" => from_environment(env),
            "tcp" => self.tcp(),
            _ => self.file(env),
        }
    }

    fn tcp(&self) -> Result<Method> {
        let (host, port) = self.rest.trim_end_matches('/').rsplit_once(':').ok_or_else(|| malformed(self.text))?;
        let port = port.parse().ok().filter(|&port| port != 0).ok_or_else(|| malformed(self.text))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() { Err(malformed(self.text)) } else { Ok(Method::Tcp { host: host.into(), port }) }
    }

    fn file(&self, env: &Environment) -> Result<Method> {
        if self.rest.is_empty() {
            return Err(malformed(self.text));
        }
        Ok(Method::File { path: self.rest.into(), interface: env.get("MASTER_ADDR").map(Into::into) })
    }
}

fn malformed(text: &str) -> Error {
    let forms = "'env://', 'tcp://host:port', 'file:///path', with '?rank=R&world_size=W' at will";
    Error::expected(Code::Argument, "init: init method", forms, format!("'{text}'"))
}

fn from_environment(env: &Environment) -> Result<Method> {
    let host = env.require("MASTER_ADDR")?.to_owned();
    env.require("MASTER_PORT")?;
    let master = port(env, "MASTER_PORT")?;
    // Under torchrun the agent itself listens on MASTER_PORT.
    let agent = env.get("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let port = match (agent, port(env, "SYNCBN_PORT")?) {
        (false, _) => master,
        (true, Some(own)) => Some(own),
        (true, None) => master.and_then(|port| port.checked_add(1)),
    };
    let port =
        port.ok_or_else(|| Error::new(Code::Environment, "init: MASTER_PORT + 1 is not a port; set SYNCBN_PORT"))?;
    Ok(Method::Tcp { host, port })
}

fn port(env: &Environment, name: &str) -> Result<Option<u16>> {
    let check = |number: usize| {
        u16::try_from(number).ok().filter(|&port| port != 0).ok_or_else(|| {
            let expected = "a port from 1 to 65535";
            Error::expected(Code::Environment, &format!("init: environment variable {name}"), expected, number)
        })
    };
    env.number(name)?.map(check).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(method: &str, variables: &[(&str, &str)]) -> Result<Plan> {
        let options = InitOptions { init_method: method.into(), ..InitOptions::default() };
        Plan::new(&options, &variables.iter().copied().collect())
    }

    const JOB: [(&str, &str); 4] =
        [("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "29500")];

    #[test]
    fn the_environment_describes_the_job() {
        let plan = plan("env://", &JOB).unwrap();
        assert_eq!((plan.rank, plan.world_size), (1, 2));
        assert_eq!(plan.method, Method::Tcp { host: "localhost".into(), port: 29500 });
    }

    #[test]
    fn each_missing_variable_is_named() {
        for (missing, _) in JOB {
            let rest: Vec<_> = JOB.into_iter().filter(|(name, _)| *name != missing).collect();
            let error = plan("env://", &rest).unwrap_err();
            assert_eq!(error.code(), Code::Environment);
            assert_eq!(error.message(), format!("init: environment variable {missing} expected, but not set"));
        }
    }

    #[test]
    fn slurm_variables_stand_in() {
        let slurm = [("SLURM_PROCID", "3"), ("SLURM_NTASKS", "4"), ("SLURM_LOCALID", "1")];
        let plan = plan("tcp://[::1]:80", &slurm).unwrap();
        assert_eq!((plan.rank, plan.world_size, plan.local_rank), (3, 4, Some(1)));
        assert_eq!(plan.method, Method::Tcp { host: "::1".into(), port: 80 });
    }

    #[test]
    fn the_port_moves_aside_for_an_agent() {
        let mut job = JOB.to_vec();
        job.push(("TORCHELASTIC_USE_AGENT_STORE", "True"));
        assert_eq!(plan("env://", &job).unwrap().method, Method::Tcp { host: "localhost".into(), port: 29501 });
        job.push(("SYNCBN_PORT", "7"));
        assert_eq!(plan("env://", &job).unwrap().method, Method::Tcp { host: "localhost".into(), port: 7 });
    }

    #[test]
    fn options_and_the_url_override_the_environment() {
        let options = InitOptions { rank: Some(0), world_size: Some(5), ..InitOptions::default() };
        let chosen = Plan::new(&options, &JOB.into_iter().collect()).unwrap();
        assert_eq!((chosen.rank, chosen.world_size), (0, 5));
        let from_url = plan("tcp://10.0.0.1:9?rank=2&world_size=3", &JOB).unwrap();
        assert_eq!((from_url.rank, from_url.world_size), (2, 3));
    }

    #[test]
    fn one_rank_needs_nothing_else() {
        let plan = plan("env://", &[("WORLD_SIZE", "1")]).unwrap();
        assert_eq!((plan.rank, plan.method), (0, Method::Alone));
    }

    #[test]
    fn malformed_settings_are_refused() {
        for method in ["", "env", "udp://a:1", "tcp://host", "tcp://:1", "tcp://h:0", "file://", "tcp://h:1?size=2"] {
            let error = plan(method, &JOB).unwrap_err();
            assert_eq!(error.code(), Code::Argument, "{method}");
        }
        let bad = |name: &str, value: &str| {
            let variables = JOB.into_iter().map(|(k, v)| (k, if k == name { value } else { v }));
            plan("env://", &variables.collect::<Vec<_>>()).unwrap_err().code()
        };
        assert_eq!(bad("RANK", "x"), Code::Environment);
        assert_eq!(bad("RANK", "2"), Code::Argument);
        assert_eq!(bad("WORLD_SIZE", "0"), Code::Argument);
        assert_eq!(bad("MASTER_PORT", "65536"), Code::Environment);
    }
}
