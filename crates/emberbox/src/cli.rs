//! The command line, as `--help` teaches it.

mod fleet;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

pub use fleet::Fleet;
#[cfg(feature = "cluster")]
pub use fleet::FleetPlace;

use crate::units::parse_duration;

const EXAMPLES: &str = "\
Try it:
  emberbox demo                                   see everything work, in a few seconds

Then, in one terminal:
  emberbox serve                                  start the server

and in another:
  emberbox deploy ./my-function --name hello      a folder, a zip or a program
  emberbox invoke hello '{\"name\": \"world\"}'
  emberbox logs hello --follow

Any AWS tool works as well:
  export AWS_ENDPOINT_URL_LAMBDA=http://127.0.0.1:4566
  aws lambda list-functions";

/// AWS Lambda on your own machines.
///
/// Code that runs on AWS Lambda runs here unchanged, each function isolated in a sandbox of its own, and the tools that
/// talk to AWS Lambda talk to Emberbox.
#[derive(Parser, Debug)]
#[command(name = "emberbox", version, after_help = EXAMPLES, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run the server
    Serve(Serve),
    /// Create or update a function from a folder, a zip, a program or a container image
    Deploy(Deploy),
    /// Run a function and print its answer
    Invoke(Invoke),
    /// Show what a function wrote, and how its invocations went
    Logs(Logs),
    /// Show how a function's queued events are doing, or run those that failed once more
    Events(Events),
    /// List the functions
    Functions(Functions),
    /// Delete a function, with all its versions and aliases
    Delete(Delete),
    /// List or install runtimes (languages) on this machine
    #[command(subcommand)]
    Runtime(Runtime),
    /// Make what microVMs boot
    #[command(subcommand)]
    Image(Image),
    /// Run a whole fleet on this machine, to try: several frontends, worker managers and workers
    #[cfg(feature = "cluster")]
    DevFleet(DevFleet),
    /// Not in this build
    #[cfg(not(feature = "cluster"))]
    #[command(hide = true)]
    DevFleet {
        /// Whatever a build with fleets takes
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        _rest: Vec<String>,
    },
    /// A fleet: how it is, its certificate authority, and machines that join
    #[command(subcommand)]
    Fleet(Fleet),
    /// Say what this machine can do, what is missing and how to get it
    Doctor(Doctor),
    /// Start Emberbox, deploy samples, invoke them cold and warm, show the timeline, clean up
    Demo(Demo),
    /// Print a completion script for your shell
    #[command(
        after_help = "For bash, now and in every new shell:\n  emberbox completions bash > /etc/bash_completion.d/emberbox"
    )]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// Which server a client command talks to, and as whom.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Which server, and as whom")]
pub struct Target {
    /// URL of the API, or `aws` for AWS Lambda itself [default: $AWS_ENDPOINT_URL_LAMBDA, $AWS_ENDPOINT_URL, or http://127.0.0.1:4566]
    #[arg(long, value_name = "URL", value_hint = ValueHint::Url)]
    pub endpoint: Option<String>,
    /// Region for signing [default: $AWS_REGION, the profile's, or us-east-1]
    #[arg(long)]
    pub region: Option<String>,
    /// Profile of ~/.aws/credentials and ~/.aws/config [default: $AWS_PROFILE or default]
    #[arg(long)]
    pub profile: Option<String>,
}

/// `emberbox serve`
#[derive(Args, Debug, Clone, Default)]
#[command(after_help = "\
Examples:
  emberbox serve
  emberbox serve --listen 127.0.0.1:0             take a free port, and print it
  emberbox serve --config emberbox.toml           see emberbox.example.toml

Stop it with Ctrl-C: running invocations finish first; a second Ctrl-C does not wait for them.

The log goes to stderr, with a line and the timeline of each invocation. EMBERBOX_LOG says what is in it, such as warn or
debug; with info, a second line of each tells what came after the answer.")]
pub struct Serve {
    /// Address and port of the API; port 0 takes a free one [default: 127.0.0.1:4566]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// Where everything is kept [default: /var/lib/emberbox for root, else ~/.local/share/emberbox]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub data_dir: Option<PathBuf>,
    /// Configuration file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// What this process does in the fleet of [cluster] in the configuration, e.g. frontend,pollers [default: as configured, or all]
    #[cfg(feature = "cluster")]
    #[arg(long, value_name = "ROLE", value_delimiter = ',')]
    pub roles: Vec<membership::Role>,
    /// Stop when standard input ends, as it does with the process that started this one
    #[arg(long, hide = true)]
    pub with_parent: bool,
}

/// `emberbox dev-fleet`
#[cfg(feature = "cluster")]
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  emberbox dev-fleet
  emberbox dev-fleet --frontends 3 --workers 5 --listen 127.0.0.1:0
  emberbox dev-fleet --database postgres://me@localhost/emberbox --data-dir ./fleet

Each process is `emberbox serve` with a configuration and a data directory of its own. They need PostgreSQL: without
--database a server is started from Debian's package postgresql. Kill any of the processes, and see what the others do.")]
pub struct DevFleet {
    /// How many frontends: they serve the API, the first at --listen, the others at the ports that follow
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    pub frontends: u16,
    /// How many worker managers
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    pub managers: u16,
    /// How many workers
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    pub workers: u16,
    /// How many processes that decide where sandboxes go; without one each manager decides itself
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub placements: u16,
    /// How many processes that take queued events
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub pollers: u16,
    /// Address and port of the first frontend; port 0 takes free ones [default: 127.0.0.1:4566]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// Where everything is kept [default: a directory that is removed in the end]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub data_dir: Option<PathBuf>,
    /// Database to use, in place of a server of the fleet's own
    #[arg(long, value_name = "URL")]
    pub database: Option<String>,
    /// Configuration that all processes have in common
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Print one line of JSON when the fleet is ready
    #[arg(long)]
    pub json: bool,
}

/// `emberbox deploy`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  emberbox deploy ./my-function --name hello
  emberbox deploy target/release/echo --name echo --memory 256
  emberbox deploy app.zip --name app --runtime python3.12 --handler app.run
  emberbox deploy . --name app --env STAGE=dev --env DEBUG=1

What is guessed: a file `bootstrap`, or a single program, runs on
provided.al2023; a Python file with a function `handler` or `lambda_handler` on
the newest Python; a JavaScript file that exports `handler` on Node.js.
A function that exists keeps its runtime and handler while the package has that
handler's file. What a requirements.txt asks for is added to the package with pip.

A container image is named in full, REGISTRY/REPOSITORY[:TAG|@DIGEST], and has
to be in that registry; the server pulls it.")]
pub struct Deploy {
    /// Folder, zip file, program, a single source file, or a container image such as localhost:5000/app:1
    #[arg(value_hint = ValueHint::AnyPath, required_unless_present = "image")]
    pub path: Option<PathBuf>,
    /// Container image, where its name could be a path's
    #[arg(long, value_name = "URI", conflicts_with_all = ["path", "runtime", "handler", "no_install"])]
    pub image: Option<String>,
    /// Name of the function; it is updated if it exists
    #[arg(long)]
    pub name: String,
    /// e.g. python3.12, nodejs22.x, provided.al2023 [default: guessed]
    #[arg(long)]
    pub runtime: Option<String>,
    /// `file.function` to call [default: guessed]
    #[arg(long)]
    pub handler: Option<String>,
    /// Memory in MB, which also sets the CPU share: 1769 MB are one CPU [default: 128]
    #[arg(long, value_name = "MB")]
    pub memory: Option<i32>,
    /// Longest run of one invocation, in seconds [default: 3]
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<i32>,
    /// Environment variable, as often as needed; if given, these replace the variables the function had
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    pub env: Vec<(String, String)>,
    /// ARN of the execution role; only AWS itself uses it
    #[arg(long, value_name = "ARN")]
    pub role: Option<String>,
    /// Leave requirements.txt alone
    #[arg(long)]
    pub no_install: bool,
    /// Print the function's configuration as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub target: Target,
}

/// `emberbox invoke`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  emberbox invoke hello '{\"name\": \"world\"}'
  emberbox invoke hello @event.json --tail        payload from a file, with the log
  echo '[1, 2]' | emberbox invoke hello -         payload from stdin
  emberbox invoke hello --timeline                where the time went

The answer goes to stdout, everything else to stderr. The exit code is 1 when the function failed.")]
pub struct Invoke {
    /// Function: a name, name:version, name:alias, or an ARN
    pub name: String,
    /// JSON, @file, or - for stdin
    #[arg(default_value = "{}", hide_default_value = true, allow_negative_numbers = true)]
    pub payload: String,
    /// Show the invocation's log (its last 4 KB)
    #[arg(long)]
    pub tail: bool,
    /// Queue the event and do not wait for the answer; with --timeline, wait for its first attempt
    #[arg(long, conflicts_with = "tail")]
    pub event: bool,
    /// Version or alias
    #[arg(long)]
    pub qualifier: Option<String>,
    /// Show step by step what happened and how long it took (Emberbox only)
    #[arg(long)]
    pub timeline: bool,
    /// Print one JSON object with the answer, status, version, log and timeline
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub target: Target,
}

/// `emberbox logs`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  emberbox logs hello                             the last hour
  emberbox logs hello --since 2d
  emberbox logs hello --follow                    and what comes, until Ctrl-C
  emberbox logs hello --json                      each event of CloudWatch Logs as one line of JSON")]
pub struct Logs {
    /// Name of the function
    pub name: String,
    /// Keep printing what is written from now on
    #[arg(long, short)]
    pub follow: bool,
    /// How far back: 90s, 15m, 2h, 7d
    #[arg(long, default_value = "1h", value_parser = parse_duration)]
    pub since: Duration,
    /// Print each event as one line of JSON, with its time and stream
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub target: Target,
}

/// `emberbox events`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  emberbox events hello                           the queue now
  emberbox events hello --follow                  and whenever it changes, until Ctrl-C
  emberbox events hello redrive                   run failed events once more

redrive takes messages out of the SQS queues that are the function's dead-letter queue and OnFailure destination, queues
the events in them again, and only then deletes the messages. If it is interrupted, what it did not finish stays in the
queue. In a dead-letter queue that several functions share, it cannot tell whose events they are.")]
pub struct Events {
    /// Name of the function
    pub name: String,
    /// What to do instead of showing the queue
    pub action: Option<EventsAction>,
    /// Keep printing whenever something changes
    #[arg(long, short, conflicts_with = "action")]
    pub follow: bool,
    /// Show the timeline of this event, with every attempt so far, instead: one that was sent with `invoke --event --timeline`
    #[arg(long, value_name = "REQUEST ID", conflicts_with_all = ["action", "follow"])]
    pub request: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Version or alias whose OnFailure destination is meant, and that the events of a dead-letter queue are for
    #[arg(long, requires = "action")]
    pub qualifier: Option<String>,
    /// URL of SQS [default: $AWS_ENDPOINT_URL_SQS, or as for Lambda]
    #[arg(long, value_name = "URL", value_hint = ValueHint::Url, requires = "action")]
    pub sqs_endpoint: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub target: Target,
}

/// Of `emberbox events`.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventsAction {
    /// Queue failed events again
    Redrive,
}

/// `emberbox functions`
#[derive(Args, Debug)]
pub struct Functions {
    /// Print them as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub target: Target,
}

/// `emberbox delete`
#[derive(Args, Debug)]
pub struct Delete {
    /// Name of the function
    pub name: String,
    /// Print what was deleted as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub target: Target,
}

/// Where the runtimes of this machine are.
#[derive(Args, Debug, Clone, Default)]
pub struct Local {
    /// Data directory of the server [default: /var/lib/emberbox for root, else ~/.local/share/emberbox]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub data_dir: Option<PathBuf>,
    /// Configuration file of the server
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
}

/// `emberbox runtime`
#[derive(Subcommand, Debug)]
pub enum Runtime {
    /// List the runtimes, and which are ready
    List {
        /// Print them as JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        #[allow(missing_docs)]
        local: Local,
    },
    /// Install a runtime now rather than on its first use
    Install {
        /// e.g. python3.12
        name: String,
        /// Print it as JSON, as `list --json` does
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        #[allow(missing_docs)]
        local: Local,
    },
}

/// `emberbox image`
#[derive(Subcommand, Debug)]
pub enum Image {
    /// Make a read-only root image (squashfs) from a folder, a Debian release or a container image: same input, same bytes
    #[command(after_help = "\
Examples:
  emberbox image build --from ./root -o root.squashfs
  emberbox image build --from debian:bookworm --include python3 -o debian.squashfs
  emberbox image build --from public.ecr.aws/lambda/python:3.12 -o python.squashfs
  emberbox image build --from oci:./layout:1.0 -o app.squashfs

Owner and time of a folder's files are left out, as are devices, pipes, sockets, setuid bits and extended attributes.
A Debian release is installed by mmdebstrap; the bytes are the same as long as Debian's packages are.

A container image comes from a registry, named in full with its tag (latest where it is missing) or digest, or from an
OCI layout, a directory that skopeo, podman and docker buildx write: oci:DIR where it holds one image, else with its tag
or digest. The image for Linux and this machine's architecture is taken, and every digest in it is checked. Registries
are asked over HTTPS and without credentials, and by plain HTTP on this machine itself. What was pulled stays in the
data directory, in oci, which is a layout as well: a digest is pulled once, a tag is asked for each time.")]
    Build {
        /// A folder, debian:RELEASE, REGISTRY/REPOSITORY[:TAG|@DIGEST], or oci:DIR[:TAG|@DIGEST]
        #[arg(long, value_name = "SOURCE")]
        from: String,
        /// The image
        #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
        output: PathBuf,
        /// Packages to install beside Debian's smallest set, with commas between
        #[arg(long, value_name = "PACKAGES", value_delimiter = ',')]
        include: Vec<String>,
        /// Print size and hash as JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        #[allow(missing_docs)]
        local: Local,
    },
    /// Build the guest kernel from Debian's kernel source; takes minutes, and nothing when it is there already
    Kernel {
        /// Where to [default: where `emberbox serve` looks for it]
        #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
        output: Option<PathBuf>,
        /// The source, a tarball of Linux 6.1 or newer [default: that of Debian's linux-source-6.1, or else the newest in /usr/src]
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        source: Option<PathBuf>,
        /// Print where it is as JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        #[allow(missing_docs)]
        local: Local,
    },
}

/// `emberbox doctor`
#[derive(Args, Debug)]
pub struct Doctor {
    /// Print the findings as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub local: Local,
}

/// `emberbox demo`
#[derive(Args, Debug)]
pub struct Demo {
    /// Install nothing; say what is missing and stop
    #[arg(long)]
    pub no_install: bool,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn payload_may_be_left_out() {
        let cli = Cli::parse_from(["emberbox", "invoke", "hello", "--tail"]);
        let Command::Invoke(invoke) = cli.command else { panic!("invoke") };
        assert_eq!((invoke.payload.as_str(), invoke.tail), ("{}", true));
        assert!(Cli::try_parse_from(["emberbox", "deploy", ".", "--name", "f", "--env", "=x"]).is_err());
    }
}
