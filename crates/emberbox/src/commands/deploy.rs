//! `emberbox deploy`: makes the package, says what it guessed, creates or updates the function, waits until it is usable.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use bytes::Bytes;
use lambda_api::operations::{
    CreateFunction, GetFunctionConfiguration, UpdateFunctionCode, UpdateFunctionConfiguration,
};
use lambda_api::types::{
    CreateFunctionRequest, Environment, FunctionCode, FunctionConfiguration, GetFunctionConfigurationRequest,
    PackageType, UpdateFunctionCodeRequest, UpdateFunctionConfigurationRequest,
};

use super::{print, print_json, runtime};
use crate::cli::{Deploy, Local};
use crate::client::{ApiError, Client};
use crate::package::{self, Contents, File, Guess, Language, Package};
use crate::ui;
use crate::units::show_size;

/// How long to wait for a function to become usable; a runtime may have to be installed first.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often to ask.
const POLL: Duration = Duration::from_millis(50);
/// Only AWS itself looks at the role; there it has to be given.
const NO_ROLE: &str = "arn:aws:iam::000000000000:role/emberbox";

/// Runtime and handler, and what to tell the user about them.
#[derive(Debug, PartialEq, Eq)]
struct Choice {
    runtime: String,
    handler: String,
    note: Option<String>,
}

/// What an existing function has.
#[derive(Debug, Clone, Copy)]
struct Current<'a> {
    runtime: &'a str,
    /// Only if the new package still has the file that it names.
    handler: Option<&'a str>,
}

/// `emberbox deploy`
pub async fn run(client: &Client, args: Deploy) -> Result<ExitCode> {
    if let Some(uri) = image(&args)? {
        return deploy_image(client, &args, &uri).await;
    }
    let package = package::read(path(&args))?;
    let existing = configuration(client, &args.name).await?;
    let current = existing.as_ref().and_then(|c| c.runtime.as_ref()).map(ToString::to_string);
    let guessed = package::guess(&package, args.runtime.as_deref().and_then(Language::of_runtime));
    let handler = existing.as_ref().and_then(|c| c.handler.as_deref()).filter(|handler| has_handler(&package, handler));
    let current = current.as_deref().map(|runtime| Current { runtime, handler });
    let choice = choose(&args, guessed, current, newest_runtime)?;
    if let Some(note) = &choice.note {
        eprintln!("{note}");
    }
    let package = with_requirements(package, &args, &choice.runtime)?;
    let zip = pack(package)?;
    let done = match existing {
        None => create(client, &args, &choice, zip).await?,
        Some(existing) => update(client, &args, &choice, &existing, zip).await?,
    };
    show(&args, done)
}

fn show(args: &Deploy, done: FunctionConfiguration) -> Result<ExitCode> {
    if args.json {
        print_json(&done)?;
    } else {
        let arn = done.function_arn.unwrap_or_default();
        print(format!("{arn}\n").as_bytes())?;
        eprintln!("Invoke it: {}", ui::bold(&format!("emberbox invoke {} '{{\"key\": \"value\"}}' --tail", args.name)));
    }
    Ok(ExitCode::SUCCESS)
}

/// Of what is no image: the command line has one of the two.
fn path(args: &Deploy) -> &Path {
    args.path.as_deref().unwrap_or_else(|| Path::new(""))
}

/// The container image that is meant, if one is: what is here is a path, whatever else its name could be.
fn image(args: &Deploy) -> Result<Option<String>> {
    if args.image.is_some() {
        return Ok(args.image.clone());
    }
    let Some(path) = args.path.as_ref().filter(|path| !path.exists()) else { return Ok(None) };
    let Some(name) = path.to_str().filter(|name| is_image(name)) else { return Ok(None) };
    if args.runtime.is_some() || args.handler.is_some() {
        bail!("{name} is a container image, which has no --runtime and no --handler: its entry point is in the image");
    }
    Ok(Some(name.to_owned()))
}

/// Whether it names an image of a registry. That a file is meant which is not there is likelier where it looks like one of
/// ours.
fn is_image(name: &str) -> bool {
    images::oci::is_remote(name) && ![".zip", ".py", ".js", ".mjs"].iter().any(|end| name.ends_with(end))
}

async fn deploy_image(client: &Client, args: &Deploy, uri: &str) -> Result<ExitCode> {
    let existing = configuration(client, &args.name).await?;
    let name = args.name.clone();
    let done = match existing {
        None => {
            let request = CreateFunctionRequest {
                function_name: name,
                package_type: Some(PackageType::Image),
                role: args.role.clone().unwrap_or_else(|| NO_ROLE.to_owned()),
                code: FunctionCode { image_uri: Some(uri.to_owned()), ..Default::default() },
                memory_size: args.memory,
                timeout: args.timeout,
                environment: environment(&args.env),
                ..Default::default()
            };
            client.call::<CreateFunction>(&request).await?;
            let done = settled(client, &args.name).await?;
            eprintln!("Created {}.", args.name);
            done
        }
        Some(existing) => {
            let request = UpdateFunctionCodeRequest {
                function_name: name,
                image_uri: Some(uri.to_owned()),
                ..Default::default()
            };
            let code = client.call::<UpdateFunctionCode>(&request).await?;
            let done = settled(client, &args.name).await?;
            let done = configure(client, args, None, &existing).await?.unwrap_or(done);
            updated(args, code.code_sha256 == existing.code_sha256);
            done
        }
    };
    show(args, done)
}

/// Changes what the command line asks to be another; none if there is nothing.
async fn configure(
    client: &Client,
    args: &Deploy,
    choice: Option<&Choice>,
    existing: &FunctionConfiguration,
) -> Result<Option<FunctionConfiguration>> {
    let runtime = existing.runtime.as_ref().map(ToString::to_string);
    let changed = |new: Option<i32>, old: Option<i32>| new.filter(|new| Some(*new) != old);
    let request = UpdateFunctionConfigurationRequest {
        function_name: args.name.clone(),
        runtime: choice.map(|c| &c.runtime).filter(|new| runtime.as_ref() != Some(new)).map(|new| new.as_str().into()),
        handler: choice.map(|c| &c.handler).filter(|new| existing.handler.as_ref() != Some(new)).cloned(),
        memory_size: changed(args.memory, existing.memory_size),
        timeout: changed(args.timeout, existing.timeout),
        environment: environment(&args.env),
        role: args.role.clone().filter(|role| existing.role.as_ref() != Some(role)),
        ..Default::default()
    };
    let untouched = UpdateFunctionConfigurationRequest { function_name: args.name.clone(), ..Default::default() };
    if request == untouched {
        return Ok(None);
    }
    client.call::<UpdateFunctionConfiguration>(&request).await?;
    settled(client, &args.name).await.map(Some)
}

fn updated(args: &Deploy, same_code: bool) {
    eprintln!("Updated {}{}.", args.name, if same_code { " (its code is the same as before)" } else { "" });
}

/// The function's configuration, if it exists.
async fn configuration(client: &Client, name: &str) -> Result<Option<FunctionConfiguration>> {
    let request = GetFunctionConfigurationRequest { function_name: name.to_owned(), ..Default::default() };
    match client.call::<GetFunctionConfiguration>(&request).await {
        Ok(configuration) => Ok(Some(configuration)),
        Err(error) if error.downcast_ref::<ApiError>().is_some_and(|e| e.status == 404) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a package has the file that a handler such as `app.run` or `lib/app.run` names.
fn has_handler(package: &dyn Contents, handler: &str) -> bool {
    let names = package.names();
    let Some((module, _)) = handler.rsplit_once('.') else { return names.iter().any(|name| name == handler) };
    let module = module.replace('.', "/");
    let sources = ["py", "mjs", "js", "cjs"];
    names.iter().any(|name| name.rsplit_once('.').is_some_and(|(stem, end)| stem == module && sources.contains(&end)))
}

/// What the user said wins; then what an existing function has, as long as it still fits the package; then what was guessed.
fn choose(
    args: &Deploy,
    guessed: Option<Guess>,
    current: Option<Current<'_>>,
    newest: impl Fn(Language) -> Result<String>,
) -> Result<Choice> {
    let given = args.runtime.as_deref();
    let same = |runtime: &str, current: &str| Language::of_runtime(runtime) == Language::of_runtime(current);
    let kept = current.filter(|c| given.is_none_or(|given| same(given, c.runtime))).and_then(|c| c.handler);
    let current = current.map(|c| c.runtime);
    let language = given.and_then(Language::of_runtime).or_else(|| guessed.as_ref().map(|g| g.language));
    let runtime = match (given, current, &guessed) {
        (Some(runtime), ..) => runtime.to_owned(),
        (None, Some(current), None) => current.to_owned(),
        (None, Some(current), Some(_)) if kept.is_some() => current.to_owned(),
        (None, Some(current), Some(guess)) if Language::of_runtime(current) == Some(guess.language) => {
            current.to_owned()
        }
        (None, _, Some(guess)) => newest(guess.language)?,
        (None, None, None) => bail!(
            "cannot guess the runtime of {}: at its top there is no `bootstrap`, no Python file with `def handler(event, context)`, \
             and no index.js or index.mjs that exports `handler`. Say it with --runtime and --handler",
            path(args).display()
        ),
    };
    let handler = match (&args.handler, &guessed) {
        (Some(handler), _) => handler.clone(),
        (None, _) if let Some(kept) = kept => kept.to_owned(),
        (None, Some(guess)) => guess.handler.clone(),
        (None, None) if language == Some(Language::Custom) => "bootstrap".to_owned(),
        (None, None) => bail!(
            "cannot guess the handler: found no function `handler` at the top of {}. Say it with --handler file.function",
            path(args).display()
        ),
    };
    let guesses = [
        (given.is_none() && current != Some(&runtime)).then(|| format!("runtime {runtime}")),
        (args.handler.is_none() && kept.is_none()).then(|| format!("handler {handler}")),
    ];
    let guesses: Vec<String> = guesses.into_iter().flatten().collect();
    let note = guessed
        .filter(|_| !guesses.is_empty())
        .map(|guess| format!("Guessed {}, because {}.", guesses.join(" and "), guess.because));
    Ok(Choice { runtime, handler, note })
}

/// The newest runtime of a language that this machine has; a server elsewhere may have others.
fn newest_runtime(language: Language) -> Result<String> {
    let (prefix, default) = match language {
        Language::Custom => return Ok("provided.al2023".to_owned()),
        Language::Python => ("python", "python3.13"),
        Language::Node => ("nodejs", "nodejs22.x"),
    };
    Ok(runtime::newest(&runtime::open(&Local::default())?, prefix)
        .map_or_else(|| default.to_owned(), |status| status.name))
}

/// Adds what requirements.txt asks for, unless the user did so already.
fn with_requirements(package: Package, args: &Deploy, runtime: &str) -> Result<Package> {
    let Package::Files(mut files) = package else { return Ok(package) };
    let installed = files.keys().any(|name| name.split('/').next().is_some_and(|top| top.ends_with(".dist-info")));
    let wanted = files.contains_key("requirements.txt") && Language::of_runtime(runtime) == Some(Language::Python);
    if wanted && !installed && !args.no_install {
        let spinner = ui::spinner("installing what requirements.txt asks for");
        let added = package::install_requirements(path(args), runtime)?;
        spinner.finish_and_clear();
        eprintln!("Added with pip, as requirements.txt asks: {}.", installed_packages(&added).join(", "));
        let own = std::mem::take(&mut files);
        files = added;
        files.extend(own);
    }
    let unresolved = files.contains_key("package.json") && !files.keys().any(|name| name.starts_with("node_modules/"));
    let dependencies = files.get("package.json").is_some_and(|file| {
        let json: serde_json::Value = serde_json::from_slice(&file.bytes).unwrap_or_default();
        json["dependencies"].as_object().is_some_and(|d| !d.is_empty())
    });
    if unresolved && dependencies {
        eprintln!(
            "package.json has dependencies, but there is no node_modules; `npm install` in the folder brings them."
        );
    }
    Ok(Package::Files(files))
}

/// `name-version` of what pip put there.
fn installed_packages(files: &BTreeMap<String, File>) -> Vec<&str> {
    files.keys().filter_map(|name| name.strip_suffix(".dist-info/METADATA")).collect()
}

fn pack(package: Package) -> Result<Bytes> {
    let files = package.names().len();
    let spinner = ui::spinner("packing");
    let zip = package.into_zip()?;
    spinner.finish_and_clear();
    eprintln!("Package: {files} file{}, {} zipped.", if files == 1 { "" } else { "s" }, show_size(zip.len() as u64));
    Ok(zip.into())
}

async fn create(client: &Client, args: &Deploy, choice: &Choice, zip: Bytes) -> Result<FunctionConfiguration> {
    let request = CreateFunctionRequest {
        function_name: args.name.clone(),
        runtime: Some(choice.runtime.as_str().into()),
        handler: Some(choice.handler.clone()),
        role: args.role.clone().unwrap_or_else(|| NO_ROLE.to_owned()),
        code: FunctionCode { zip_file: Some(zip.clone()), ..Default::default() },
        memory_size: args.memory,
        timeout: args.timeout,
        environment: environment(&args.env),
        ..Default::default()
    };
    let bar = ui::bytes_bar("uploading", 0);
    client.upload::<CreateFunction>(&request, &bar).await?;
    bar.finish_and_clear();
    let done = settled(client, &args.name).await?;
    eprintln!("Created {}.", args.name);
    Ok(done)
}

async fn update(
    client: &Client,
    args: &Deploy,
    choice: &Choice,
    existing: &FunctionConfiguration,
    zip: Bytes,
) -> Result<FunctionConfiguration> {
    let request =
        UpdateFunctionCodeRequest { function_name: args.name.clone(), zip_file: Some(zip), ..Default::default() };
    let bar = ui::bytes_bar("uploading", 0);
    let code = client.upload::<UpdateFunctionCode>(&request, &bar).await?;
    bar.finish_and_clear();
    let done = settled(client, &args.name).await?;
    let done = configure(client, args, Some(choice), existing).await?.unwrap_or(done);
    updated(args, code.code_sha256 == existing.code_sha256);
    Ok(done)
}

fn environment(variables: &[(String, String)]) -> Option<Environment> {
    let map: BTreeMap<String, String> = variables.iter().cloned().collect();
    (!map.is_empty()).then(|| Environment { variables: Some(map.into_iter().collect()) })
}

/// Waits until the function can be invoked and no update is under way.
async fn settled(client: &Client, name: &str) -> Result<FunctionConfiguration> {
    let spinner = ui::spinner("waiting until it can be invoked");
    let started = Instant::now();
    loop {
        let Some(now) = configuration(client, name).await? else { bail!("{name} was deleted meanwhile") };
        let state = now.state.as_ref().map(ToString::to_string);
        let last_update = now.last_update_status.as_ref().map(ToString::to_string);
        match (state.as_deref(), last_update.as_deref()) {
            (Some("Failed"), _) => bail!("{name} cannot be used: {}", now.state_reason.unwrap_or_default()),
            (_, Some("Failed")) => {
                bail!("the update of {name} failed: {}", now.last_update_status_reason.unwrap_or_default())
            }
            (Some("Active" | "Inactive"), Some("Successful") | None) => {
                spinner.finish_and_clear();
                return Ok(now);
            }
            _ if started.elapsed() > PATIENCE => {
                bail!(
                    "{name} is still not usable after {} s (state {state:?}, last update {last_update:?})",
                    PATIENCE.as_secs()
                )
            }
            _ => tokio::time::sleep(POLL).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command as CliCommand};

    fn args(more: &[&str]) -> Deploy {
        let line = ["emberbox", "deploy", "dir", "--name", "f"];
        match Cli::parse_from(line.iter().chain(more)).command {
            CliCommand::Deploy(deploy) => deploy,
            _ => unreachable!("the line says deploy"),
        }
    }

    fn python() -> Option<Guess> {
        Some(Guess {
            language: Language::Python,
            handler: "app.handler".into(),
            because: "app.py has a function `handler`".into(),
        })
    }

    fn chosen(more: &[&str], guess: Option<Guess>, runtime: Option<&str>) -> Result<(String, String)> {
        let current = runtime.map(|runtime| Current { runtime, handler: None });
        choose(&args(more), guess, current, |language| Ok(format!("newest {language:?}")))
            .map(|c| (c.runtime, c.handler))
    }

    #[test]
    fn chooses() {
        let is = |runtime: &str, handler: &str| (runtime.to_owned(), handler.to_owned());
        assert_eq!(chosen(&[], python(), None).unwrap(), is("newest Python", "app.handler"));
        assert_eq!(chosen(&[], python(), Some("python3.11")).unwrap(), is("python3.11", "app.handler"));
        assert_eq!(chosen(&[], python(), Some("nodejs20.x")).unwrap(), is("newest Python", "app.handler"));
        assert_eq!(
            chosen(&["--runtime", "python3.9"], python(), Some("python3.11")).unwrap(),
            is("python3.9", "app.handler")
        );
        assert_eq!(chosen(&["--handler", "x.y"], python(), None).unwrap(), is("newest Python", "x.y"));
        assert_eq!(chosen(&["--handler", "x.y"], None, Some("ruby3.4")).unwrap(), is("ruby3.4", "x.y"));
        assert_eq!(chosen(&["--runtime", "provided.al2023"], None, None).unwrap(), is("provided.al2023", "bootstrap"));
        assert!(chosen(&[], None, None).unwrap_err().to_string().contains("--runtime"));
        assert!(chosen(&["--runtime", "python3.12"], None, None).unwrap_err().to_string().contains("--handler"));
    }

    #[test]
    fn an_existing_function_keeps_its_handler_while_its_file_is_there() {
        let again = |more: &[&str], guess| {
            let current = Some(Current { runtime: "python3.11", handler: Some("code.run") });
            choose(&args(more), guess, current, |language| Ok(format!("newest {language:?}"))).unwrap()
        };
        let is = |choice: Choice, runtime: &str, handler: &str, said: bool| {
            assert_eq!((choice.runtime.as_str(), choice.handler.as_str()), (runtime, handler));
            assert_eq!(choice.note.is_some(), said, "{:?}", choice.note);
        };
        is(again(&[], python()), "python3.11", "code.run", false);
        is(again(&[], None), "python3.11", "code.run", false);
        is(again(&["--runtime", "python3.12"], None), "python3.12", "code.run", false);
        is(again(&["--handler", "x.y"], python()), "python3.11", "x.y", false);
        is(again(&["--runtime", "provided.al2"], None), "provided.al2", "bootstrap", false);

        let files = |names: &[&str]| {
            Package::Files(
                names.iter().map(|&name| (name.to_owned(), File { bytes: Vec::new(), executable: false })).collect(),
            )
        };
        let package = files(&["code.py", "lib/app.mjs", "bootstrap"]);
        for (handler, there) in [
            ("code.run", true),
            ("lib/app.run", true),
            ("lib.app.run", true),
            ("bootstrap", true),
            ("other.run", false),
        ] {
            assert_eq!(has_handler(&package, handler), there, "{handler}");
        }
    }

    #[test]
    fn an_image_is_known_by_its_registry() {
        for name in ["localhost:5000/app:1", "ghcr.io/a/b", "127.0.0.1:5000/a@sha256:0"] {
            assert!(is_image(name), "{name}");
        }
        for name in ["app", "./a.b/c", "../a", "dir/app", "a.b/", "v1.2/app.zip", "my.app/index.py"] {
            assert!(!is_image(name), "{name}");
        }
    }

    #[test]
    fn says_what_it_guessed_and_only_that() {
        let note = |more: &[&str]| choose(&args(more), python(), None, |_| Ok("python3.13".into())).unwrap().note;
        assert_eq!(
            note(&[]).unwrap(),
            "Guessed runtime python3.13 and handler app.handler, because app.py has a function `handler`."
        );
        assert_eq!(
            note(&["--runtime", "python3.12"]).unwrap(),
            "Guessed handler app.handler, because app.py has a function `handler`."
        );
        assert_eq!(note(&["--runtime", "python3.12", "--handler", "app.handler"]), None);
    }
}
