//! `emberbox image`: what microVMs boot.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use images::kernel::{self, Built};
#[cfg(feature = "oci")]
use images::oci::Access;
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
        Image::Build { from, output, include, json, local } => root(&from, include, &output, json, &local)?,
        Image::Kernel { output, source, json, local } => kernel(output, source, json, &local)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn root(from: &str, include: Vec<String>, output: &Path, json: bool, local: &Local) -> Result<()> {
    let from = from_words(from, include)?;
    let image = shown(|step| {
        let source = from.source(local, step)?;
        images::build(&source, &Options::default(), output, step).map_err(anyhow::Error::from)
    })?;
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

/// What `--from` means.
#[derive(PartialEq, Debug)]
enum From {
    Here(Source),
    #[cfg(feature = "oci")]
    Registry(images::oci::Remote),
}

impl From {
    /// What the image is made of, on this machine.
    #[cfg_attr(not(feature = "oci"), expect(unused_variables))]
    fn source(self, local: &Local, progress: &(dyn Fn(&str) + Sync)) -> Result<Source> {
        match self {
            Self::Here(source) => Ok(source),
            #[cfg(feature = "oci")]
            Self::Registry(remote) => {
                let (_, dir) = local.open()?;
                let cache = dir.join("oci");
                let access = Access::default();
                let pull = images::oci::pull(&remote, &access, &cache, &[], Options::default().limits, progress);
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                Ok(Source::Oci(runtime.context("start the async runtime")?.block_on(pull)?))
            }
        }
    }
}

/// A folder has to be there, and a registry be named in full, so that no misspelled folder is taken for something else.
fn from_words(from: &str, include: Vec<String>) -> Result<From> {
    if let Some(release) = from.strip_prefix("debian:") {
        return Ok(From::Here(Source::Debian(Debian { include, ..Debian::new(release) })));
    }
    if !include.is_empty() {
        bail!("--include is for debian:RELEASE; {from} is not one");
    }
    if let Some(layout) = from.strip_prefix("oci:") {
        return Ok(From::Here(Source::Oci(Layout::parse(layout))));
    }
    if Path::new(from).is_dir() {
        return Ok(From::Here(Source::Directory(from.into())));
    }
    #[cfg(feature = "oci")]
    if images::oci::is_remote(from) {
        return Ok(From::Registry(images::oci::Remote::parse(from)?));
    }
    let registry = if cfg!(feature = "oci") {
        "nor REGISTRY/REPOSITORY[:TAG|@DIGEST] in full (such as docker.io/library/alpine:3)"
    } else {
        "and this Emberbox was built without its feature `oci`, which asks registries"
    };
    bail!(
        "{from} is neither a folder, nor debian:RELEASE (such as debian:bookworm), nor oci:DIR (a container image in an \
         OCI layout), {registry}"
    );
}

/// Runs it with its steps on the terminal, or as lines elsewhere.
fn shown<T, E>(work: impl FnOnce(&(dyn Fn(&str) + Sync)) -> Result<T, E>) -> Result<T, E> {
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
        let here = |from: &str, include| match from_words(from, include) {
            Ok(From::Here(source)) => source,
            other => panic!("{from}: {other:?}"),
        };
        let debian = Debian { include: vec!["python3".into()], ..Debian::new("bookworm") };
        assert_eq!(here("debian:bookworm", vec!["python3".into()]), Source::Debian(debian));
        assert_eq!(here("/", Vec::new()), Source::Directory("/".into()));
        assert_eq!(here("oci:a:1", Vec::new()), Source::Oci(Layout::parse("a:1")));
        for from in ["/nowhere", "alpine:3", "library/alpine", "./example.org/a"] {
            assert!(from_words(from, Vec::new()).unwrap_err().to_string().contains(from), "{from}");
        }
        for from in ["/", "oci:a", "example.org/a:1"] {
            assert!(from_words(from, vec!["python3".into()]).unwrap_err().to_string().contains(from), "{from}");
        }
        #[cfg(feature = "oci")]
        {
            let name = "public.ecr.aws/lambda/python:3.12";
            assert_eq!(
                from_words(name, Vec::new()).unwrap(),
                From::Registry(images::oci::Remote::parse(name).unwrap())
            );
            assert!(from_words("example.org/UPPER", Vec::new()).is_err());
        }
    }
}
