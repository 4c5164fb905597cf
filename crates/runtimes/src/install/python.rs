//! Python: the interpreter with its standard library, AWS's `awslambdaric` and boto3.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use super::copy_libraries;
use crate::recipe::Recipe;
use crate::{Progress, RuntimeError, copy, host, interpreters};

/// `/var/runtime/bootstrap.py`.
pub(super) const BOOTSTRAP: &str = include_str!("bootstrap.py");
/// `/var/runtime/emberbox_start.py`.
pub(super) const START: &str = include_str!("start.py");
/// Makes `/var/runtime/emberbox_start.modules`.
pub(super) const ARCHIVE: &str = include_str!("archive.py");

/// Parts of the standard library that functions have no use for, or that belong to the host: by name at its top level.
const WITHOUT: [&str; 13] = [
    "EXTERNALLY-MANAGED",
    "_tkinter",
    "dist-packages",
    "ensurepip",
    "idlelib",
    "lib-tk",
    "site-packages",
    "sitecustomize.py",
    "test",
    "tkinter",
    "turtle.py",
    "turtledemo",
    "usercustomize.py",
];

/// Where an interpreter's parts are, by its own word.
const PROBE: &str = "\
import sys, sysconfig
print('executable = ' + repr(getattr(sys, '_base_executable', None) or sys.executable))
print('stdlib = ' + repr(sysconfig.get_path('stdlib', vars={'installed_base': sys.base_prefix, 'base': sys.base_prefix})))
print('version = ' + repr('.'.join(map(str, sys.version_info[:3]))))
";

#[derive(Deserialize)]
struct Probed {
    executable: PathBuf,
    stdlib: PathBuf,
    version: String,
}

/// Fills `to/lang` and `to/runtime`; returns the interpreter's version.
pub(super) fn install(
    recipe: &Recipe,
    interpreter: &Path,
    to: &Path,
    progress: &dyn Progress,
) -> Result<String, RuntimeError> {
    let probed = probe(interpreter)?;
    if !probed.version.starts_with(&format!("{}.", recipe.version)) {
        let hint = format!("{} is Python {}, not {}", interpreter.display(), probed.version, recipe.version);
        return Err(RuntimeError::Missing { name: recipe.name.clone(), hint });
    }
    progress.step(&format!("copying Python {} from {}", probed.version, interpreter.display()));
    let lang = to.join("lang");
    copy_interpreter(recipe, &probed, &lang, progress)?;
    let runtime = to.join("runtime");
    copy::directory(&runtime)?;
    progress.step(&format!("installing {} with pip", recipe.install.packages.join(", ")));
    pip_install(recipe, &probed.executable, &runtime)?;
    copy::text(BOOTSTRAP, &runtime.join("bootstrap.py"))?;
    copy::text(START, &runtime.join("emberbox_start.py"))?;
    progress.step("compiling Python modules");
    compile(&probed.executable, &lang.join("lib"), "/var/lang/lib")?;
    compile(&probed.executable, &runtime, "/var/runtime")?;
    archive(&lang.join("bin").join(format!("python{}", recipe.version)), &lang, &runtime)?;
    Ok(probed.version)
}

/// Python that runs neither the user's start-up files nor the caller's settings.
fn isolated(python: &Path) -> Command {
    let mut command = Command::new(python);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PYTHON") {
            command.env_remove(name);
        }
    }
    command
}

fn probe(interpreter: &Path) -> Result<Probed, RuntimeError> {
    let what = format!("asking {} what it is", interpreter.display());
    let output = host::run(&what, isolated(interpreter).args(["-I", "-S", "-c", PROBE]))?;
    let mut probed: Probed =
        toml::from_str(&output).map_err(|e| RuntimeError::Command { what: what.clone(), cause: e.to_string() })?;
    // Through `python3` to the file itself.
    probed.executable = probed.executable.canonicalize().map_err(RuntimeError::io("read", &probed.executable))?;
    Ok(probed)
}

fn copy_interpreter(
    recipe: &Recipe,
    probed: &Probed,
    lang: &Path,
    progress: &dyn Progress,
) -> Result<(), RuntimeError> {
    let name = format!("python{}", recipe.version);
    copy::file(&probed.executable, &lang.join("bin").join(&name))?;
    for alias in ["python3", "python"] {
        copy::link(&name, &lang.join("bin").join(alias))?;
    }
    let stdlib = lang.join("lib").join(&name);
    let files = copy::files_below(&probed.stdlib, &keep)?;
    for (done, file) in files.iter().enumerate() {
        progress.amount(done as u64, files.len() as u64);
        copy::file(&probed.stdlib.join(file), &stdlib.join(file))?;
    }
    copy::directory(&stdlib.join("site-packages"))?;
    let modules = files.iter().filter(|file| file.extension().is_some_and(|e| e == "so"));
    let mut needing: Vec<PathBuf> = modules.map(|file| probed.stdlib.join(file)).collect();
    needing.push(probed.executable.clone());
    copy_libraries(&needing, &lang.join("lib"))
}

fn keep(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let top = path.components().next().map(|first| first.as_os_str().to_string_lossy()).unwrap_or_default();
    let tk = name.starts_with("_tkinter.") || name.starts_with("_test") && name.ends_with(".so");
    let build = top.starts_with("config-");
    !(WITHOUT.contains(&top.as_ref()) || build || tk || name == "__pycache__" || name == "tests" || name == "test")
}

/// With the interpreter's own pip; else with that of another Python, which can then take finished wheels only.
fn pip_install(recipe: &Recipe, python: &Path, to: &Path) -> Result<(), RuntimeError> {
    let others = interpreters::all_pythons();
    let has_pip =
        |python: &Path| isolated(python).args(["-m", "pip", "--version"]).output().is_ok_and(|o| o.status.success());
    let own = has_pip(python);
    let pip = if own { Some(python) } else { others.iter().map(PathBuf::as_path).find(|other| has_pip(other)) };
    let Some(pip) = pip else {
        let hint = "no Python of this host has pip; install it with: apt-get install python3-pip".to_owned();
        return Err(RuntimeError::Missing { name: recipe.name.clone(), hint });
    };
    let mut command = isolated(pip);
    command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-compile"]);
    // By environment, since older pips refuse the option.
    command.env("PIP_ROOT_USER_ACTION", "ignore").args(["--no-deps", "--target"]).arg(to);
    if !own {
        let tag = recipe.version.replace('.', "");
        let platform = format!("manylinux2014_{}", std::env::consts::ARCH);
        command.args([
            "--only-binary=:all:",
            "--implementation=cp",
            "--abi",
            &format!("cp{tag}"),
            "--abi=abi3",
            "--abi=none",
        ]);
        command.args(["--platform", &platform, "--python-version", &recipe.version]);
    }
    command.args(&recipe.install.packages);
    let what = format!("pip install for {}", recipe.name);
    host::run(&what, &mut command).map(drop).map_err(|error| match error {
        RuntimeError::Command { what, cause } => RuntimeError::Command {
            what,
            cause: format!(
                "{cause}\nIf it had to compile awslambdaric (no wheel for this interpreter), that needs: \
                 apt-get install cmake g++ make autoconf automake libtool"
            ),
        },
        error => error,
    })
}

/// The directories are read-only for functions, so that Python could never cache its bytecode there. Unchecked: it need
/// not compare with the source's time either.
fn compile(python: &Path, dir: &Path, seen_as: &str) -> Result<(), RuntimeError> {
    let mut command = isolated(python);
    command.args(["-I", "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash", "-s"]);
    command.arg(dir).args(["-p", seen_as]).arg(dir);
    // A module that is no valid Python in this version (templates, tests) fails alone, when imported.
    match host::run("compileall", &mut command) {
        Ok(_) => {}
        Err(error) => tracing::debug!("{error}"),
    }
    Ok(())
}

/// Without the archive each start searches for its modules, which takes longer and is otherwise the same.
fn archive(python: &Path, lang: &Path, runtime: &Path) -> Result<(), RuntimeError> {
    let python = python.canonicalize().map_err(RuntimeError::io("read", python))?;
    let mut command = isolated(&python);
    // Its own libraries, as in a sandbox.
    command.env("LD_LIBRARY_PATH", lang.join("lib")).args(["-I", "-c", ARCHIVE]).arg(lang).arg(runtime);
    match host::run("gathering the modules of the runtime client", &mut command) {
        Ok(_) => copy::readable(&runtime.join("emberbox_start.modules")),
        Err(error) => {
            tracing::warn!("functions on {} start later than they could: {error}", python.display());
            Ok(())
        }
    }
}
