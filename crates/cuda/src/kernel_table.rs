//! What every launcher believes of its kernel's parameter, to be compared with the `.entry` lines of the PTX.

use crate::launch::Params;
use crate::module::Module;
use crate::{batch_norm, ops};

/// One entry point.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The file it is in.
    pub module: &'static str,
    /// Its name.
    pub name: String,
    /// Size of its one parameter.
    pub bytes: usize,
    /// Alignment of its one parameter.
    pub alignment: usize,
}

impl Entry {
    /// The entry point `name` of `module`, which takes a `P`.
    pub(crate) fn of<P: Params>(module: Module, name: impl Into<String>) -> Self {
        Self { module: module.file(), name: name.into(), bytes: size_of::<P>(), alignment: align_of::<P>() }
    }
}

/// Every entry point the launchers name, sorted.
pub fn kernel_table() -> Vec<Entry> {
    let mut table = [batch_norm::table(), ops::table()].concat();
    table.sort();
    table
}
