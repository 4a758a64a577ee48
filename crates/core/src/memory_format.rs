//! The order of a dense tensor's elements in memory.

use crate::error::{Code, Error, Result};
use std::fmt;

/// How the dimensions of a dense tensor lie in memory. Shapes are always given in the order (N, C, …).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemoryFormat {
    /// Row major in the order of the shape: (N, C, H, W).
    Contiguous,
    /// Channels fastest, four dimensions: (N, H, W, C).
    ChannelsLast,
    /// Channels fastest, five dimensions: (N, D, H, W, C).
    ChannelsLast3d,
}

impl MemoryFormat {
    /// Every format, in the order of the codes used across languages.
    pub const ALL: [MemoryFormat; 3] =
        [MemoryFormat::Contiguous, MemoryFormat::ChannelsLast, MemoryFormat::ChannelsLast3d];

    /// The name used in TypeScript.
    pub const fn as_str(self) -> &'static str {
        match self {
            MemoryFormat::Contiguous => "contiguous",
            MemoryFormat::ChannelsLast => "channelsLast",
            MemoryFormat::ChannelsLast3d => "channelsLast3d",
        }
    }

    /// The format whose [`as_str`](Self::as_str) is `name`.
    pub fn parse(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|format| format.as_str() == name).ok_or_else(|| {
            Error::expected(
                Code::Argument,
                "memoryFormat",
                "'contiguous', 'channelsLast' or 'channelsLast3d'",
                format!("'{name}'"),
            )
        })
    }

    /// Whether channels are the fastest dimension.
    pub const fn is_channels_last(self) -> bool {
        !matches!(self, MemoryFormat::Contiguous)
    }

    /// Fails unless a tensor of `rank` dimensions can have this format.
    pub fn check_rank(self, op: &str, rank: usize) -> Result<()> {
        let needed = match self {
            MemoryFormat::Contiguous => return Ok(()),
            MemoryFormat::ChannelsLast => 4,
            MemoryFormat::ChannelsLast3d => 5,
        };
        if rank == needed {
            return Ok(());
        }
        Err(Error::expected(
            Code::Shape,
            op,
            format!("a {needed}-D tensor for memory format {self}"),
            format!("{rank}-D"),
        ))
    }

    /// Elements between neighbours along each dimension of `shape`.
    pub fn strides(self, shape: &[usize]) -> Vec<usize> {
        let mut strides = vec![0; shape.len()];
        let mut step = 1;
        let mut place = |dimension: usize| {
            strides[dimension] = step;
            step *= shape[dimension];
        };
        if self.is_channels_last() {
            place(1);
            (2..shape.len()).rev().for_each(&mut place);
            place(0);
        } else {
            (0..shape.len()).rev().for_each(&mut place);
        }
        strides
    }
}

impl fmt::Display for MemoryFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_follow_the_format() {
        assert_eq!(MemoryFormat::Contiguous.strides(&[2, 3, 4, 5]), [60, 20, 5, 1]);
        assert_eq!(MemoryFormat::ChannelsLast.strides(&[2, 3, 4, 5]), [60, 1, 15, 3]);
        assert_eq!(MemoryFormat::ChannelsLast3d.strides(&[2, 3, 4, 5, 6]), [360, 1, 90, 18, 3]);
    }

    #[test]
    fn a_format_names_the_rank_it_needs() {
        let error = MemoryFormat::ChannelsLast.check_rank("tensor", 3).unwrap_err();
        assert_eq!(error.code(), Code::Shape);
        assert!(error.message().contains("4-D"), "{error}");
    }
}
