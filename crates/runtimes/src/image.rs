//! A runtime that is on this host.

use std::path::PathBuf;

/// Checks a wrapper as AWS's bootstrap scripts do, then becomes it. `$0` is the wrapper, `$@` the command.
const WRAP: &str = r#"[ -f "$0" ] || { echo "$0: does not exist"; exit 127; }
[ -x "$0" ] || { echo "$0: is not executable"; exit 126; }
exec -- "$0" "$@""#;

/// How the runtime process starts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Bootstrap {
    /// A program in the root or a mount, with its arguments.
    Command(Vec<String>),
    /// The first of these that the function's package or layers have.
    Search(Vec<String>),
}

/// Everything that a sandbox needs to know about a runtime.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RuntimeImage {
    /// e.g. `python3.12`.
    pub name: String,
    /// Root directory on this host.
    pub root: PathBuf,
    /// Read-only directories: source on this host, target in the sandbox.
    pub mounts: Vec<(PathBuf, String)>,
    /// How it starts.
    pub bootstrap: Bootstrap,
    /// Whether that command knows how to stand by (`sandbox::Standby`).
    pub standby: bool,
    /// The runtime's own environment variables; the customer's override them.
    pub env: Vec<(String, String)>,
    /// `AWS_EXECUTION_ENV`; none for `provided` runtimes.
    pub execution_env: Option<String>,
    /// For the `INIT_START` line, e.g. `python:3.12.v1`.
    pub version: String,
    /// For `arn:aws:lambda:<region>::runtime:<hash>`: 64 hex digits that change when anything in the runtime does.
    pub version_arn_hash: String,
}

impl RuntimeImage {
    /// The process to start, with `AWS_LAMBDA_EXEC_WRAPPER` honoured where AWS does: for runtimes that have a command
    /// of their own. `None` for the others: search then.
    pub fn command(&self, exec_wrapper: Option<&str>) -> Option<Vec<String>> {
        let Bootstrap::Command(command) = &self.bootstrap else { return None };
        match exec_wrapper.filter(|wrapper| !wrapper.is_empty()) {
            None => Some(command.clone()),
            Some(wrapper) => {
                let shell = ["/bin/bash", "-c", WRAP, wrapper].map(str::to_owned);
                Some(shell.into_iter().chain(command.iter().cloned()).collect())
            }
        }
    }
}
