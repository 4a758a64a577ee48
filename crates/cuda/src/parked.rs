//! What the device may still use after its owner has let go of it: kept until an event says otherwise.

use crate::allocator::relaxed;
use crate::device::{Cuda, lock, open_devices};
use crate::stream::Event;
use std::any::Any;
use std::sync::Mutex;

/// Things, each with the event after which the device does not use it any more.
#[derive(Default)]
pub(crate) struct Parked(Mutex<Vec<(Event, Box<dyn Any + Send>)>>);

impl Cuda {
    /// Keeps `thing` until `event` is done. Where the device has failed and no event ever is, for ever: giving the
    /// thing back could hand out memory that is still written.
    pub fn park(&self, event: Event, thing: Box<dyn Any + Send>) {
        lock(&self.0.parked.0).push((event, thing));
        self.let_go_of_parked();
    }

    /// Drops what was kept for the device and is not used any more. Without a call it happens when the next thing is
    /// kept.
    pub fn let_go_of_parked(&self) {
        // In a recording a question to an event counts as a wait for it.
        if self.recording().is_some() {
            return;
        }
        let mut parked = lock(&self.0.parked.0);
        let done = |(event, _): &mut (Event, _)| relaxed(|| event.is_done()).unwrap_or(false);
        let over: Vec<_> = parked.extract_if(.., done).collect();
        // What is dropped may come back here.
        drop(parked);
        drop(over);
    }
}

/// Drops what is kept for any device and is not used any more.
pub fn let_go_of_parked() {
    open_devices().iter().for_each(Cuda::let_go_of_parked);
}
