//! Programs of this host: where they are, and running them.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::RuntimeError;

/// Lines of a failed program's output that the error carries.
const LAST_LINES: usize = 15;

/// The first executable file called `name` in `dirs`.
pub(crate) fn program_in(dirs: impl IntoIterator<Item = PathBuf>, name: &str) -> Option<PathBuf> {
    dirs.into_iter().map(|dir| dir.join(name)).find(|path| is_executable(path))
}

pub(crate) fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// `PATH`, without directories of shims: those pick a version by rules of their own.
pub(crate) fn path_dirs() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).filter(|dir| dir.is_absolute() && !dir.ends_with("shims")).collect()
}

/// Runs a program to its end and returns its standard output.
pub(crate) fn run(what: &str, command: &mut Command) -> Result<String, RuntimeError> {
    let failed = |cause: String| RuntimeError::Command { what: what.to_owned(), cause };
    tracing::debug!(?command, "{what}");
    let output = command.output().map_err(|e| failed(format!("start {:?}: {e}", command.get_program())))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    let all = text(&output.stdout) + &text(&output.stderr);
    let lines: Vec<&str> = all.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
    Err(failed(format!("{}\n{}", output.status, last.join("\n"))))
}
