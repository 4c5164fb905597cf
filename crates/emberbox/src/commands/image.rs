//! `emberbox image`: what microVMs boot.

use std::process::ExitCode;

use anyhow::{Context, Result};
use images::kernel::{Build, Built, build};
use serde_json::json;

use super::print_json;
use crate::cli::{Image, Local};
use crate::config::Config;
use crate::serve::isolation;
use crate::{data_dir, ui};

/// `emberbox image kernel`
pub fn run(command: Image) -> Result<ExitCode> {
    let Image::Kernel { output, source, json, local } = command;
    let output = match output {
        Some(output) => std::path::absolute(&output).with_context(|| format!("resolve {}", output.display()))?,
        None => configured(&local)?,
    };
    let mut wanted = Build::new(&output);
    wanted.source = source.unwrap_or(wanted.source);
    let shown = ui::spinner("looking");
    let built = build(&wanted, &|step| {
        shown.set_message(step.to_owned());
        if shown.is_hidden() {
            eprintln!("{step}");
        }
    });
    shown.finish_and_clear();
    let new = built? == Built::New;
    if json {
        print_json(&json!({ "kernel": output, "built": new }))?;
    } else {
        eprintln!("{} {}.", output.display(), if new { "is built" } else { "was there already, of this source" });
    }
    Ok(ExitCode::SUCCESS)
}

/// The kernel that a server with these options would boot.
fn configured(local: &Local) -> Result<std::path::PathBuf> {
    let config = match &local.config {
        Some(path) => Config::read(path)?,
        None => Config::default(),
    };
    let dir = match local.data_dir.clone().or_else(|| config.data_dir.clone()) {
        Some(dir) => std::path::absolute(dir)?,
        None => data_dir::default_dir()?,
    };
    data_dir::make(&dir)?;
    Ok(isolation::kernel(&config, &dir))
}
