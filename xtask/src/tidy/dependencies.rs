//! Which crates of the workspace may name which: `node → runtime → {comm, nccl, cuda, cpu, core}`,
//! `comm, cuda, cpu → core`, and `core, nccl →` none. Only `node` names napi.

const CRATES: [&str; 8] = ["core", "cpu", "cuda", "nccl", "comm", "runtime", "node", "fake-cuda"];

/// The crates of ours that `name` may depend on, to run or to build; tests may name more of them.
fn allowed(name: &str) -> &'static [&'static str] {
    match name {
        "cpu" | "cuda" | "comm" => &["core"],
        "runtime" => &["comm", "nccl", "cuda", "cpu", "core"],
        "node" | "fake-cuda" => &CRATES,
        _ => &[],
    }
}

/// (line number, section, key) of every entry of a manifest.
fn entries(manifest: &str) -> Vec<(usize, String, String)> {
    let mut section = String::new();
    let mut entries = Vec::new();
    for (index, line) in manifest.lines().map(str::trim).enumerate() {
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_end_matches(']').to_string();
            // A dependency may have a section of its own: [dependencies.name].
            if let Some((parent, key)) = section.split_once("dependencies.") {
                entries.push((index + 1, format!("{parent}dependencies"), key.to_string()));
            }
        } else if let Some((key, _)) = line.split_once('=').filter(|_| !line.starts_with('#')) {
            let name = key.trim().split('.').next().unwrap_or_default().trim_matches('"');
            entries.push((index + 1, section.clone(), name.to_string()));
        }
    }
    entries
}

/// What the manifest at `path`, crates/NAME/Cargo.toml, names that it must not.
pub fn check(path: &str, manifest: &str) -> Vec<String> {
    let name = path.split('/').nth(1).unwrap_or_default();
    if !CRATES.contains(&name) {
        return vec![format!("{path}:1: crate '{name}' has no place in the directions of dependencies")];
    }
    let wrong = |(line, section, key): (usize, String, String)| {
        let tests = section.ends_with("dev-dependencies");
        if !section.ends_with("dependencies") {
            return None;
        }
        if (key == "napi" || key.starts_with("napi-")) && name != "node" {
            return Some(format!("{path}:{line}: only crates/node names {key}"));
        }
        let ours = key.strip_prefix("syncbn-")?;
        let fine = tests || allowed(name).contains(&ours);
        (!fine).then(|| format!("{path}:{line}: {name} must not depend on {ours}"))
    };
    entries(manifest).into_iter().filter_map(wrong).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions_are_kept_in_every_spelling() {
        let lines = [
            "syncbn-cpu.workspace = true",
            "syncbn-cpu = { path = \"../cpu\" }",
            "\"syncbn-cpu\" = \"1\"",
            "[dependencies.syncbn-cpu]",
        ];
        for line in lines {
            let manifest = format!("[package]\nname = \"x\"\n[dependencies]\n{line}\n");
            assert_eq!(
                check("crates/comm/Cargo.toml", &manifest),
                ["crates/comm/Cargo.toml:4: comm must not depend on cpu"]
            );
            assert!(check("crates/runtime/Cargo.toml", &manifest).is_empty());
            assert_eq!(check("crates/core/Cargo.toml", &manifest).len(), 1);
        }
    }

    #[test]
    fn tests_may_name_more_and_only_node_names_napi() {
        let tests = "[dev-dependencies]\nsyncbn-cpu.workspace = true\n";
        assert!(check("crates/comm/Cargo.toml", tests).is_empty());
        let napi = "[target.'cfg(unix)'.dependencies]\nnapi = \"3\"\n[build-dependencies]\nnapi-build = \"2\"\n";
        assert_eq!(check("crates/runtime/Cargo.toml", napi).len(), 2);
        assert!(check("crates/node/Cargo.toml", napi).is_empty());
    }

    #[test]
    fn a_crate_nobody_placed_is_found() {
        assert_eq!(check("crates/other/Cargo.toml", "").len(), 1);
    }
}
