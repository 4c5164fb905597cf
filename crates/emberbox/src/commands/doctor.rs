//! `emberbox doctor`: what this host can do, what is missing, how to get it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use runtimes::{RuntimeState, RuntimeStatus};
use serde::Serialize;

use super::{print_json, runtime};
use crate::cli::{Doctor, Local};
use crate::config::{Config, Network};
use crate::serve::isolation;
use crate::ui;

/// How a finding is to be taken.
#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// There.
    Ok,
    /// Missing, and something works less well or not at all without it.
    Warning,
    /// Missing, and Emberbox cannot run functions without it.
    Missing,
    /// Missing, and not needed.
    Optional,
}

/// One thing that was looked at.
#[derive(Serialize, Debug)]
pub struct Finding {
    /// Heading.
    pub area: &'static str,
    /// What was looked at.
    pub name: String,
    /// How it is.
    pub status: Status,
    /// What was found.
    pub detail: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    fn ok(area: &'static str, name: &str, detail: impl Into<String>) -> Self {
        Self { area, name: name.to_owned(), status: Status::Ok, detail: detail.into(), remedy: None }
    }

    fn not(
        area: &'static str,
        name: &str,
        status: Status,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { area, name: name.to_owned(), status, detail: detail.into(), remedy: Some(remedy.into()) }
    }
}

/// `emberbox doctor`; the exit code is 1 when functions cannot run here.
pub fn run(args: Doctor) -> Result<ExitCode> {
    let (config, dir) = args.local.open()?;
    let mut findings = system();
    findings.extend(process_sandbox(&config));
    findings.extend(runtimes(&args.local)?);
    findings.extend(microvm(&config, &dir)?);
    if args.json {
        print_json(&findings)?;
    } else {
        super::print(report(&findings).as_bytes())?;
    }
    let unusable = findings.iter().any(|f| f.status == Status::Missing);
    Ok(if unusable { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn report(findings: &[Finding]) -> String {
    let mut out = String::new();
    let mut area = "";
    for finding in findings {
        if finding.area != area {
            area = finding.area;
            out.push_str(&format!("{}{}\n", if out.is_empty() { "" } else { "\n" }, ui::bold(area)));
        }
        let mark = match finding.status {
            Status::Ok => ui::good("ok  "),
            Status::Warning => ui::bad("lack"),
            Status::Missing => ui::bad("NONE"),
            Status::Optional => ui::dim("no  "),
        };
        out.push_str(&format!("  {mark} {:<16} {}\n", finding.name, ui::wrap(&finding.detail, 24)));
        if let Some(remedy) = finding.remedy.as_ref().filter(|_| area != RUNTIMES) {
            out.push_str(&format!("{:<24}→ {}\n", "", ui::wrap(remedy, 26)));
        }
    }
    let count = |status| findings.iter().filter(|f| f.status == status).count();
    let summary = match (count(Status::Missing), count(Status::Warning)) {
        (0, 0) => ui::good("This host can do everything that Emberbox needs."),
        (0, lacks) => {
            format!("Functions run here; {lacks} thing{} could be better (lack).", if lacks == 1 { "" } else { "s" })
        }
        (none, _) => ui::bad(&format!(
            "Functions cannot run here: {none} thing{} missing (NONE).",
            if none == 1 { " is" } else { "s are" }
        )),
    };
    format!("{out}\n{summary}\n")
}

fn system() -> Vec<Finding> {
    let kernel = rustix::system::uname();
    let release = kernel.release().to_string_lossy().into_owned();
    let number: Vec<u32> = release.split(['.', '-']).map_while(|part| part.parse().ok()).take(2).collect();
    let new_enough = number.as_slice() >= [5, 14].as_slice();
    let kernel = if new_enough {
        Finding::ok("Host", "kernel", format!("Linux {release}"))
    } else {
        Finding::not("Host", "kernel", Status::Missing, format!("Linux {release}"), "Linux 5.14 or newer is needed")
    };
    vec![kernel]
}

/// What the process sandbox can and cannot do here.
fn process_sandbox(config: &Config) -> Vec<Finding> {
    let network = config.sandbox.network != Network::None;
    let report = sandbox::process::probe();
    let finding = |found: &sandbox::process::Finding| {
        if found.ok {
            return Finding::ok("Sandbox", found.name, &found.detail);
        }
        let status = match found.name {
            "user namespaces" | "seccomp" => Status::Missing,
            // `serve` would not start.
            "nft" if report.root && network => Status::Missing,
            "nft" | "veth" | "pasta" if !network => Status::Optional,
            "pasta" if report.root => Status::Optional,
            "veth" if !report.root => Status::Optional,
            "/dev/kvm" => Status::Optional,
            _ => Status::Warning,
        };
        Finding::not("Sandbox", found.name, status, &found.detail, found.advice)
    };
    report.findings.iter().map(finding).collect()
}

/// The area whose many remedies `emberbox runtime list` shows better.
const RUNTIMES: &str = "Runtimes";

/// Languages.
fn runtimes(local: &Local) -> Result<Vec<Finding>> {
    let finding = |status: RuntimeStatus| match &status.state {
        RuntimeState::Ready => Finding::ok(
            RUNTIMES,
            &status.name,
            format!("ready {}", status.version.clone().unwrap_or_default()).trim_end().to_owned(),
        ),
        RuntimeState::Installable { interpreter } => {
            Finding::ok(RUNTIMES, &status.name, format!("on first use, from {}", interpreter.display()))
        }
        RuntimeState::Missing { hint } => Finding::not(
            RUNTIMES,
            &status.name,
            Status::Optional,
            "not here; `emberbox runtime list` says how to get it",
            hint,
        ),
    };
    Ok(runtime::open(local)?.list().into_iter().map(finding).collect())
}

/// Whether functions can run in virtual machines here: one is booted, which takes seconds at most.
fn microvm(config: &Config, dir: &Path) -> Result<Vec<Finding>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let remedy = "needed for isolation = \"microvm\" only. One engine is enough. What it lacks is named above, with where that comes \
                  from; if it lacks nothing and yet does not boot, KVM cannot run a guest on this host: switch virtualisation on in its firmware, or, if it is a \
                  virtual machine itself, take one with nested virtualisation. accel = \"tcg\" in [microvm] needs no KVM, and \
                  is slow: for tests";
    let trial = match runtime.block_on(isolation::verdict(config, dir)) {
        Ok(verdict) => Finding::ok("MicroVM", "trial boot", verdict.words),
        Err(error) => Finding::not("MicroVM", "trial boot", Status::Optional, format!("{error:#}"), remedy),
    };
    let programs = [("firecracker", &config.microvm.firecracker), ("jailer", &config.microvm.jailer)];
    let programs = programs.map(|(program, given)| runtime.block_on(firecracker(program, given.clone())));
    Ok([trial].into_iter().chain(programs).collect())
}

/// One of Firecracker's two programs.
#[cfg(feature = "microvm")]
async fn firecracker(program: &str, given: Option<PathBuf>) -> Finding {
    use firecracker::Version;

    let remedy = format!(
        "what microVMs run on best; without it they run on QEMU. Firecracker {} or newer, for {}, is one archive with both \
         programs: https://github.com/firecracker-microvm/firecracker/releases; unpack them into /usr/local/bin as firecracker \
         and jailer",
        Version::MINIMUM,
        std::env::consts::ARCH,
    );
    let not = |detail: String| Finding::not("MicroVM", program, Status::Optional, detail, remedy.clone());
    let Some(path) = given.or_else(|| crate::host::find(program)) else { return not("not installed".to_owned()) };
    match Version::of(&path).await {
        Ok(version) if !crate::host::is_root() => {
            let detail = format!("{version} ({}), which takes root, and this is not root", path.display());
            Finding::not(
                "MicroVM",
                program,
                Status::Optional,
                detail,
                "run Emberbox as root; or leave microVMs to QEMU",
            )
        }
        Ok(version) => Finding::ok("MicroVM", program, format!("{version} ({})", path.display())),
        Err(error) => not(error.to_string()),
    }
}

/// As above, in a build without microVMs.
#[cfg(not(feature = "microvm"))]
async fn firecracker(program: &str, _: Option<PathBuf>) -> Finding {
    let remedy = "build Emberbox with the cargo feature `microvm`";
    Finding::not("MicroVM", program, Status::Optional, "this build of Emberbox has no microVMs", remedy)
}
