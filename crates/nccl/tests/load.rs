//! What loading says of files that are not the NCCL it needs.

#![cfg(target_os = "linux")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use syncbn_nccl::{Nccl, NcclError, Search, Version};

/// A folder that goes when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("syncbn-nccl-load-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// A library made of this C code.
    fn library(&self, name: &str, code: &str) -> PathBuf {
        let (source, library) = (self.0.join(format!("{name}.c")), self.0.join(name));
        fs::write(&source, code).unwrap();
        let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let status =
            Command::new(compiler).args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status().unwrap();
        assert!(status.success());
        library
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn at(path: &Path) -> Search {
    Search { path: Some(path.to_owned()), ..Search::default() }
}

#[test]
fn a_missing_library_is_reported_with_every_path_and_reason() {
    let folder = Folder::new("missing");
    fs::write(folder.0.join("libnccl.so"), "no library").unwrap();
    let Err(NcclError::NotFound { tried }) = Nccl::load(&at(&folder.0)) else { panic!("nothing to be found") };
    let names: Vec<_> = tried.iter().map(|attempt| attempt.path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["libnccl.so.2", "libnccl.so"]);
    assert!(tried[0].reason.contains("No such file"), "{}", tried[0].reason);
    assert!(tried[1].reason.contains("file too short") || tried[1].reason.contains("ELF"), "{}", tried[1].reason);
}

#[test]
fn a_library_of_another_kind_is_named_with_the_function_it_lacks() {
    let folder = Folder::new("other");
    let path = folder.library("libother.so", "int something_else(void) { return 0; }");
    let error = Nccl::load(&at(&path)).unwrap_err();
    assert_eq!(error, NcclError::MissingSymbol { symbol: "ncclGetVersion", path });
}

#[test]
fn a_library_with_the_version_alone_lacks_the_rest() {
    let folder = Folder::new("half");
    let path = folder.library("libhalf.so", "int ncclGetVersion(int *version) { *version = 22809; return 0; }");
    let error = Nccl::load(&at(&path)).unwrap_err();
    assert_eq!(error, NcclError::MissingSymbol { symbol: "ncclGetUniqueId", path });
}

#[test]
fn an_old_library_is_refused_with_both_versions() {
    let folder = Folder::new("old");
    let path = folder.library("libnccl.so.2", "int ncclGetVersion(int *version) { *version = 21003; return 0; }");
    let error = Nccl::load(&at(&folder.0)).unwrap_err();
    assert_eq!(error, NcclError::TooOld { found: Version::new(2, 10, 3), needed: Version::OLDEST, path: path.clone() });
    assert_eq!(error.to_string(), format!("NCCL 2.20.3 or newer expected, got 2.10.3 ({})", path.display()));
}
