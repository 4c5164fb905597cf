//! A fleet's certificate authority, and how a member gets its certificate.
//!
//! ```text
//!  emberbox fleet init   ─► Ca (ca.pem, ca.key)            once, on one machine
//!  emberbox fleet token  ─► Token, one line of text        its secret's hash goes into the Ledger
//!  emberbox fleet join   ─► client ──TLS: only a server whose chain ends in the CA of the token──► JoinServer
//!                             CSR, secret, roles, id  ──────────────────────────────────────────►  Ledger, Ca
//!                             ca.pem, member.pem, member.key (which never left)  ◄── certificate, CA
//!  at 2/3 of its life    ─► client ──mutual TLS: the certificate that it has──► JoinServer ─► the same id and roles again
//! ```
//!
//! Who a member is stands in its certificate, as one URI `emberbox://fleet/<role>/<id>` for each role: [`identity_of`]. DNS names
//! and addresses in it are what the member said of itself, so that TLS libraries that insist on a name find one; they prove
//! nothing, and whoever calls a member must look at its identity.
//!
//! A certificate ends by itself (30 days by default). A member that is to go sooner is *denied* ([`Ledger::deny`]): it
//! gets no other certificate, and the others ask the join server who was denied ([`keep_denied`]), and refuse the one that it has.
#![forbid(unsafe_code)]

mod address;
mod ca;
mod client;
mod csr;
mod files;
mod identity;
mod ledger;
mod member;
mod protocol;
mod server;
mod tls;
mod token;

pub use address::{Address, Host, InvalidAddress};
pub use ca::{CA_CERTIFICATE, CA_KEY, Ca, CaError, IssueError, MAX_LIFE, MEMBER_LIFE, Subject};
pub use client::{ClientError, JoinOptions, Joined, denied, join, renew};
pub use csr::{Csr, InvalidCsr};
pub use files::FileError;
pub use identity::{Identity, InvalidIdentity, MemberId, ROLES, Role, Roles, identity_of, parse_roles, show_roles};
pub use ledger::{
    Admission, Book, FileLedger, LEDGER, Ledger, LedgerError, MemoryLedger, RedeemError, Refusal, TokenRecord,
};
pub use member::{
    CA_FILE, CERTIFICATE_FILE, DENIED_FILE, FLEET_FILE, KEY_FILE, Member, MemberDir, MemberError, MemberKey, due,
    keep_denied, keep_renewed,
};
pub use server::{BindError, JoinServer, Settings};
pub use token::{Fingerprint, InvalidToken, Secret, SecretHash, TOKEN_PREFIX, Token};

/// A time for people, in whole seconds of UTC: `2027-01-15T08:00:00Z`.
pub fn show_time(time: &time::OffsetDateTime) -> String {
    use time::format_description::well_known::Rfc3339;
    let whole = time.replace_nanosecond(0).unwrap_or(*time).to_offset(time::UtcOffset::UTC);
    whole.format(&Rfc3339).unwrap_or_else(|_| whole.to_string())
}

#[cfg(test)]
mod tests {
    #[test]
    fn times_are_whole_seconds_of_utc() {
        let time = time::OffsetDateTime::from_unix_timestamp_nanos(1_800_000_000_123_456_789).unwrap();
        assert_eq!(
            super::show_time(&time.to_offset(time::UtcOffset::from_hms(5, 30, 0).unwrap())),
            "2027-01-15T08:00:00Z"
        );
    }
}
