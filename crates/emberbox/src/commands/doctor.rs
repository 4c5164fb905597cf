//! `emberbox doctor`: what this host can do, what is missing, how to get it.

use std::process::{Command, ExitCode, Stdio};

use anyhow::Result;
use serde::Serialize;

use super::print_json;
use crate::cli::Doctor;
use crate::host::{self, TOOLS, User};
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
    let mut findings = system();
    findings.extend(tools());
    findings.extend(microvm());
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
        out.push_str(&format!("  {mark} {:<18} {}\n", finding.name, finding.detail));
        if let Some(remedy) = &finding.remedy {
            out.push_str(&format!("       {:<18} → {remedy}\n", ""));
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
    let user = if host::is_root() {
        Finding::ok("Host", "user", "root: every limit can be enforced")
    } else {
        Finding::not(
            "Host",
            "user",
            Status::Warning,
            "not root: some limits may not be enforced",
            "run `sudo emberbox serve`, or see Sandbox below for what is enforced without",
        )
    };
    vec![kernel, user]
}

fn tools() -> Vec<Finding> {
    let finding = |tool: host::Tool| match host::find(tool.program) {
        Some(path) => Finding::ok("Programs", tool.program, format!("{} ({})", path.display(), tool.purpose)),
        None => {
            let useful = tool.user == User::All || (tool.user == User::Root) == host::is_root();
            let status = if useful { Status::Warning } else { Status::Optional };
            Finding::not("Programs", tool.program, status, tool.purpose, host::install_command(&[tool.package]))
        }
    };
    TOOLS.into_iter().map(finding).collect()
}

/// Emberbox does not run functions in microVMs yet; this says whether the host could.
fn microvm() -> Vec<Finding> {
    let area = "MicroVM (not used yet)";
    let kvm = match std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Finding::ok(area, "KVM", "/dev/kvm is usable"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Finding::not(
            area,
            "KVM",
            Status::Optional,
            "there is no /dev/kvm",
            "a bare-metal host, or a virtual one with nested virtualization",
        ),
        Err(error) => Finding::not(
            area,
            "KVM",
            Status::Optional,
            format!("/dev/kvm: {error}"),
            "join the group kvm: `sudo usermod -aG kvm $USER`",
        ),
    };
    let program = |name: &str| match host::find(name) {
        Some(path) => {
            let output = Command::new(&path).arg("--version").stdin(Stdio::null()).output();
            let version =
                output.map(|o| String::from_utf8_lossy(&o.stdout).lines().next().unwrap_or_default().to_owned());
            Finding::ok(area, name, format!("{} {}", path.display(), version.unwrap_or_default()))
        }
        None => Finding::not(
            area,
            name,
            Status::Optional,
            "not installed",
            "from https://github.com/firecracker-microvm/firecracker/releases",
        ),
    };
    vec![kvm, program("firecracker"), program("jailer")]
}
