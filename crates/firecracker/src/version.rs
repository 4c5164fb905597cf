//! Which Firecracker this is.

use std::fmt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::error::{Doing, Error, Result};

/// A version of Firecracker or its jailer. A suffix such as `-dev` is not kept.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Version {
    /// Changes with incompatible APIs.
    pub major: u16,
    /// Changes with features.
    pub minor: u16,
    /// Changes with repairs.
    pub patch: u16,
}

impl Version {
    /// The oldest that Emberbox works with: `network_overrides` of a snapshot's load came with it.
    pub const MINIMUM: Self = Self { major: 1, minor: 12, patch: 0 };

    /// From `1.12.1`, `v1.12.1` or `1.13.0-dev`.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let mut numbers = text.split_once('-').map_or(text, |(numbers, _)| numbers).split('.');
        let mut next = || numbers.next()?.parse().ok();
        let version = Self { major: next()?, minor: next()?, patch: next()? };
        numbers.next().is_none().then_some(version)
    }

    /// Whether Emberbox works with it: a major version promises to keep the API.
    pub fn suits(self) -> bool {
        self >= Self::MINIMUM && self.major == Self::MINIMUM.major
    }

    /// Asks `firecracker` or `jailer` for its version (`--version`).
    ///
    /// # Errors
    /// If it does not start, says nothing within 10 s, or does not suit.
    pub async fn of(program: &Path) -> Result<Self> {
        let mut command = tokio::process::Command::new(program);
        command.arg("--version").stdin(Stdio::null()).kill_on_drop(true);
        let limit = Duration::from_secs(10);
        let output = tokio::time::timeout(limit, command.output())
            .await
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
            .doing(|| format!("asking {} for its version", program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.split_whitespace().nth(1).and_then(Self::parse);
        version.filter(|version| version.suits()).ok_or_else(|| Error::Unsuitable {
            program: program.to_owned(),
            found: version
                .map_or_else(|| format!("no Firecracker program ({:?})", first_line(&text)), |found| found.to_string()),
        })
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parsed_and_compared_by_number() {
        let version = |text| Version::parse(text).unwrap();
        assert_eq!(version("v1.12.1"), Version { major: 1, minor: 12, patch: 1 });
        assert_eq!(version("1.13.0-dev"), Version { major: 1, minor: 13, patch: 0 });
        assert!(version("1.12.0").suits() && version("1.100.0").suits());
        assert!(!version("1.11.9").suits() && !version("1.2.0").suits() && !version("2.0.0").suits());
        for text in ["", "1.12", "1.12.1.1", "1.x.1", "firecracker"] {
            assert_eq!(Version::parse(text), None, "{text}");
        }
    }
}
