//! Ranks that meet over TCP: stores, rendezvous, a full mesh of sockets with collectives on host buffers, liveness.
//!
//! [`init`] brings the processes of a job together and returns a [`World`]; its [`Group`]s run the collectives.
//! Contract:
//!
//! - Every wait has a deadline for the whole operation; the error names the ranks that are missing.
//! - A rank whose process ends is noticed by one native thread per world, whatever the other ranks are waiting for.
//! - Every rank compares the header of every frame with its own call; ranks that made different calls all get
//!   [`Code::Mismatch`](syncbn_core::error::Code::Mismatch) with both calls in words.
//! - After an error a group is poisoned and must be rebuilt; other groups live on unless the peer is dead.
//! - Values are combined in rank order, so that every rank holds the same bits for every chunking.
//! - A connection carries nothing before both ends have proved that they know the token. This authenticates; it does
//!   not encrypt. Ranks must have the same byte order.

#![forbid(unsafe_code)]

mod acceptor;
mod control;
mod environment;
mod exchange;
mod frame;
mod group;
mod handshake;
mod health;
pub mod interrupt;
mod liveness;
mod mesh;
mod options;
mod plan;
mod reduce;
mod rendezvous;
mod session;
mod store;
mod wait;
mod world;

pub use environment::Environment;
pub use group::Group;
pub use options::{CancelToken, InitOptions};
pub use store::{FileStore, HashStore, PrefixStore, Store, TcpStore};
pub use world::{World, init};
