//! A Debian release becomes a layer: `mmdebstrap` writes one.

use std::io::Read as _;
use std::process::{Command, Stdio};

use crate::error::ImageError;
use crate::layer::{self, Budget, Rules};
use crate::scratch::Scratch;
use crate::tree::Tree;

/// Which packages, and from where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Debian {
    /// The release's code name: `bookworm`.
    pub release: String,
    /// How much is installed: `mmdebstrap`'s variant, such as `minbase` (the default) or `essential`.
    pub variant: String,
    /// Packages to install beside it.
    pub include: Vec<String>,
    /// Where packages come from; Debian's own mirror by default.
    pub mirror: Option<String>,
}

impl Debian {
    /// The smallest one with a package manager.
    pub fn new(release: impl Into<String>) -> Self {
        Self { release: release.into(), variant: "minbase".into(), include: Vec::new(), mirror: None }
    }

    /// The command, which checks Debian's signatures, and writes the same archive for the same packages and `time`.
    fn command(&self, time: u32) -> Result<Command, ImageError> {
        let words = [&self.release, &self.variant].into_iter().chain(&self.include).chain(&self.mirror);
        for word in words {
            // An option in the place of a name, or several names in the place of one.
            if word.is_empty() || word.starts_with('-') || word.contains([',', ' ', '\n']) {
                let reason = format!("{word:?} is no name of a release, variant or package of Debian");
                return Err(ImageError::Source { source_name: format!("debian:{}", self.release), reason });
            }
        }
        let mut command = Command::new("mmdebstrap");
        command.env("SOURCE_DATE_EPOCH", time.to_string()).env("LC_ALL", "C.UTF-8");
        command.arg(format!("--variant={}", self.variant)).arg("--format=tar");
        if !self.include.is_empty() {
            command.arg(format!("--include={}", self.include.join(",")));
        }
        command.arg(&self.release).arg("-").args(&self.mirror);
        Ok(command)
    }
}

pub(crate) fn read(
    tree: &mut Tree,
    scratch: &mut Scratch,
    budget: &mut Budget,
    time: u32,
    debian: &Debian,
) -> Result<u64, ImageError> {
    let name = format!("debian:{}", debian.release);
    let doing = || format!("make {name}");
    let mut command = debian.command(time)?;
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => {
            ImageError::Tool { doing: doing(), program: "mmdebstrap", package: "mmdebstrap" }
        }
        _ => ImageError::Io { doing: "start", path: "mmdebstrap".into(), source },
    })?;
    let mut stdout = child.stdout.take().expect("is piped");
    let mut stderr = child.stderr.take().expect("is piped");
    let said = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stderr.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    });
    // What was made just now has the time of now.
    let rules = Rules { whiteouts: false, latest: Some(time) };
    let result = layer::apply(tree, scratch, budget, &name, rules, &mut stdout);
    // If the archive was refused, this is what ends the program.
    drop(stdout);
    let status =
        child.wait().map_err(|source| ImageError::Io { doing: "wait for", path: "mmdebstrap".into(), source })?;
    let said = said.join().unwrap_or_default();
    match result {
        Err(error @ ImageError::TooLarge { .. }) => Err(error),
        _ if !status.success() => {
            let lines: Vec<&str> = said.lines().collect();
            let output = lines[lines.len().saturating_sub(20)..].join("\n");
            Err(ImageError::Program { doing: doing(), program: "mmdebstrap", status, output })
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_no_options() {
        for wrong in ["", "--hook-dir=/tmp", "a,b", "a b"] {
            assert!(Debian::new(wrong).command(0).is_err(), "{wrong}");
            assert!(Debian { include: vec![wrong.into()], ..Debian::new("bookworm") }.command(0).is_err(), "{wrong}");
        }
        let debian = Debian { include: vec!["python3".into(), "gcc".into()], ..Debian::new("bookworm") };
        let command = debian.command(1).unwrap();
        let arguments: Vec<_> = command.get_args().map(|argument| argument.to_str().unwrap()).collect();
        assert_eq!(arguments, ["--variant=minbase", "--format=tar", "--include=python3,gcc", "bookworm", "-"]);
    }
}
