//! The thread that listens to the control connections of a world: it hands notices to the groups and ends their waits
//! when a rank is lost. It sleeps in one poll and costs nothing while nothing happens.

use crate::control::{Control, Fate, Inbox, Notice};
use crate::exchange::timespec;
use crate::group::Group;
use crate::handshake::is_pause;
use crate::health::Gone;
use rustix::event::{PollFd, PollFlags, poll};
use std::io::Read;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// What a lost rank had sent before may still complete the running call; after this time the call is given up.
const GRACE: Duration = Duration::from_millis(200);

/// A call that waits in vain once its time is up.
struct Doomed {
    at: Instant,
    group: Weak<Group>,
    gone: Gone,
    sequence: u64,
}

struct Watch<'a> {
    control: &'a Control,
    /// By global rank; `None` once its connection has ended.
    inboxes: Vec<Option<Inbox>>,
    doomed: Vec<Doomed>,
}

/// Runs until the control connections are stopped or all have ended.
pub(crate) fn watch(control: &Control) {
    let inboxes = (0..control.world_size()).map(|rank| control.stream(rank).map(|_| Inbox::default())).collect();
    let mut watch = Watch { control, inboxes, doomed: vec![] };
    while !control.is_stopped() && watch.busy() {
        let ready = watch.wait();
        if control.is_stopped() {
            return;
        }
        ready.into_iter().for_each(|rank| watch.receive(rank));
        watch.expire();
    }
}

impl Watch<'_> {
    fn busy(&self) -> bool {
        !self.doomed.is_empty() || self.inboxes.iter().any(Option::is_some)
    }

    /// The ranks whose connections have something to say.
    fn wait(&self) -> Vec<usize> {
        let open: Vec<_> = self.inboxes.iter().enumerate().filter(|(_, inbox)| inbox.is_some()).collect();
        let open: Vec<_> = open.iter().filter_map(|&(rank, _)| Some((rank, self.control.stream(rank)?))).collect();
        let mut sockets: Vec<_> = open.iter().map(|(_, stream)| PollFd::new(*stream, PollFlags::IN)).collect();
        let left = self.doomed.iter().map(|doomed| doomed.at.saturating_duration_since(Instant::now())).min();
        match poll(&mut sockets, left.map(timespec).as_ref()) {
            Ok(_) => {
                let ready = open.iter().zip(&sockets).filter(|(_, socket)| !socket.revents().is_empty());
                ready.map(|((rank, _), _)| *rank).collect()
            }
            Err(_) => {
                // Interrupted, or short of memory: neither may become a busy loop.
                std::thread::sleep(Duration::from_millis(1));
                vec![]
            }
        }
    }

    fn receive(&mut self, rank: usize) {
        let mut bytes = [0; 4096];
        loop {
            let read = self.control.stream(rank).map(|mut stream| stream.read(&mut bytes));
            match read {
                Some(Ok(n)) if n > 0 => {
                    if self.deliver(rank, &bytes[..n]).is_err() {
                        return self.lost(rank);
                    }
                }
                Some(Err(e)) if is_pause(&e) => return,
                _ => return self.lost(rank),
            }
        }
    }

    fn deliver(&mut self, rank: usize, bytes: &[u8]) -> Result<(), ()> {
        let Some(inbox) = &mut self.inboxes[rank] else { return Ok(()) };
        inbox.push(bytes);
        let mut notices = vec![];
        while let Some(notice) = inbox.next()? {
            notices.push(notice);
        }
        for notice in notices {
            let groups = self.control.groups();
            let find = |id: u64| groups.iter().find(|group| group.id() == id);
            match notice {
                Notice::Poison { group, error } => find(group).into_iter().for_each(|g| g.hear(rank, error.clone())),
                Notice::Left { group, completed } => {
                    let gone = Gone { rank, completed: Some(completed) };
                    find(group).into_iter().for_each(|group| self.gone(group, gone));
                }
                Notice::Bye => drop(self.control.set_fate(rank, Fate::Left)),
            }
        }
        Ok(())
    }

    /// The connection to `rank` has ended.
    fn lost(&mut self, rank: usize) {
        self.inboxes[rank] = None;
        if self.control.is_stopped() || self.control.set_fate(rank, Fate::Lost) == Fate::Left {
            return;
        }
        for group in self.control.groups() {
            self.gone(&group, Gone { rank, completed: None });
        }
    }

    fn gone(&mut self, group: &Arc<Group>, gone: Gone) {
        match group.gone(gone) {
            Some(_) if gone.completed.is_some() => group.give_up(gone),
            Some(sequence) => {
                let at = Instant::now() + GRACE;
                self.doomed.push(Doomed { at, group: Arc::downgrade(group), gone, sequence });
            }
            None => {}
        }
    }

    fn expire(&mut self) {
        let now = Instant::now();
        for doomed in self.doomed.extract_if(.., |doomed| doomed.at <= now) {
            if let Some(group) = doomed.group.upgrade().filter(|group| group.is_active(doomed.sequence)) {
                group.give_up(doomed.gone);
            }
        }
    }
}
