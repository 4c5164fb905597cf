//! `emberbox runtime`: the runtimes of this machine. They are files in the data directory, so this works with and
//! without a running server.

use std::process::ExitCode;

use anyhow::Result;
use indicatif::ProgressBar;
use runtimes::{Progress, RuntimeState, RuntimeStatus, Runtimes};
use serde_json::{Value, json};

use super::{client_side, print, print_json, table};
use crate::cli::{Local, Runtime};
use crate::serve::settings;
use crate::ui;

/// `emberbox runtime list` and `install`
pub fn run(command: Runtime) -> Result<ExitCode> {
    match command {
        Runtime::List { json, local } => {
            let statuses = open(&local)?.list();
            if json {
                print_json(&statuses.iter().map(status_json).collect::<Vec<_>>())?;
            } else {
                print(list(&statuses).as_bytes())?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Runtime::Install { name, json, local } => {
            let runtimes = open(&local)?;
            client_side(async {
                let shown = Shown::new();
                let image = runtimes.ensure(&name, &shown).await;
                shown.0.finish_and_clear();
                let version = image?.version.clone();
                if json {
                    print_json(&runtimes.list().iter().find(|status| status.name == name).map(status_json))?;
                } else {
                    eprintln!("{name} is ready ({version}).");
                }
                Ok(ExitCode::SUCCESS)
            })
        }
    }
}

/// The runtimes of the data directory that a server with these options would use.
pub fn open(local: &Local) -> Result<Runtimes> {
    let (config, dir) = local.open()?;
    Ok(Runtimes::open(settings::runtimes(&config, &dir))?)
}

/// The usable runtime of a language with the highest version. AWS's own names only: `python3.12`, `nodejs22.x`.
pub fn newest(runtimes: &Runtimes, prefix: &str) -> Option<RuntimeStatus> {
    let version = |status: &RuntimeStatus| -> Option<Vec<u32>> {
        let version = status.name.strip_prefix(prefix)?.trim_end_matches(".x");
        version.split('.').map(|part| part.parse().ok()).collect()
    };
    let usable = runtimes.list().into_iter().filter(|status| !matches!(status.state, RuntimeState::Missing { .. }));
    usable.filter(|status| version(status).is_some()).max_by_key(version)
}

/// One word for a state.
fn state_word(state: &RuntimeState) -> &'static str {
    match state {
        RuntimeState::Ready => "ready",
        RuntimeState::Installable { .. } => "installable",
        RuntimeState::Missing { .. } => "missing",
    }
}

fn status_json(status: &RuntimeStatus) -> Value {
    let (interpreter, hint) = match &status.state {
        RuntimeState::Ready => (None, None),
        RuntimeState::Installable { interpreter } => (Some(interpreter.display().to_string()), None),
        RuntimeState::Missing { hint } => (None, Some(hint)),
    };
    json!({
        "name": status.name,
        "state": state_word(&status.state),
        "version": status.version,
        "interpreter": interpreter,
        "packages": status.packages,
        "file": status.file,
        "hint": hint,
    })
}

fn list(statuses: &[RuntimeStatus]) -> String {
    let rows = statuses.iter().map(|status| {
        let note = match &status.state {
            RuntimeState::Ready => status.version.clone().unwrap_or_default(),
            RuntimeState::Installable { interpreter } => format!("on first use, from {}", interpreter.display()),
            RuntimeState::Missing { hint } => hint.clone(),
        };
        vec![status.name.clone(), state_word(&status.state).to_owned(), ui::wrap(&note, 30)]
    });
    table(&["RUNTIME", "STATE", ""], rows)
}

/// Shows the steps of an installation: a spinner on a terminal, lines elsewhere.
pub struct Shown(ProgressBar);

impl Shown {
    /// Begins to show.
    pub fn new() -> Self {
        Self(ui::spinner("looking"))
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

impl Progress for Shown {
    fn step(&self, what: &str) {
        self.0.set_message(what.to_owned());
        if self.0.is_hidden() {
            eprintln!("{what}");
        }
    }
}
