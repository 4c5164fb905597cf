//! A member's certificate ends after a month, so it gets a new one in time.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use fleet_ca::{CA_FILE, CERTIFICATE_FILE, KEY_FILE, MemberDir};
use rpc::{Credentials, Tls};
use time::OffsetDateTime;

/// How often it is looked at, and how soon it is tried again.
const EVERY: Duration = Duration::from_secs(3600);

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
    loop {
        if let Err(error) = look(&dir, &credentials).await {
            tracing::error!(
                "renew the certificate in {}: {}; trying again in an hour. `emberbox fleet join` gives another one to a process \
                 whose certificate has ended",
                dir.display(),
                crate::ui::explain(&error)
            );
        }
        tokio::time::sleep(EVERY).await;
    }
}

async fn look(dir: &Path, credentials: &Credentials) -> Result<()> {
    let files = MemberDir::new(dir);
    if !files.load()?.due(OffsetDateTime::now_utc()) {
        return Ok(());
    }
    let renewed = fleet_ca::renew(&files).await?;
    credentials.renew(&read(dir)?)?;
    tracing::info!(until = %renewed.not_after, "the certificate of this member is renewed");
    Ok(())
}
