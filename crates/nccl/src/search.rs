//! Where NCCL is looked for.

use std::cmp::Reverse;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// The environment variable that names NCCL's file, or a folder with it.
pub const PATH_VARIABLE: &str = "SYNCBN_NCCL_PATH";

/// Names of the library: that of the runtime packages and of the pip wheels, and that of the development packages.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// NCCL in the folder where a Python keeps its packages.
const IN_PACKAGES: &str = "nvidia/nccl/lib";

/// Where NCCL is looked for, in this order: [`path`](Self::path) and nothing else if it is set; the loader's own search;
/// [`folders`](Self::folders).
///
/// ```
/// use syncbn_nccl::Search;
///
/// let search = Search { path: Some("/opt/nccl/libnccl.so.2.28.9".into()), ..Search::default() };
/// assert_eq!(search.candidates(), ["/opt/nccl/libnccl.so.2.28.9"].map(std::path::PathBuf::from));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Search {
    /// A file, or a folder with `libnccl.so.2` or `libnccl.so`: somebody's own choice, so nothing else is tried.
    pub path: Option<PathBuf>,
    /// Whether the loader is asked for the bare names (`LD_LIBRARY_PATH`, `ldconfig`).
    pub loader: bool,
    /// Folders to look into.
    pub folders: Vec<PathBuf>,
}

impl Search {
    /// The search that this process's environment describes: `SYNCBN_NCCL_PATH`, the loader, then the pip wheels of the
    /// active Python or Conda environment, of the user and of the machine.
    pub fn from_env() -> Self {
        Self::from_variables(|name| std::env::var_os(name), Path::new("/"))
    }

    /// As [`from_env`](Self::from_env), with other variables, and another root for the machine's folders. An empty
    /// variable counts as absent.
    pub fn from_variables(variable: impl Fn(&str) -> Option<OsString>, root: &Path) -> Self {
        let path = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let mut folders = Vec::new();
        for environment in ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(path) {
            folders.extend(wheels(&environment.join("lib")));
            // Conda's own package of NCCL is no Python package.
            folders.push(environment.join("lib"));
        }
        folders.extend(path("HOME").iter().flat_map(|home| wheels(&home.join(".local/lib"))));
        folders.extend(wheels(&root.join("usr/local/lib")));
        folders.push(root.join("usr/lib/python3/dist-packages").join(IN_PACKAGES));
        Self { path: path(PATH_VARIABLE), loader: true, folders }
    }

    /// Every path to try, in order; a bare name asks the loader. Paths in folders are listed whether they exist or not.
    pub fn candidates(&self) -> Vec<PathBuf> {
        match &self.path {
            Some(folder) if folder.is_dir() => files_in(folder),
            Some(file) => vec![file.clone()],
            None => {
                let bare = if self.loader { NAMES.map(PathBuf::from).to_vec() } else { Vec::new() };
                bare.into_iter().chain(self.folders.iter().flat_map(|folder| files_in(folder))).collect()
            }
        }
    }
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    NAMES.map(|name| folder.join(name)).to_vec()
}

/// NCCL's folders in the packages of every `python3.*` in `lib`, the newest Python first.
fn wheels(lib: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(lib).into_iter().flatten().flatten();
    let mut pythons: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let minor = entry.file_name().to_str()?.strip_prefix("python3.")?.parse().ok()?;
            Some((minor, entry.path()))
        })
        .collect();
    pythons.sort_by_key(|(minor, _)| Reverse(*minor));
    let packages = |python: &Path| ["site-packages", "dist-packages"].map(|name| python.join(name).join(IN_PACKAGES));
    pythons.iter().flat_map(|(_, python)| packages(python)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// A folder that goes when the test ends.
    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            static COUNT: AtomicUsize = AtomicUsize::new(0);
            let name = format!("syncbn-nccl-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
            let path = std::env::temp_dir().join(name);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn folder(&self, path: &str) -> PathBuf {
            let folder = self.0.join(path);
            fs::create_dir_all(&folder).unwrap();
            folder
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn search(variables: &[(&str, &Path)], root: &Path) -> Search {
        let variables: HashMap<&str, &Path> = variables.iter().copied().collect();
        Search::from_variables(|name| variables.get(name).map(|path| path.as_os_str().to_owned()), root)
    }

    #[test]
    fn without_variables_the_loader_comes_before_the_machines_packages() {
        let root = Folder::new();
        let python = root.folder("usr/local/lib/python3.12");
        let expected = [
            PathBuf::from("libnccl.so.2"),
            PathBuf::from("libnccl.so"),
            python.join("site-packages/nvidia/nccl/lib/libnccl.so.2"),
            python.join("site-packages/nvidia/nccl/lib/libnccl.so"),
            python.join("dist-packages/nvidia/nccl/lib/libnccl.so.2"),
            python.join("dist-packages/nvidia/nccl/lib/libnccl.so"),
            root.0.join("usr/lib/python3/dist-packages/nvidia/nccl/lib/libnccl.so.2"),
            root.0.join("usr/lib/python3/dist-packages/nvidia/nccl/lib/libnccl.so"),
        ];
        assert_eq!(search(&[], &root.0).candidates(), expected);
    }

    #[test]
    fn environments_come_before_the_user_and_the_user_before_the_machine() {
        let root = Folder::new();
        for folder in ["venv/lib/python3.11", "conda/lib/python3.10", "home/.local/lib/python3.9"] {
            root.folder(folder);
        }
        let [venv, conda, home] = ["venv", "conda", "home"].map(|name| root.0.join(name));
        let search = search(&[("HOME", &home), ("CONDA_PREFIX", &conda), ("VIRTUAL_ENV", &venv)], &root.0);
        let expected = [
            "venv/lib/python3.11/site-packages/nvidia/nccl/lib",
            "venv/lib/python3.11/dist-packages/nvidia/nccl/lib",
            "venv/lib",
            "conda/lib/python3.10/site-packages/nvidia/nccl/lib",
            "conda/lib/python3.10/dist-packages/nvidia/nccl/lib",
            "conda/lib",
            "home/.local/lib/python3.9/site-packages/nvidia/nccl/lib",
            "home/.local/lib/python3.9/dist-packages/nvidia/nccl/lib",
            "usr/lib/python3/dist-packages/nvidia/nccl/lib",
        ];
        assert_eq!(search.folders, expected.map(|folder| root.0.join(folder)));
    }

    #[test]
    fn the_newest_python_comes_first_by_number() {
        let root = Folder::new();
        for name in ["python3.9", "python3.12", "python3.10", "python3", "python2.7", "pythonic"] {
            root.folder(&format!("lib/{name}"));
        }
        let found: Vec<_> = wheels(&root.0.join("lib")).into_iter().step_by(2).collect();
        let expected = ["python3.12", "python3.10", "python3.9"]
            .map(|name| root.0.join("lib").join(name).join("site-packages/nvidia/nccl/lib"));
        assert_eq!(found, expected);
    }

    #[test]
    fn the_path_variable_stands_alone_as_a_file_or_a_folder() {
        let root = Folder::new();
        let folder = root.folder("nccl");
        let inside = ["libnccl.so.2", "libnccl.so"].map(|name| folder.join(name));
        assert_eq!(search(&[(PATH_VARIABLE, &folder)], &root.0).candidates(), inside);
        let file = folder.join("my-nccl.so");
        assert_eq!(search(&[(PATH_VARIABLE, &file)], &root.0).candidates(), [file]);
    }

    #[test]
    fn an_empty_variable_counts_as_absent() {
        let root = Folder::new();
        let empty = Path::new("");
        let with = search(&[(PATH_VARIABLE, empty), ("VIRTUAL_ENV", empty), ("HOME", empty)], &root.0);
        assert_eq!(with, search(&[], &root.0));
    }
}
