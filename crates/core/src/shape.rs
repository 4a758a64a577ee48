//! How batch norm sees a tensor: N × C × (everything else).

use crate::error::{Code, Error, Result};
use crate::memory_format::MemoryFormat;

/// A dense tensor of shape (N, C, *) as batch norm sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchNormShape {
    /// N, the first dimension.
    pub batch: usize,
    /// C, the second dimension.
    pub channels: usize,
    /// Product of all further dimensions; 1 for (N, C).
    pub spatial: usize,
    /// Whether channels are the fastest dimension in memory.
    pub channels_last: bool,
}

impl BatchNormShape {
    /// Reads `shape` = (N, C, *), at least two dimensions, C at least 1.
    ///
    /// (N, C) lies in memory like a channels-last tensor without spatial dimensions and is treated as one.
    ///
    /// # Errors
    /// [`Code::Shape`] for fewer than two dimensions, no channels, or a format that does not fit the rank.
    pub fn new(op: &str, shape: &[usize], format: MemoryFormat) -> Result<Self> {
        if shape.len() < 2 {
            return Err(Error::expected(
                Code::Shape,
                op,
                "at least 2D input (N, C, *)",
                format!("{}D input {shape:?}", shape.len()),
            ));
        }
        if shape[1] == 0 {
            return Err(Error::expected(Code::Shape, op, "a non-zero number of input channels", format!("{shape:?}")));
        }
        format.check_rank(op, shape.len())?;
        let spatial = shape[2..].iter().product();
        Ok(Self {
            batch: shape[0],
            channels: shape[1],
            spatial,
            channels_last: format.is_channels_last() || spatial == 1,
        })
    }

    /// Values per channel: N × spatial.
    pub fn count(&self) -> usize {
        self.batch * self.spatial
    }

    /// Elements of the tensor.
    pub fn numel(&self) -> usize {
        self.count() * self.channels
    }

    /// Offset of the first element of (sample, channel), and the distance to the next spatial element.
    pub fn run(&self, sample: usize, channel: usize) -> (usize, usize) {
        if self.channels_last {
            (sample * self.spatial * self.channels + channel, self.channels)
        } else {
            ((sample * self.channels + channel) * self.spatial, 1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_visit_every_element_once_in_both_layouts() {
        for format in [MemoryFormat::Contiguous, MemoryFormat::ChannelsLast] {
            let shape = BatchNormShape::new("test", &[2, 3, 4, 5], format).unwrap();
            let mut seen = vec![0; shape.numel()];
            for (sample, channel) in (0..2).flat_map(|n| (0..3).map(move |c| (n, c))) {
                let (start, step) = shape.run(sample, channel);
                (0..shape.spatial).for_each(|i| seen[start + i * step] += 1);
            }
            assert!(seen.iter().all(|&times| times == 1));
        }
    }

    #[test]
    fn too_few_dimensions_and_no_channels_are_errors() {
        let error = BatchNormShape::new("batchNorm", &[4], MemoryFormat::Contiguous).unwrap_err();
        assert!(error.message().contains("at least 2D input"), "{error}");
        assert!(BatchNormShape::new("batchNorm", &[4, 0, 2], MemoryFormat::Contiguous).is_err());
    }
}
