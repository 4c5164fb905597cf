//! Certificates for a fleet on one machine, by the way that any fleet has them: tokens, and a server to join at.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use fleet_ca::{
    CA_CERTIFICATE, Ca, FileLedger, JoinOptions, JoinServer, Ledger as _, MemberDir, Secret, Settings, Token,
    TokenRecord, parse_roles,
};
use membership::Role;
use time::OffsetDateTime;
use tokio::task::JoinHandle;

/// How long a token is good, which is used at once.
const TOKEN_LIFE: Duration = Duration::from_secs(60);

/// The fleet's certificate authority, serving newcomers and those that renew.
pub struct Authority {
    ca: Ca,
    ledger: FileLedger,
    address: String,
    serving: JoinHandle<()>,
}

impl Drop for Authority {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Authority {
    /// The one in `dir`, made if it is not there.
    pub async fn start(dir: &Path) -> Result<Self> {
        let load = || match dir.join(CA_CERTIFICATE).exists() {
            true => Ca::load(dir),
            false => Ca::create(dir, "dev-fleet", OffsetDateTime::now_utc()),
        };
        let (ca, served) = (load()?, load()?);
        let ledger = FileLedger::new(dir);
        let listen = ([127, 0, 0, 1], 0).into();
        let server = JoinServer::bind(served, Arc::new(FileLedger::new(dir)), listen, Settings::default()).await?;
        let address = server.local_addr().to_string();
        let serving = tokio::spawn(server.run(std::future::pending()));
        Ok(Self { ca, ledger, address, serving })
    }

    /// Has a process join, in place of an earlier start's member: that one's join server is gone. Returns the directory with its files.
    pub async fn certify(&self, name: &str, role: Role, dir: PathBuf) -> Result<PathBuf> {
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", dir.display()));
            }
            _ => {}
        }
        let member = MemberDir::new(&dir);
        let (secret, now) = (Secret::new(), OffsetDateTime::now_utc());
        let (roles, expires) = (parse_roles(role.as_str())?, now + TOKEN_LIFE);
        let record = TokenRecord { hash: secret.hash(), roles: roles.clone(), expires, uses_left: 1 };
        self.ledger.add(record, now).await?;
        let address = self.address.parse().context("the address to join at")?;
        let token = Token { address, fingerprint: self.ca.fingerprint(), secret, roles, expires };
        let options = JoinOptions { id: name.parse().context("the process's name")?, roles: None, hosts: None };
        fleet_ca::join(&token, options, &member).await.with_context(|| format!("get a certificate for {name}"))?;
        Ok(dir)
    }
}
