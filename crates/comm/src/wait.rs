//! A wait of the set-up phase: its deadline and what may end it early.

use std::time::{Duration, Instant};
use syncbn_core::error::Result;

/// How often a wait of the set-up phase looks at its [`Wait::interrupt`].
pub(crate) const TICK: Duration = Duration::from_millis(50);

/// A deadline for a whole operation, and a check that ends it early.
pub(crate) struct Wait<'a> {
    at: Instant,
    total: Duration,
    interrupt: &'a (dyn Fn() -> Result<()> + 'a),
}

impl<'a> Wait<'a> {
    /// Starts now and lasts `total`; ends early with the error `interrupt` returns.
    pub(crate) fn new(total: Duration, interrupt: &'a (dyn Fn() -> Result<()> + 'a)) -> Self {
        Self { at: deadline(total), total, interrupt }
    }

    /// The time that was allowed, in words.
    pub(crate) fn total(&self) -> String {
        words(self.total)
    }

    /// The error that ends the wait early, if there is one.
    pub(crate) fn check(&self) -> Result<()> {
        (self.interrupt)()
    }

    /// Whether the deadline has passed.
    pub(crate) fn expired(&self) -> bool {
        Instant::now() >= self.at
    }

    /// The time left, at most `limit`, never zero (a zero socket timeout means none).
    pub(crate) fn slice(&self, limit: Duration) -> Duration {
        self.at.saturating_duration_since(Instant::now()).min(limit).max(Duration::from_millis(1))
    }
}

/// The moment `total` from now; a century at most.
pub(crate) fn deadline(total: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);
    Instant::now() + total.min(CENTURY)
}

/// A duration as people write it.
pub(crate) fn words(duration: Duration) -> String {
    match duration.as_millis() {
        ms if ms >= 1000 && ms % 1000 == 0 => format!("{} s", ms / 1000),
        ms => format!("{ms} ms"),
    }
}

/// "rank 2" or "ranks 1, 2 and 5".
pub(crate) fn rank_list(ranks: &[usize]) -> String {
    match ranks {
        [] => "no rank".into(),
        [one] => format!("rank {one}"),
        [first @ .., last] => {
            let first: Vec<_> = first.iter().map(usize::to_string).collect();
            format!("ranks {} and {last}", first.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_readable() {
        assert_eq!(words(Duration::from_millis(1500)), "1500 ms");
        assert_eq!(words(Duration::from_secs(300)), "300 s");
        assert_eq!(rank_list(&[4]), "rank 4");
        assert_eq!(rank_list(&[1, 2, 5]), "ranks 1, 2 and 5");
    }

    #[test]
    fn the_longest_timeout_has_a_deadline() {
        assert!(deadline(Duration::MAX) > Instant::now());
    }
}
