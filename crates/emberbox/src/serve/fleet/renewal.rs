//! A member's certificate: whose it is, and another one in time.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fleet_ca::{CA_FILE, CERTIFICATE_FILE, KEY_FILE, Member, MemberDir, MemberId, show_roles, show_time};
use rpc::{Credentials, Tls};
use time::OffsetDateTime;

use crate::config::Cluster;

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

/// The name in the certificate, which the others know this process by. Refuses what none of them would accept: a process that is in
/// the fleet and cannot be called takes its functions with it.
pub fn identity(dir: &Path, cluster: &Cluster) -> Result<Arc<str>> {
    let member = MemberDir::new(dir).load()?;
    let id = member.identity.id.as_str();
    ensure!(
        cluster.id.as_deref().is_none_or(|named| named == id),
        "cluster.id is {:?}, and the certificate in {} is {id}'s; leave cluster.id out, or join again with --id",
        cluster.id.as_deref().unwrap_or_default(),
        dir.display()
    );
    for role in &cluster.roles {
        ensure!(
            member.identity.is(role.as_str()),
            "the certificate in {} is not for the role {role}: it is for {}; join again with a token for all roles of this process",
            dir.display(),
            show_roles(&member.identity.roles)
        );
    }
    ensure!(
        OffsetDateTime::now_utc() < member.not_after,
        "the certificate in {} ended at {}; join again",
        dir.display(),
        show_time(&member.not_after)
    );
    Ok(id.into())
}

/// How often it is asked who was denied.
const ASK: Duration = Duration::from_secs(30);

/// Has nobody call a member that was denied, nor be called by one.
pub async fn deny(dir: PathBuf, credentials: Credentials) {
    let told = move |denied: &BTreeSet<MemberId>| credentials.deny(denied.iter().map(ToString::to_string));
    match fleet_ca::keep_denied(MemberDir::new(&dir), ASK, told).await {}
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
