//! How two ends of a fresh connection prove that they know the job's token, before anything else is read.
//!
//! The client sends a hello that says which service, group, lane and ranks the connection is for, and a nonce; the
//! server answers with its own nonce; the client sends HMAC-SHA256 over both with the token as key; the server checks
//! it and answers with a verdict and its own HMAC under another label. The client goes first, so that a stranger gets
//! no proof out of a server. Without a token the key is empty, and the callers allow loopback addresses only.

use crate::wait::{TICK, Wait};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use syncbn_core::error::{Code, Error, Result};

/// How long a peer may take for all of its part.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

const MAGIC: [u8; 4] = *b"sBN1";
const HELLO_BYTES: usize = 24;
const NONCE_BYTES: usize = 32;
const PROOF_BYTES: usize = 32;
const ACCEPTED: u8 = 1;

/// A rank that is none: a client of a store that is not part of a world.
pub(crate) const NO_RANK: u32 = u32::MAX;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    Store = 1,
    Mesh = 2,
}

/// What a connection is for, between whom; part of what both ends sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) service: Service,
    pub(crate) lane: u8,
    pub(crate) group: u64,
    pub(crate) client: u32,
    pub(crate) server: u32,
}

impl Hello {
    fn encode(self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = self.service as u8;
        bytes[5] = self.lane;
        bytes[8..16].copy_from_slice(&self.group.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.client.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.server.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HELLO_BYTES]) -> Option<Self> {
        let service = [Service::Store, Service::Mesh].into_iter().find(|&service| service as u8 == bytes[4])?;
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let group = u64::from_le_bytes(bytes[8..16].try_into().expect("8 bytes"));
        let hello = Self { service, lane: bytes[5], group, client: word(16), server: word(20) };
        (bytes[..4] == MAGIC && bytes[6..8] == [0; 2]).then_some(hello)
    }
}

/// Why a client's handshake failed.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The other end is no such service now; trying again may help.
    Unanswered(io::Error),
    /// The other end knows another token.
    Token,
    /// The wait was ended.
    Interrupted(Error),
}

/// The client's part on a connected stream.
pub(crate) fn dial(stream: &TcpStream, token: &[u8], hello: Hello, wait: &Wait<'_>) -> Result<(), Refusal> {
    let mut link = Link { stream, at: Instant::now() + wait.slice(HANDSHAKE_TIMEOUT), wait: Some(wait) };
    let (head, nonce) = (hello.encode(), nonce().map_err(Refusal::Interrupted)?);
    link.write(&[&head[..], &nonce].concat()).map_err(|e| link.refusal(e))?;
    let mut reply = [0; 4 + NONCE_BYTES];
    link.read(&mut reply).map_err(|e| link.refusal(e))?;
    if reply[..4] != MAGIC {
        return Err(Refusal::Unanswered(io::Error::other("it speaks another protocol")));
    }
    let transcript = [&head[..], &nonce, &reply[4..]].concat();
    link.write(&proof(token, "client", &transcript)).map_err(|e| link.refusal(e))?;
    let mut verdict = [0; 1 + PROOF_BYTES];
    link.read(&mut verdict).map_err(|e| link.refusal(e))?;
    let proven = verdict[0] == ACCEPTED && verify(token, "server", &transcript, &verdict[1..]);
    if proven { Ok(()) } else { Err(Refusal::Token) }
}

/// What came of a server's handshake.
pub(crate) enum Visitor {
    /// Proved that it knows the token.
    Known(Hello),
    /// Speaks the protocol with another token.
    Stranger,
    /// Anything else.
    Noise,
}

/// The server's part on an accepted stream.
pub(crate) fn answer(stream: &TcpStream, token: &[u8]) -> Visitor {
    let mut link = Link { stream, at: Instant::now() + HANDSHAKE_TIMEOUT, wait: None };
    try_answer(&mut link, token).unwrap_or(Visitor::Noise)
}

fn try_answer(link: &mut Link<'_, '_>, token: &[u8]) -> io::Result<Visitor> {
    let mut head = [0; HELLO_BYTES];
    link.read(&mut head)?;
    let Some(hello) = Hello::decode(&head) else { return Ok(Visitor::Noise) };
    let mut client_nonce = [0; NONCE_BYTES];
    link.read(&mut client_nonce)?;
    let nonce = nonce().map_err(io::Error::other)?;
    link.write(&[&MAGIC[..], &nonce].concat())?;
    let transcript = [&head[..], &client_nonce, &nonce].concat();
    let mut claim = [0; PROOF_BYTES];
    link.read(&mut claim)?;
    if !verify(token, "client", &transcript, &claim) {
        link.write(&[0; 1 + PROOF_BYTES])?;
        return Ok(Visitor::Stranger);
    }
    link.write(&[&[ACCEPTED][..], &proof(token, "server", &transcript)].concat())?;
    Ok(Visitor::Known(hello))
}

/// A stream with a deadline for all that is read and written.
struct Link<'s, 'w> {
    stream: &'s TcpStream,
    at: Instant,
    wait: Option<&'s Wait<'w>>,
}

impl Link<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.set_write_timeout(Some(HANDSHAKE_TIMEOUT))?;
        self.stream.write_all(bytes)
    }

    fn read(&mut self, mut bytes: &mut [u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.wait.is_some_and(|wait| wait.check().is_err()) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let left = self.at.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(Some(left.min(TICK)))?;
            match self.stream.read(bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => bytes = &mut bytes[n..],
                Err(e) if is_pause(&e) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn refusal(&self, error: io::Error) -> Refusal {
        match self.wait.map(Wait::check) {
            Some(Err(error)) => Refusal::Interrupted(error),
            _ => Refusal::Unanswered(error),
        }
    }
}

/// Whether a read or write only has to be tried again.
pub(crate) fn is_pause(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}

fn nonce() -> Result<[u8; NONCE_BYTES]> {
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(|e| Error::new(Code::Io, format!("the system gives no random bytes: {e}")))?;
    Ok(nonce)
}

fn mac(token: &[u8], label: &str, transcript: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(token).expect("HMAC takes a key of any length");
    mac.update(b"syncbn handshake 1 ");
    mac.update(label.as_bytes());
    mac.update(transcript);
    mac
}

fn proof(token: &[u8], label: &str, transcript: &[u8]) -> [u8; PROOF_BYTES] {
    mac(token, label, transcript).finalize().into_bytes().into()
}

fn verify(token: &[u8], label: &str, transcript: &[u8], claim: &[u8]) -> bool {
    // Constant time.
    mac(token, label, transcript).verify_slice(claim).is_ok()
}
