//! A member's certificate ends after a month, so it gets a new one in time.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fleet_ca::{CA_FILE, CERTIFICATE_FILE, KEY_FILE, Member, MemberDir, show_time};
use rpc::{Credentials, Tls};

/// Reads a member's files.
pub fn read(dir: &Path) -> Result<Tls> {
    let read = |name: &str| {
        let path = dir.join(name);
        std::fs::read_to_string(&path).with_context(|| {
            format!("read {}; `emberbox fleet join` writes it, and cluster.tls names its directory", path.display())
        })
    };
    Ok(Tls { ca: read(CA_FILE)?, cert: read(CERTIFICATE_FILE)?, key: read(KEY_FILE)? })
}

/// Renews the certificate in `dir` whenever two thirds of its life are over, by the server that it came from.
pub async fn run(dir: PathBuf, credentials: Credentials) {
    let files = MemberDir::new(&dir);
    let take = move |member: Member| match read(&dir).and_then(|tls| Ok(credentials.renew(&tls)?)) {
        Ok(()) => tracing::info!(until = show_time(&member.not_after), "the certificate of this member is renewed"),
        Err(error) => tracing::error!(
            "use the renewed certificate in {}: {}; a restart takes it",
            dir.display(),
            crate::ui::explain(&error)
        ),
    };
    match fleet_ca::keep_renewed(files, take).await {}
}
