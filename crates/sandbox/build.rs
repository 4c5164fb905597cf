//! Builds the agent of microVMs (feature `microvm`), which becomes part of this crate: a static program, by a cargo of its
//! own, in a target directory of its own. It takes nothing that the build of this crate does not take as well, but a
//! static C library where Rust's musl target is not installed.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The targets that make static programs, the better first: by itself, or told to.
const MUSL: &str = "x86_64-unknown-linux-musl";
const GNU: &str = "x86_64-unknown-linux-gnu";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_MICROVM").is_none() {
        return;
    }
    for path in ["../guest/src", "../guest/Cargo.toml", "../../Cargo.lock"] {
        println!("cargo::rerun-if-changed={path}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let program = build(&out.join("guest"));
    std::fs::copy(&program, out.join("emberbox-guest"))
        .unwrap_or_else(|error| panic!("copy {}: {error}", program.display()));
}

fn build(target_dir: &Path) -> PathBuf {
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    assert!(architecture == "x86_64", "microVMs are for x86_64 only yet; build without the feature `microvm`");
    let target = if installed(MUSL) { MUSL } else { GNU };
    let mut cargo = Command::new(env::var_os("CARGO").expect("cargo sets it"));
    // What is set for this build (flags, wrappers such as clippy's, the kind of build) is not for that one.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        let ours = ["RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CARGO_ENCODED_RUSTFLAGS"];
        let of_build = ["CARGO_PROFILE_", "CARGO_CFG_", "CARGO_FEATURE_", "CARGO_BUILD_", "CARGO_PKG_"];
        if ours.contains(&name.as_ref()) || of_build.iter().any(|prefix| name.starts_with(prefix)) {
            cargo.env_remove(name.as_ref());
        }
    }
    if target == GNU {
        cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
    }
    let manifest = Path::new(&env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("../guest/Cargo.toml");
    cargo.args(["build", "--quiet", "--profile", "guest", "--bin", "emberbox-guest", "--target", target]);
    cargo.arg("--manifest-path").arg(manifest).arg("--target-dir").arg(target_dir);
    let status = cargo.status().expect("cargo runs");
    assert!(
        status.success(),
        "the agent of microVMs cannot be built (see above). It takes `rustup target add {MUSL}`, or a static C library \
         (Debian: libc6-dev; Fedora: glibc-static). Or build without microVMs: --no-default-features."
    );
    target_dir.join(target).join("guest/emberbox-guest")
}

/// Whether this compiler has the standard library for a target.
fn installed(target: &str) -> bool {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).args(["--print", "target-libdir", "--target", target]).output();
    output.is_ok_and(|output| {
        let directory = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success() && Path::new(&directory).is_dir()
    })
}
