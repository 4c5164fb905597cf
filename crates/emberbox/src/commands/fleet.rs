//! `emberbox fleet`: the certificate authority, tokens, and members' certificates.

#[cfg(feature = "cluster")]
mod status;

use std::io::Read;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fleet_ca::{
    Address, CA_CERTIFICATE, CA_KEY, Ca, FileLedger, JoinOptions, JoinServer, KEY_FILE, Ledger, MemberDir, MemberId,
    Roles, Secret, Settings, Token, TokenRecord, show_roles, show_time,
};
use serde_json::json;
use time::OffsetDateTime;
use tracing_subscriber::EnvFilter;

use super::serve::Signals;
use super::{client_side, print, print_json};
use crate::cli::Fleet;
use crate::{data_dir, ui};

/// The longest that a token may be good: it is a secret that lies about.
const TOKEN_LIMIT: Duration = Duration::from_secs(30 * 86_400);

/// `emberbox fleet …`
pub fn run(command: Fleet) -> Result<ExitCode> {
    match command {
        Fleet::Init { dir, name, json } => init(dir, &name, json)?,
        Fleet::Token { roles, address, expires, uses, dir, json } => {
            return client_side(token(dir, roles, address, expires, uses, json));
        }
        Fleet::Join { token, id, roles, host, dir, json } => {
            let id = id.map_or_else(own_id, Ok)?;
            let hosts = (!host.is_empty()).then_some(host);
            return client_side(join(token, JoinOptions { id, roles, hosts }, dir, json));
        }
        Fleet::Renew { force, dir, json } => return client_side(renew(dir, force, json)),
        Fleet::Deny { id, dir } => return client_side(deny(dir, id)),
        #[cfg(not(feature = "cluster"))]
        Fleet::Status { .. } => bail!(crate::commands::WITHOUT_FLEETS),
        #[cfg(feature = "cluster")]
        Fleet::Status { place, watch, json } => return client_side(status::run(place, watch, json)),
        #[cfg(feature = "cluster")]
        Fleet::Cordon { id, place } => return client_side(status::order(place, &id, rpc::Cordon::Cordon)),
        #[cfg(feature = "cluster")]
        Fleet::Uncordon { id, place } => return client_side(status::order(place, &id, rpc::Cordon::None)),
        #[cfg(feature = "cluster")]
        Fleet::Drain { id, place } => return client_side(status::order(place, &id, rpc::Cordon::Drain)),
        Fleet::ServeJoin { listen, life, dir } => return client_side(serve_join(dir, listen, life)),
    }
    Ok(ExitCode::SUCCESS)
}

fn ca_dir(dir: Option<PathBuf>) -> Result<PathBuf> {
    absolute(dir, "fleet-ca")
}

fn member_dir(dir: Option<PathBuf>) -> Result<MemberDir> {
    Ok(MemberDir::new(&absolute(dir, "fleet")?))
}

fn absolute(dir: Option<PathBuf>, default: &str) -> Result<PathBuf> {
    match dir {
        Some(dir) => std::path::absolute(&dir).with_context(|| format!("resolve {}", dir.display())),
        None => Ok(data_dir::default_dir().context("--dir names another directory")?.join(default)),
    }
}

fn init(dir: Option<PathBuf>, name: &str, json: bool) -> Result<()> {
    let dir = ca_dir(dir)?;
    let ca = Ca::create(&dir, name, OffsetDateTime::now_utc())?;
    let (certificate, key) = (dir.join(CA_CERTIFICATE), dir.join(CA_KEY));
    if json {
        return print_json(&json!({
            "directory": dir, "certificate": certificate, "key": key, "fingerprint": ca.fingerprint().to_string(),
            "notAfter": show_time(&ca.not_after()),
        }));
    }
    let heading = ui::bold(&format!("The certificate authority of the fleet `{name}` is made."));
    eprintln!(
        "{heading}\n\n\
         {certificate}\n    its certificate, good until {until}. Everybody may see it.\n    SHA-256 {fingerprint}\n\
         {key}\n    its private key. Secret: whoever has it can make members. Keep a copy where nobody else comes.\n\n\
         Next, on this machine, and leave it running:\n\n    \
         emberbox fleet serve-join{option}\n\n\
         For each machine that is to join, once (--roles says what it may be, --address where it finds this machine):\n\n    \
         emberbox fleet token --roles worker --address HOST:4570{option}\n\n\
         And on that machine, with the line that this prints:\n\n    \
         emberbox fleet join TOKEN",
        certificate = certificate.display(),
        until = show_time(&ca.not_after()),
        fingerprint = ca.fingerprint(),
        key = key.display(),
        option = if data_dir::default_dir().is_ok_and(|default| default.join("fleet-ca") == dir) {
            String::new()
        } else {
            format!(" --dir {}", dir.display())
        },
    );
    Ok(())
}

async fn token(
    dir: Option<PathBuf>,
    roles: Roles,
    address: Address,
    expires: Duration,
    uses: u32,
    json: bool,
) -> Result<ExitCode> {
    if expires.is_zero() || expires > TOKEN_LIMIT {
        bail!("--expires has to be between 1s and 30d: a token is a secret, and others can be made");
    }
    let dir = ca_dir(dir)?;
    let ca = Ca::load(&dir)?;
    let (secret, now) = (Secret::new(), OffsetDateTime::now_utc());
    let expires = now + expires;
    let record = TokenRecord { hash: secret.hash(), roles: roles.clone(), expires, uses_left: uses };
    FileLedger::new(&dir).add(record, now).await?;
    let fingerprint = ca.fingerprint();
    let line = Token { address: address.clone(), fingerprint, secret, roles: roles.clone(), expires }.to_line();
    if json {
        print_json(&json!({
            "token": line, "address": address, "roles": roles, "uses": uses, "expires": show_time(&expires),
        }))?;
    } else {
        print(format!("{line}\n").as_bytes())?;
        let times = if uses == 1 { "once".to_owned() } else { format!("{uses} times") };
        eprintln!(
            "It lets a machine join as {}, {times}, until {}. It is a secret until then. On that machine:\n\n    \
             emberbox fleet join TOKEN",
            show_roles(&roles),
            show_time(&expires)
        );
    }
    Ok(ExitCode::SUCCESS)
}

async fn join(token: String, options: JoinOptions, dir: Option<PathBuf>, json: bool) -> Result<ExitCode> {
    let token = if token == "-" {
        let mut text = String::new();
        // A token is a few hundred bytes; what is longer is none.
        std::io::stdin().lock().take(64 << 10).read_to_string(&mut text).context("read the token from stdin")?;
        text
    } else {
        token
    };
    let token = Token::parse(&token)?;
    let dir = member_dir(dir)?;
    let joined = fleet_ca::join(&token, options, &dir).await?;
    let (id, roles) = (joined.identity.id, joined.identity.roles);
    if json {
        print_json(&json!({
            "id": id, "roles": roles, "directory": dir.path(), "joinServer": token.address,
            "notAfter": show_time(&joined.not_after),
        }))?;
    } else {
        eprintln!(
            "This machine has joined the fleet as {id}, with the roles {}. Its certificate is good until {}, and can be renewed \
             from two thirds of that time on.\n{} is its private key, which was made here; keep it secret, and do not copy it.",
            show_roles(&roles),
            show_time(&joined.not_after),
            dir.path().join(KEY_FILE).display()
        );
    }
    Ok(ExitCode::SUCCESS)
}

async fn renew(dir: Option<PathBuf>, force: bool, json: bool) -> Result<ExitCode> {
    let dir = member_dir(dir)?;
    let member = dir.load()?;
    let renewed = force || member.due(OffsetDateTime::now_utc());
    let not_after = if renewed { fleet_ca::renew(&dir).await?.not_after } else { member.not_after };
    let (id, until) = (member.identity.id, show_time(&not_after));
    if json {
        print_json(&json!({ "id": id, "renewed": renewed, "notAfter": until }))?;
    } else {
        let what =
            if renewed { "is renewed, and" } else { "is not due to be renewed (--force does it all the same): it is" };
        eprintln!("The certificate of {id} {what} good until {until}.");
    }
    Ok(ExitCode::SUCCESS)
}

async fn deny(dir: Option<PathBuf>, id: MemberId) -> Result<ExitCode> {
    let dir = ca_dir(dir)?;
    // So that a mistake in --dir is told.
    Ca::load(&dir)?;
    FileLedger::new(&dir).deny(id.clone()).await?;
    eprintln!(
        "{id} gets no other certificate. The other members refuse the one that it may have within a minute, as they ask the join server; \
         a machine that was broken into should be shut out in the network as well."
    );
    Ok(ExitCode::SUCCESS)
}

async fn serve_join(dir: Option<PathBuf>, listen: SocketAddr, life: Duration) -> Result<ExitCode> {
    let filter = EnvFilter::try_from_env("EMBERBOX_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ui::coloured()).init();
    if life < Duration::from_secs(60) || life > fleet_ca::MAX_LIFE {
        bail!("--life has to be between 60s and 366d");
    }
    let dir = ca_dir(dir)?;
    let ca = Ca::load(&dir)?;
    let fingerprint = ca.fingerprint();
    let mut signals = Signals::new(false)?;
    let settings = Settings { member_life: life, ..Settings::default() };
    let server = JoinServer::bind(ca, Arc::new(FileLedger::new(&dir)), listen, settings).await?;
    // On stdout, at once: scripts wait for it.
    print(
        format!(
            "Newcomers can join at {}. The authority's fingerprint is {fingerprint}. Ctrl-C stops it.\n",
            server.local_addr()
        )
        .as_bytes(),
    )?;
    server.run(signals.next()).await;
    Ok(ExitCode::SUCCESS)
}

/// The host's name and some random digits: machines that are copies of each other have different ones.
fn own_id() -> Result<MemberId> {
    let uname = rustix::system::uname();
    let id = id_of(&uname.nodename().to_string_lossy(), &uuid::Uuid::new_v4().simple().to_string()[..8]);
    id.parse().context("make a name for this machine; --id gives it one")
}

fn id_of(host: &str, random: &str) -> String {
    let name = host.split('.').next().unwrap_or_default();
    let name: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(48).collect();
    let name = name.trim_start_matches('-');
    format!("{}-{random}", if name.is_empty() { "member" } else { name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_a_name_of_its_own() {
        assert_eq!(id_of("web-1.example.org", "0a1b2c3d"), "web-1-0a1b2c3d");
        assert_eq!(id_of("", "0a1b2c3d"), "member-0a1b2c3d");
        for host in ["--", "ä_ö", &"x".repeat(200), "localhost"] {
            id_of(host, "0a1b2c3d").parse::<MemberId>().unwrap();
        }
        assert_ne!(own_id().unwrap(), own_id().unwrap());
    }
}
