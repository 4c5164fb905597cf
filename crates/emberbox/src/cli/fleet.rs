//! `emberbox fleet`, as `--help` teaches it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Subcommand, ValueHint};
use fleet_ca::{Address, Host, MemberId, Roles, parse_roles};

use crate::units::parse_duration;

const EXAMPLES: &str = "\
On the first machine, once:
  emberbox fleet init                             makes the certificate authority
  emberbox fleet serve-join                       lets newcomers ask for certificates

For each machine that is to join, there:
  emberbox fleet token --roles worker --address 10.0.0.1:4570

and on the newcomer, with the line that this prints:
  emberbox fleet join emberbox-join-1.…

Members of a fleet talk to each other by mutual TLS. A certificate says who a member is and what it
may be; its key is made on the newcomer and stays there. A token is a secret until it is used or has
ended.";

#[cfg(feature = "cluster")]
const ORDERS: &str = "\
Examples:
  emberbox fleet cordon worker-7 --config /etc/emberbox/emberbox.toml
  emberbox fleet drain worker-7 --config /etc/emberbox/emberbox.toml
  emberbox fleet uncordon worker-7 --config /etc/emberbox/emberbox.toml

It lasts until the worker's process ends. With TLS, only the certificate of a frontend or a worker manager may do this.";

/// Which fleet, and how it is reached.
#[cfg(feature = "cluster")]
#[derive(clap::Args, Clone, Debug)]
pub struct FleetPlace {
    /// Configuration of a member, for its database and certificate
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// The fleet's database, in place of the configuration's
    #[arg(long, value_name = "URL")]
    pub database: Option<String>,
    /// Directory with ca.pem, member.pem and member.key, in place of the configuration's
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub tls: Option<PathBuf>,
}

/// `emberbox fleet`
#[derive(Subcommand, Debug)]
#[command(after_help = EXAMPLES)]
pub enum Fleet {
    /// Make a fleet's certificate authority, once, on one machine
    #[command(after_help = "\
Examples:
  emberbox fleet init
  emberbox fleet init --name production --dir /etc/emberbox/ca

An authority that is there is never overwritten. Its key is the fleet: back it up where nobody else
comes.")]
    Init {
        /// Where to [default: fleet-ca in the data directory]
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        dir: Option<PathBuf>,
        /// What people are to call the fleet; it stands in the certificate
        #[arg(long, default_value = "emberbox")]
        name: String,
        /// Print what was made as JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a line of text with which a machine can join, where the certificate authority is
    #[command(after_help = "\
Examples:
  emberbox fleet token --roles worker --address 10.0.0.1:4570
  emberbox fleet token --roles frontend,worker-manager,placement,pollers --address ca.example.org:4570
  emberbox fleet token --roles worker --uses 20 --expires 1d --address [fd00::1]:4570

The token goes to stdout, all else to stderr. It is a secret: whoever has it can join, as often as
--uses says. Only a hash of it is kept here. The newcomer believes the server with this authority
alone, wherever the address leads.")]
    Token {
        /// What may be joined as, with commas between: frontend, worker-manager, placement, pollers, worker
        #[arg(long, value_parser = parse_roles)]
        roles: Roles,
        /// Where newcomers reach `emberbox fleet serve-join`
        #[arg(long, value_name = "HOST:PORT")]
        address: Address,
        /// How long it is good: 90s, 15m, 2h, 7d; at most 30d
        #[arg(long, default_value = "1h", value_parser = parse_duration)]
        expires: Duration,
        /// How many may join with it
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        uses: u32,
        /// Where the certificate authority is [default: fleet-ca in the data directory]
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        dir: Option<PathBuf>,
        /// Print the token with its roles and end as JSON
        #[arg(long)]
        json: bool,
    },
    /// Join a fleet: make a key here, and have it certified
    #[command(after_help = "\
Examples:
  emberbox fleet join emberbox-join-1.…
  emberbox fleet join - --id worker-7 < token     not on the command line, where other users see it
  emberbox fleet join - --host 10.0.0.7 --host worker-7.example.org

Written are ca.pem, member.pem, fleet.json, and member.key with mode 0600. The secret in the token is
sent only to a server that has proved to belong to this fleet. Where the answer was lost on the way,
make another token.")]
    Join {
        /// The line that `emberbox fleet token` printed, or - for stdin
        token: String,
        /// This machine's name, its own in the fleet [default: its host name and some random digits]
        #[arg(long)]
        id: Option<MemberId>,
        /// Some of the token's roles, with commas between [default: all of them]
        #[arg(long, value_parser = parse_roles)]
        roles: Option<Roles>,
        /// Name or address by which others reach this machine, as often as needed [default: the address that it reaches the join server from]
        #[arg(long, value_name = "HOST")]
        host: Vec<Host>,
        /// Where to [default: fleet in the data directory]
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        dir: Option<PathBuf>,
        /// Print who this machine is now as JSON
        #[arg(long)]
        json: bool,
    },
    /// Get a new certificate with the one that is there, if two thirds of its life are over
    #[command(after_help = "\
Run it every hour or so. A certificate that has ended cannot be renewed; a member that was denied
gets no other.")]
    Renew {
        /// Renew it even if it is not due
        #[arg(long)]
        force: bool,
        /// Where the member's files are [default: fleet in the data directory]
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        dir: Option<PathBuf>,
        /// Print what was done as JSON
        #[arg(long)]
        json: bool,
    },
    /// Shut a member out, where the certificate authority is: it gets no other certificate, and the others refuse the one that it has
    Deny {
        /// Its name
        id: MemberId,
        /// Where the certificate authority is [default: fleet-ca in the data directory]
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        dir: Option<PathBuf>,
    },
    /// Not in this build, nor `cordon`, `uncordon` and `drain`
    #[cfg(not(feature = "cluster"))]
    #[command(hide = true, aliases = ["cordon", "uncordon", "drain"])]
    Status {
        /// Whatever a build with fleets takes
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        _rest: Vec<String>,
    },
    /// Show who is in the fleet, and how it is: members, sandboxes, load, events that wait
    #[cfg(feature = "cluster")]
    #[command(after_help = "\
Examples:
  emberbox fleet status --config /etc/emberbox/emberbox.toml
  emberbox fleet status --config emberbox.toml --watch
  emberbox fleet status --database postgres://emberbox@db/emberbox --tls /var/lib/emberbox/fleet --json

The members are those in the database; each is then asked how it is, with the certificate that this machine has, whatever its role;
what waits in the event queue is told to frontends and pollers only. Who does not answer is shown as such. Sandboxes are as the workers see them.")]
    Status {
        #[command(flatten)]
        place: FleetPlace,
        /// Look again every second, until Ctrl-C
        #[arg(long)]
        watch: bool,
        /// Print one line of JSON each time
        #[arg(long)]
        json: bool,
    },
    /// Let a worker take no new sandboxes; those that it has serve on
    #[cfg(feature = "cluster")]
    #[command(after_help = ORDERS)]
    Cordon {
        /// The worker's name, as `emberbox fleet status` shows it
        id: String,
        #[command(flatten)]
        place: FleetPlace,
    },
    /// Let a worker take new sandboxes again, after `cordon` or `drain`
    #[cfg(feature = "cluster")]
    #[command(after_help = ORDERS)]
    Uncordon {
        /// The worker's name
        id: String,
        #[command(flatten)]
        place: FleetPlace,
    },
    /// Let a worker take no new sandboxes, end those that are idle and finish what runs
    #[cfg(feature = "cluster")]
    #[command(after_help = ORDERS)]
    Drain {
        /// The worker's name
        id: String,
        #[command(flatten)]
        place: FleetPlace,
    },
    /// Let newcomers join and members renew, where the certificate authority is
    #[command(after_help = "\
Examples:
  emberbox fleet serve-join
  emberbox fleet serve-join --listen 10.0.0.1:4570 --life 7d

Whoever can reach it can ask, and gets nothing without a token. Stop it with Ctrl-C.")]
    ServeJoin {
        /// Address and port; port 0 takes a free one
        #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:4570")]
        listen: SocketAddr,
        /// How long members' certificates are good: they are renewed when two thirds of that are over
        #[arg(long, default_value = "30d", value_parser = parse_duration)]
        life: Duration,
        /// Where the certificate authority is [default: fleet-ca in the data directory]
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        dir: Option<PathBuf>,
    },
}
