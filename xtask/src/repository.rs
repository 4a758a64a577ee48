//! The files of the repository, by path relative to its root with forward slashes.

use std::fs;
use std::path::{Path, PathBuf};

/// Folders that hold what was built, installed or is not ours, and the hidden ones.
fn is_skipped(name: &str) -> bool {
    name.starts_with('.') || ["target", "node_modules", "dist"].contains(&name)
}

/// A checkout.
pub struct Repository {
    root: PathBuf,
    files: Vec<String>,
}

impl Repository {
    /// The one this tool was built from.
    pub fn of_this_build() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask/ lies in the root").to_path_buf();
        let mut files = Vec::new();
        collect(&root, "", &mut files);
        files.sort();
        Self { root, files }
    }

    /// Every file whose path starts with `prefix` and ends with `suffix`.
    pub fn files<'a>(&'a self, prefix: &'a str, suffix: &'a str) -> impl Iterator<Item = &'a str> {
        self.files.iter().map(String::as_str).filter(move |path| path.starts_with(prefix) && path.ends_with(suffix))
    }

    /// The text of a file; bytes that are no UTF-8 are replaced.
    ///
    /// # Panics
    /// If it cannot be read.
    pub fn read(&self, path: &str) -> String {
        let bytes = fs::read(self.root.join(path)).unwrap_or_else(|cause| panic!("cannot read {path}: {cause}"));
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

fn collect(folder: &Path, prefix: &str, files: &mut Vec<String>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|cause| panic!("cannot read {}: {cause}", folder.display()));
    for entry in entries.map(|entry| entry.expect("an entry of a folder")) {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let kind = entry.file_type().expect("what an entry is");
        if kind.is_dir() && !is_skipped(&name) {
            collect(&entry.path(), &format!("{prefix}{name}/"), files);
        } else if kind.is_file() {
            files.push(format!("{prefix}{name}"));
        }
    }
}
