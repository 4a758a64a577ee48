//! Exists so that the crate has an `OUT_DIR`, from which it knows cargo's target folder. The fake libraries themselves
//! are built when they are first asked for: see `src/compile.rs`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}
