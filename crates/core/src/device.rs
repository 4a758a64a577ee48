//! A device's memory, as the seams see it.

/// Memory of one kind of device. The views carry their element type and length.
pub trait Device {
    /// Memory an operation reads.
    type In<'a>: Copy;
    /// Memory an operation writes, or reads and writes.
    type Out<'a>;
    /// Memory that belongs to the library: messages between ranks and statistics kept for backward.
    type Buffer: 'static;
}
