//! A snapshot of the environment variables that describe a job.

use std::collections::BTreeMap;
use syncbn_core::error::{Code, Error, Result};

/// Environment variables, taken once and passed in; an empty value counts as absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// The variables of this process; names and values that are not Unicode are left out.
    pub fn from_process() -> Self {
        Self(std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect())
    }

    /// The value of `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The value of `name`, or [`Code::Environment`] naming it.
    pub fn require(&self, name: &str) -> Result<&str> {
        self.get(name).ok_or_else(|| {
            Error::new(Code::Environment, format!("init: environment variable {name} expected, but not set"))
        })
    }

    /// The value of `name` as a whole number ≥ 0; [`Code::Environment`] if it is something else.
    pub fn number(&self, name: &str) -> Result<Option<usize>> {
        let parse = |value: &str| {
            value.parse().map_err(|_| {
                Error::new(
                    Code::Environment,
                    format!("init: environment variable {name}: expected a whole number, got '{value}'"),
                )
            })
        };
        self.get(name).map(parse).transpose()
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(variables: I) -> Self {
        Self(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}
