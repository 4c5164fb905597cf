//! Node.js: the binary, and AWS's `aws-lambda-ric`, whose native part npm compiles.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::copy_libraries;
use crate::recipe::Recipe;
use crate::{Progress, RuntimeError, copy, host, libraries};

/// What compiling `aws-lambda-ric` calls: program → package of Debian.
const BUILD_TOOLS: [(&str, &str); 6] =
    [("cmake", "cmake"), ("g++", "g++"), ("make", "make"), ("python3", "python3"), ("tar", "tar"), ("xz", "xz-utils")];
/// The package that is the runtime client itself: its files go to `/var/runtime`, others to `node_modules` there.
const CLIENT: &str = "aws-lambda-ric";

/// Where Debian puts JavaScript modules.
const OUTSIDE_BUILTINS: &str = "/usr/share/nodejs/";

/// Fills `to/lang` and `to/runtime`; returns the version of Node.js.
pub(super) fn install(
    recipe: &Recipe,
    interpreter: &Path,
    to: &Path,
    progress: &dyn Progress,
) -> Result<String, RuntimeError> {
    let node = interpreter.canonicalize().map_err(RuntimeError::io("read", interpreter))?;
    let npm = tools(recipe, &node)?;
    let version = host::run("node --version", Command::new(&node).arg("--version").env_remove("NODE_OPTIONS"))?;
    let version = version.trim().trim_start_matches('v').to_owned();
    progress.step(&format!("copying Node.js {version} from {}", node.display()));
    let lang = to.join("lang");
    copy::file(&node, &lang.join("bin/node"))?;
    copy_libraries(std::slice::from_ref(&node), &lang.join("lib"))?;
    copy_outside_builtins(&node, &lang)?;

    let build = tempfile::tempdir().map_err(RuntimeError::io("create directory in", &std::env::temp_dir()))?;
    let is_client = |package: &&String| package.starts_with(CLIENT);
    let (client, sdk): (Vec<_>, Vec<_>) = recipe.install.packages.iter().partition(is_client);
    progress.step(&format!("compiling {CLIENT} with npm, which takes about a minute"));
    npm_install(&npm, &node, &client, Scripts::Run, &build.path().join("client"))?;
    let runtime = to.join("runtime");
    let client = build.path().join("client/node_modules").join(CLIENT);
    for file in ["index.mjs", "rapid-client.node", "package.json", "LICENSE", "NOTICE"] {
        copy::file(&client.join(file), &runtime.join(file))?;
    }
    copy_libraries(&[client.join("rapid-client.node")], &lang.join("lib"))?;
    let modules = runtime.join("node_modules");
    copy::directory(&modules)?;
    if !sdk.is_empty() {
        progress.step(&format!("installing {} packages of the AWS SDK with npm", sdk.len()));
        npm_install(&npm, &node, &sdk, Scripts::Ignore, &build.path().join("sdk"))?;
        let from = build.path().join("sdk/node_modules");
        for file in copy::files_below(&from, &needed_at_run_time)? {
            copy::file(&from.join(&file), &modules.join(&file))?;
        }
    }
    Ok(version)
}

/// Debian's Node.js (the one with a `libnode`) reads some of its built-in modules from files, whose paths are compiled
/// into it. The base root leads from there to `/var/lang/share/nodejs`.
fn copy_outside_builtins(node: &Path, lang: &Path) -> Result<(), RuntimeError> {
    let libraries = libraries::closure(&[node.to_owned()])?.libraries;
    for (_, library) in libraries.iter().filter(|(name, _)| name.starts_with("libnode.")) {
        let content = fs::read(library).map_err(RuntimeError::io("read", library))?;
        for file in outside_builtins(&content) {
            let from = Path::new(OUTSIDE_BUILTINS).join(&file);
            if from.is_file() {
                copy::file(&from, &lang.join("share/nodejs").join(&file))?;
            }
        }
    }
    Ok(())
}

/// Paths of JavaScript files below [`OUTSIDE_BUILTINS`] in a binary.
fn outside_builtins(binary: &[u8]) -> BTreeSet<String> {
    let start = OUTSIDE_BUILTINS.as_bytes();
    let found = binary.windows(start.len()).enumerate().filter(|(_, window)| *window == start);
    let paths = found.filter_map(|(at, _)| {
        let rest = &binary[at + start.len()..];
        let end = rest.iter().position(|b| !(b.is_ascii_alphanumeric() || b"/._-".contains(b)))?;
        let path = std::str::from_utf8(&rest[..end]).ok()?;
        (path.ends_with(".js") && !path.contains("..")).then(|| path.to_owned())
    });
    paths.collect()
}

/// npm, once everything that compiling needs is known to be there.
fn tools(recipe: &Recipe, node: &Path) -> Result<PathBuf, RuntimeError> {
    let dirs = || node.parent().map(Path::to_owned).into_iter().chain(host::path_dirs());
    let npm = host::program_in(dirs(), "npm");
    let missing = BUILD_TOOLS.iter().filter(|(program, _)| host::program_in(host::path_dirs(), program).is_none());
    let mut missing: Vec<&str> = missing.map(|(_, package)| *package).collect();
    match npm {
        Some(npm) if missing.is_empty() => Ok(npm),
        npm => {
            if npm.is_none() {
                missing.push("npm");
            }
            let hint = format!(
                "AWS's Node.js client is compiled here; install what that needs with: apt-get install {}",
                missing.join(" ")
            );
            Err(RuntimeError::Missing { name: recipe.name.clone(), hint })
        }
    }
}

/// Whether packages may run programs of theirs when they are installed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scripts {
    Run,
    Ignore,
}

fn needed_at_run_time(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let types = name == "dist-types" || name.ends_with(".d.ts") || name.ends_with(".map");
    !(types || name == ".bin" || name == ".package-lock.json" || name == "README.md" || name == "CHANGELOG.md")
}

fn npm_install(
    npm: &Path,
    node: &Path,
    packages: &[&String],
    scripts: Scripts,
    dir: &Path,
) -> Result<(), RuntimeError> {
    copy::directory(dir)?;
    // npm and node-gyp must run with, and compile for, this very node.
    let node_dir = node.parent().unwrap_or(node);
    let mut path = OsString::from(node_dir);
    for dir in host::path_dirs() {
        path.push(":");
        path.push(dir);
    }
    let mut command = Command::new(npm);
    command.args(["install", "--no-audit", "--no-fund", "--no-package-lock", "--prefix"]);
    command
        .arg(dir)
        .arg(format!("--ignore-scripts={}", scripts == Scripts::Ignore))
        .args(packages)
        .env("PATH", path)
        .env_remove("NODE_OPTIONS")
        .current_dir(dir);
    // With headers beside the binary node-gyp downloads none.
    if let Some(prefix) = node_dir.parent()
        && prefix.join("include/node/node_api.h").is_file()
    {
        command.env("npm_config_nodedir", prefix);
    }
    host::run("npm install", &mut command).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_in_a_binary_are_found() {
        let binary = b"\x7fELF\0dep:/usr/share/nodejs/acorn/dist/acorn.js\0/usr/share/nodejs/../x.js\0\
                       /usr/share/nodejs/readme\0/usr/share/nodejs/acorn/dist/acorn.js\"";
        assert_eq!(outside_builtins(binary), BTreeSet::from(["acorn/dist/acorn.js".to_owned()]));
        assert!(outside_builtins(b"/usr/share/nodejs/cut.js").is_empty());
    }
}
