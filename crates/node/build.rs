//! Links the addon as Node.js expects it. It stays loaded when the last environment goes: a group's thread may still be
//! returning from a system call whose code would otherwise be unmapped under it.

fn main() {
    napi_build::setup();
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }
}
