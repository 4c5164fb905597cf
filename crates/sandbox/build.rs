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
    // One directory for all ways of building this crate (the ancestors: out, this crate's, build, profile).
    let target = out.ancestors().nth(4).unwrap_or(&out).join("guest-agent");
    let agent = out.join("emberbox-guest");
    let built = build(&target).and_then(|program| {
        std::fs::copy(&program, &agent).map(drop).map_err(|error| format!("copy {}: {error}", program.display()))
    });
    if let Err(problem) = built {
        // The rest of Emberbox works without.
        println!("cargo::warning=MicroVMs will not work in this build: {problem}");
        std::fs::write(&agent, []).expect("OUT_DIR can be written");
    }
}

fn build(target_dir: &Path) -> Result<PathBuf, String> {
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    if architecture != "x86_64" {
        return Err(format!("they are for x86_64 only yet, and this is {architecture}"));
    }
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
    let output = cargo.output().map_err(|error| format!("run cargo: {error}"))?;
    if !output.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        return Err(format!(
            "their agent cannot be built. It takes `rustup target add {MUSL}`, or a static C library (Debian: libc6-dev; \
             Fedora: glibc-static); `cargo build -vv` shows more"
        ));
    }
    Ok(target_dir.join(target).join("guest/emberbox-guest"))
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
