//! Keeps the library mapped until the process ends: its worker threads may outlive the last handle that
//! `dlclose` sees. A link argument set here survives a `RUSTFLAGS` variable, and is part of the source distribution.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }
}
