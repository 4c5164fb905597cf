//! `emberbox image`: what microVMs boot.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use images::kernel::{self, Built};
use images::oci::Layout;
use images::{Debian, Options, Source};
use serde_json::json;

use super::print_json;
use crate::cli::{Image, Local};
use crate::serve::isolation;
use crate::ui;

/// `emberbox image build` and `kernel`
pub fn run(command: Image) -> Result<ExitCode> {
    match command {
        Image::Build { from, output, include, json } => root(&from, include, &output, json)?,
        Image::Kernel { output, source, json, local } => kernel(output, source, json, &local)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn root(from: &str, include: Vec<String>, output: &Path, json: bool) -> Result<()> {
    let source = source(from, include)?;
    let image = shown(|step| images::build(&source, &Options::default(), output, step))?;
    let digest = image.container.map(|container| container.digest);
    if json {
        let (bytes, entries, left_out) = (image.bytes, image.entries, image.left_out);
        let sha256 = image.sha256;
        return print_json(&json!({
            "image": output, "bytes": bytes, "sha256": sha256, "entries": entries, "leftOut": left_out,
            "containerDigest": digest,
        }));
    }
    let mib = image.bytes.div_ceil(1024 * 1024);
    eprintln!("{}: {mib} MiB, {} files and directories, SHA-256 {}.", output.display(), image.entries, image.sha256);
    if let Some(digest) = digest {
        eprintln!("Of the container image {digest}.");
    }
    if image.left_out > 0 {
        eprintln!("Left out: {} devices, pipes and sockets.", image.left_out);
    }
    Ok(())
}

/// What `--from` means. A folder has to be there, so that no misspelled one is taken for something else.
fn source(from: &str, include: Vec<String>) -> Result<Source> {
    if let Some(release) = from.strip_prefix("debian:") {
        return Ok(Source::Debian(Debian { include, ..Debian::new(release) }));
    }
    if !include.is_empty() {
        bail!("--include is for debian:RELEASE; {from} is not one");
    }
    if let Some(layout) = from.strip_prefix("oci:") {
        return Ok(Source::Oci(Layout::parse(layout)));
    }
    if !Path::new(from).is_dir() {
        bail!(
            "{from} is neither a folder, nor debian:RELEASE (such as debian:bookworm), nor oci:DIR, a container image in \
             an OCI layout"
        );
    }
    Ok(Source::Directory(from.into()))
}

/// Runs it with its steps on the terminal, or as lines elsewhere.
fn shown<T, E>(work: impl FnOnce(&dyn Fn(&str)) -> Result<T, E>) -> Result<T, E> {
    let shown = ui::spinner("looking");
    let result = work(&|step| {
        shown.set_message(step.to_owned());
        if shown.is_hidden() {
            eprintln!("{step}");
        }
    });
    shown.finish_and_clear();
    result
}

fn kernel(output: Option<PathBuf>, source: Option<PathBuf>, json: bool, local: &Local) -> Result<()> {
    let output = match output {
        Some(output) => std::path::absolute(&output).with_context(|| format!("resolve {}", output.display()))?,
        None => configured(local)?,
    };
    let mut wanted = kernel::Build::new(&output);
    wanted.source = source.unwrap_or(wanted.source);
    let new = shown(|step| kernel::build(&wanted, step))? == Built::New;
    if json {
        print_json(&json!({ "kernel": output, "built": new }))?;
    } else {
        eprintln!("{} {}.", output.display(), if new { "is built" } else { "was there already, of this source" });
    }
    Ok(())
}

/// The kernel that a server with these options would boot.
fn configured(local: &Local) -> Result<PathBuf> {
    let (config, dir) = local.open()?;
    Ok(isolation::kernel(&config, &dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_says_what_it_is() {
        let debian = Debian { include: vec!["python3".into()], ..Debian::new("bookworm") };
        assert_eq!(source("debian:bookworm", vec!["python3".into()]).unwrap(), Source::Debian(debian));
        assert_eq!(source("/", Vec::new()).unwrap(), Source::Directory("/".into()));
        assert_eq!(source("oci:a:1", Vec::new()).unwrap(), Source::Oci(Layout::parse("a:1")));
        for (from, include) in [("oci:a", vec!["python3".into()]), ("/nowhere", vec![]), ("alpine:3", vec![]), ("/", vec!["python3".into()])] {
            assert!(source(from, include).unwrap_err().to_string().contains(from), "{from}");
        }
    }
}
