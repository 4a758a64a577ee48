//! The TCP store's messages: `u32` length, then a body of tagged fields, little endian. Lengths are checked before
//! memory is taken for them.

use super::{MAX_KEY_BYTES, MAX_VALUE_BYTES};
use std::io::{self, Write};
use std::time::Duration;
use syncbn_core::error::{Code, Error, Result};

/// The longest message body.
pub(super) const MAX_BODY_BYTES: usize = 8 << 20;

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Set(String, Vec<u8>),
    Get(String, Duration),
    Wait(Vec<String>, Duration),
    Add(String, i64),
    Check(Vec<String>),
    Delete(String),
}

/// What the server answers.
pub(super) type Reply = Result<Vec<u8>>;

impl Request {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        match self {
            Self::Set(key, value) => {
                body.push(0);
                put(&mut body, key.as_bytes());
                put(&mut body, value);
            }
            Self::Get(key, timeout) => {
                body.push(1);
                put(&mut body, key.as_bytes());
                put_millis(&mut body, *timeout);
            }
            Self::Wait(keys, timeout) => {
                body.push(2);
                put_millis(&mut body, *timeout);
                keys.iter().for_each(|key| put(&mut body, key.as_bytes()));
            }
            Self::Add(key, delta) => {
                body.push(3);
                put(&mut body, key.as_bytes());
                body.extend(delta.to_le_bytes());
            }
            Self::Check(keys) => {
                body.push(4);
                keys.iter().for_each(|key| put(&mut body, key.as_bytes()));
            }
            Self::Delete(key) => {
                body.push(5);
                put(&mut body, key.as_bytes());
            }
        }
        body
    }

    /// The request in `body`; `None` if it is malformed.
    pub(super) fn decode(body: &[u8]) -> Option<Self> {
        let (&tag, mut rest) = body.split_first()?;
        let rest = &mut rest;
        let request = match tag {
            0 => Self::Set(take_key(rest)?, take(rest, MAX_VALUE_BYTES)?.to_vec()),
            1 => Self::Get(take_key(rest)?, take_millis(rest)?),
            2 => {
                let timeout = take_millis(rest)?;
                Self::Wait(take_keys(rest)?, timeout)
            }
            3 => Self::Add(take_key(rest)?, i64::from_le_bytes(take_array(rest)?)),
            4 => Self::Check(take_keys(rest)?),
            5 => Self::Delete(take_key(rest)?),
            _ => return None,
        };
        rest.is_empty().then_some(request)
    }
}

/// A reply's body: a status (0, or 1 + the index of the error's code) and the value or the error's sentence.
pub(super) fn encode_reply(reply: &Reply) -> Vec<u8> {
    match reply {
        Ok(value) => [&[0], &value[..]].concat(),
        Err(error) => [&[1 + code_index(error.code())], error.message().as_bytes()].concat(),
    }
}

/// The reply in `body`.
pub(super) fn decode_reply(body: &[u8]) -> Reply {
    let malformed = || Error::new(Code::Io, "store: malformed reply");
    let (&status, rest) = body.split_first().ok_or_else(malformed)?;
    match status.checked_sub(1) {
        None => Ok(rest.to_vec()),
        Some(index) => {
            let code = *Code::ALL.get(usize::from(index)).ok_or_else(malformed)?;
            Err(Error::new(code, String::from_utf8_lossy(rest)))
        }
    }
}

/// The wire's number of a code; both ends run the same version.
pub(crate) fn code_index(code: Code) -> u8 {
    Code::ALL.iter().position(|&other| other == code).and_then(|i| u8::try_from(i).ok()).expect("a listed code")
}

/// Writes a message in one piece.
pub(super) fn write_message(mut stream: impl Write, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_le_bytes()[..], body].concat())
}

/// The checked length at the head of a message.
pub(super) fn body_length(head: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_le_bytes(head) as usize;
    if length > MAX_BODY_BYTES { Err(io::Error::other("oversized message")) } else { Ok(length) }
}

fn put(body: &mut Vec<u8>, bytes: &[u8]) {
    body.extend((bytes.len() as u32).to_le_bytes());
    body.extend(bytes);
}

fn put_millis(body: &mut Vec<u8>, timeout: Duration) {
    body.extend(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).to_le_bytes());
}

fn take_array<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(*head)
}

fn take<'a>(rest: &mut &'a [u8], limit: usize) -> Option<&'a [u8]> {
    let length = u32::from_le_bytes(take_array(rest)?) as usize;
    if length > limit {
        return None;
    }
    let (head, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    Some(head)
}

fn take_key(rest: &mut &[u8]) -> Option<String> {
    String::from_utf8(take(rest, MAX_KEY_BYTES)?.to_vec()).ok()
}

fn take_keys(rest: &mut &[u8]) -> Option<Vec<String>> {
    let mut keys = Vec::new();
    while !rest.is_empty() {
        keys.push(take_key(rest)?);
    }
    Some(keys)
}

fn take_millis(rest: &mut &[u8]) -> Option<Duration> {
    take_array(rest).map(u64::from_le_bytes).map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_the_wire() {
        let second = Duration::from_secs(1);
        for request in [
            Request::Set("a".into(), vec![1, 2]),
            Request::Get("b".into(), second),
            Request::Wait(vec!["c".into(), "d".into()], second),
            Request::Add("e".into(), -7),
            Request::Check(vec![]),
            Request::Delete("f".into()),
        ] {
            let body = request.encode();
            assert_eq!(Request::decode(&body), Some(request));
            for cut in 0..body.len() {
                // Cut short it is malformed or, between two keys, another request; never a panic.
                let _ = Request::decode(&body[..cut]);
            }
        }
        assert_eq!(Request::decode(&[9]), None);
        assert_eq!(Request::decode(&[5, 255, 255, 255, 255]), None);
    }

    #[test]
    fn replies_survive_the_wire() {
        assert_eq!(decode_reply(&encode_reply(&Ok(vec![3]))).unwrap(), [3]);
        let error = decode_reply(&encode_reply(&Err(Error::new(Code::Timeout, "late")))).unwrap_err();
        assert_eq!((error.code(), error.message()), (Code::Timeout, "late"));
        assert_eq!(decode_reply(&[255]).unwrap_err().code(), Code::Io);
    }
}
