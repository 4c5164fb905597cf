//! `emberbox demo`: set-up and the main job, with a server of its own. It calls the same commands that a user would type.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use clap::Parser;
use lambda_api::types::InvocationRequest;
use runtimes::RuntimeState;

use super::runtime::{self, Shown};
use super::{deploy, invoke, logs};
use crate::cli::{Cli, Command, Demo, Local};
use crate::client::{Client, Target};
use crate::config::Config;
use crate::data_dir;
use crate::host;
use crate::serve::Emberbox;
use crate::timeline;
use crate::ui;

const SHELL: &str = include_str!("../../../../examples/shell/bootstrap");
const PYTHON: &str = include_str!("../../../../examples/hello/lambda_function.py");

/// How many warm invocations are timed.
const WARM: usize = 200;

/// `emberbox demo`
pub fn run(args: Demo) -> Result<ExitCode> {
    say(&ui::bold("Emberbox demo: a server of its own on a free port; it removes what it makes."));
    set_up(args.no_install)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the async runtime")?;
    runtime.block_on(with_server())
}

/// What a fresh machine may lack. Functions run without it, but less well.
fn set_up(no_install: bool) -> Result<()> {
    let missing = host::missing_tools();
    if missing.is_empty() {
        return Ok(());
    }
    for tool in &missing {
        say(&format!("Missing here: {} (package {}), for: {}.", tool.program, tool.package, tool.purpose));
    }
    let packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    let command = host::install_command(&packages);
    if no_install || !host::is_root() || host::find("apt-get").is_none() {
        say(&format!("It goes on without. To get it: {command}\n"));
        return Ok(());
    }
    let spinner = ui::spinner(&format!("apt-get install {}", packages.join(" ")));
    say(&format!("Installing with apt-get: {}.\n", packages.join(", ")));
    let result = host::apt_install(&packages);
    spinner.finish_and_clear();
    if let Err(error) = result {
        say(&format!("{}. It goes on without.\n", ui::explain(&error)));
    }
    Ok(())
}

async fn with_server() -> Result<ExitCode> {
    let directory = tempfile::Builder::new().prefix("emberbox-demo-").tempdir().context("make a data directory")?;
    let (data, samples) = (directory.path().join("data"), directory.path().join("samples"));
    // Set-up rather than the demo's data: `emberbox serve` finds them as well.
    data_dir::share_runtimes(&data_dir::default_dir()?, &data)?;
    let config = Config { listen: ([127, 0, 0, 1], 0).into(), data_dir: Some(data.clone()), ..Config::default() };
    heading("Start the server");
    let started = Instant::now();
    let server = Emberbox::start(config).await?;
    say(&format!("Ready after {} ms at {}", started.elapsed().as_millis(), server.endpoint()));
    let result = tokio::select! {
        result = tour(&server, &data, &samples) => result,
        _ = tokio::signal::ctrl_c() => Err(anyhow!("interrupted")),
    };
    server.stop(std::future::pending()).await;
    directory.close().context("remove the demo's data directory")?;
    result?;
    heading("Stop");
    say("The server is gone, and with it every sandbox and the demo's data.");
    heading("Your turn");
    say("  emberbox serve                                 in one terminal, in another:");
    say("  emberbox deploy examples/hello --name hello");
    say("  emberbox invoke hello '{\"name\":\"you\"}' --tail --timeline");
    Ok(ExitCode::SUCCESS)
}

/// Does what a user would do, and shows the commands.
async fn tour(server: &Emberbox, data: &Path, samples: &Path) -> Result<()> {
    let client = Client::to(Target::unsigned(server.endpoint())?)?;
    for (name, text) in [("bash/bootstrap", SHELL), ("hello/lambda_function.py", PYTHON)] {
        let path = samples.join(name);
        fs::create_dir_all(path.parent().expect("samples have a folder")).context("make the samples' folder")?;
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    let typed = Typed { client: &client, samples };

    let sample = match prepare_python(data).await {
        Ok(runtime) => {
            heading("Deploy a Python function");
            typed.run(&format!("deploy hello --name hello --memory 512 --runtime {runtime}")).await?;
            "hello"
        }
        Err(error) => {
            say(&format!("\nPython is left out: {}", ui::explain(&error)));
            heading("Deploy a function: a shell script");
            typed.run("deploy bash --name hello --memory 512").await?;
            "bash"
        }
    };
    heading("Invoke it: a cold start, as there is no sandbox yet");
    typed.run(INVOKE).await?;
    heading("Invoke it again: warm, the same sandbox serves it");
    typed.run(INVOKE).await?;
    heading(&format!("{WARM} more warm invocations, one after the other"));
    say(&measure(&client).await?);
    if sample != "bash" {
        heading("A shell script is a function as well");
        typed.run("deploy bash --name bash").await?;
        typed.run("invoke bash [1,2,3]").await?;
    }
    heading("What the first two invocations logged");
    let log = logs::recent(&client, "hello", Duration::from_secs(600)).await?;
    for report in log.lines().filter(|line| line.starts_with("REPORT")).take(2) {
        say(&format!("REPORT  {}", short_report(report)));
    }
    Ok(())
}

/// Without the request id, which is long and random, and without what was configured.
fn short_report(line: &str) -> String {
    let telling =
        |field: &&str| ["Duration", "Init Duration", "Max Memory Used"].iter().any(|name| field.starts_with(name));
    line.split('\t').filter(telling).collect::<Vec<_>>().join(", ")
}

/// Installs the newest Python runtime that this host can have, if that was not done before.
async fn prepare_python(data: &Path) -> Result<String> {
    let runtimes = runtime::open(&Local { data_dir: Some(data.to_owned()), config: None })?;
    let Some(newest) = runtime::newest(&runtimes, "python") else {
        bail!("there is no Python that Lambda knows on this host; `emberbox doctor` says how to get one");
    };
    if newest.state != RuntimeState::Ready {
        heading(&format!("Install AWS's runtime client for {} (once)", newest.name));
    }
    runtimes.ensure(&newest.name, &Shown::new()).await?;
    Ok(newest.name)
}

/// Commands as a user types them, with paths relative to the samples.
struct Typed<'a> {
    client: &'a Client,
    samples: &'a Path,
}

const INVOKE: &str = r#"invoke hello {"name":"Ada"} --timeline"#;

impl Typed<'_> {
    /// Shows the command and does it. No argument of these commands has a space.
    async fn run(&self, line: &str) -> Result<()> {
        let shown: Vec<String> = line
            .split(' ')
            .map(|word| if word.starts_with(['{', '[']) { format!("'{word}'") } else { word.into() })
            .collect();
        say(&ui::dim(&format!("$ emberbox {}", shown.join(" "))));
        let cli =
            Cli::try_parse_from(std::iter::once("emberbox").chain(line.split(' '))).context("a command of the demo")?;
        let code = match cli.command {
            Command::Deploy(mut args) => {
                args.path = args.path.map(|path| self.samples.join(path));
                deploy::run(self.client, args).await?
            }
            Command::Invoke(args) => invoke::run(self.client, args).await?,
            _ => ExitCode::SUCCESS,
        };
        if code == ExitCode::SUCCESS { Ok(()) } else { bail!("`emberbox {line}` failed") }
    }
}

/// Times warm invocations, over one connection.
async fn measure(client: &Client) -> Result<String> {
    let mut times = Vec::with_capacity(WARM);
    for _ in 0..WARM {
        let input = InvocationRequest {
            function_name: "hello".into(),
            payload: Some(Bytes::from_static(b"{\"name\":\"Ada\"}")),
            ..Default::default()
        };
        let started = Instant::now();
        let answer = invoke::call(client, input, false).await?;
        times.push(started.elapsed());
        if let Some(error) = answer.function_error {
            bail!("an invocation failed ({error}): {}", String::from_utf8_lossy(&answer.payload));
        }
    }
    times.sort_unstable();
    let at = |share: f64| {
        timeline::show(u64::try_from(times[(share * (WARM - 1) as f64) as usize].as_micros()).unwrap_or(u64::MAX))
    };
    Ok(format!("median {}, slowest of a hundred {} (request to answer, seen by the client)", at(0.5), at(0.99)))
}

fn heading(text: &str) {
    say(&format!("\n{}", ui::bold(text)));
}

fn say(text: &str) {
    println!("{text}");
}
