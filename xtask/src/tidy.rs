//! Rules about the repository that no compiler checks: who may depend on whom, where `unsafe`, the environment and
//! printing may be, what files open with, how long they are, which error codes are documented.
//!
//! Each rule is a function from files to findings, `path:line: what is wrong`. `cargo xtask tidy` prints them; a test
//! asserts that there are none.

mod dependencies;
mod source;

use crate::error_codes;
use crate::repository::Repository;

/// Everything that is wrong.
pub fn findings(repository: &Repository) -> Vec<String> {
    let rules: [fn(&Repository) -> Vec<String>; 4] = [dependency_directions, rust_files, typescript_files, errors];
    rules.iter().flat_map(|rule| rule(repository)).collect()
}

fn dependency_directions(repository: &Repository) -> Vec<String> {
    let manifests = repository.files("crates/", "/Cargo.toml");
    manifests.flat_map(|path| dependencies::check(path, &repository.read(path))).collect()
}

fn rust_files(repository: &Repository) -> Vec<String> {
    let folders = ["crates/", "xtask/", "benches/", "examples/"];
    let files = folders.into_iter().flat_map(|folder| repository.files(folder, ".rs"));
    files.flat_map(|path| source::check_rust(path, &repository.read(path))).collect()
}

fn typescript_files(repository: &Repository) -> Vec<String> {
    let folders = ["src/", "__test__/", "benches/", "examples/", "scripts/"];
    let files = folders
        .into_iter()
        .flat_map(|folder| [".ts", ".mjs"].into_iter().flat_map(move |suffix| repository.files(folder, suffix)));
    files.flat_map(|path| source::check_typescript(path, &repository.read(path))).collect()
}

fn errors(repository: &Repository) -> Vec<String> {
    let codes = error_codes::parse(&repository.read(error_codes::SOURCE));
    error_codes::differences(&codes, &repository.read(error_codes::DOCUMENT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_is_tidy() {
        let findings = findings(&Repository::of_this_build());
        assert!(findings.is_empty(), "\n{}", findings.join("\n"));
    }

    #[test]
    fn the_rules_see_the_repository() {
        let repository = Repository::of_this_build();
        assert!(repository.files("crates/", ".rs").count() > 50);
        assert!(repository.files("src/", ".ts").count() > 50);
        assert!(error_codes::parse(&repository.read(error_codes::SOURCE)).len() > 20);
    }
}
