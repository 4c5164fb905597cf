//! What a create or an update makes of a function's settings.

use domain::{ImageConfig, LogFormat, LoggingSettings};
use lambda_api::ApiError;
use lambda_api::types::{
    Architecture, CreateFunctionRequest, Environment, ImageConfig as WireImageConfig, LogFormat as WireLogFormat,
    LoggingConfig, PackageType, SnapStart, SnapStartApplyOn, TracingMode, UpdateFunctionConfigurationRequest,
};

use crate::record::{Settings, Unknown};
use crate::rules::{environment, event_invoke, invalid, unsupported};
use crate::sealed::Variables;

const DEFAULT_TIMEOUT: u32 = 3;
const DEFAULT_MEMORY: u32 = 128;
const DEFAULT_EPHEMERAL: u32 = 512;

/// Layers that a function may have.
const MAX_LAYERS: usize = 5;

/// CreateFunction's settings, with AWS's defaults; the runtime's version ARN is filled in by the caller.
pub(crate) fn of_create(request: &CreateFunctionRequest, name: &str, region: &str) -> Result<Settings, ApiError> {
    unsupported::in_create(request)?;
    let is_image = is_image(request);
    if is_image {
        no_zip_parameters(request.runtime.is_some(), request.handler.is_some(), request.layers.as_deref())?;
    } else if request.runtime.is_none() || request.handler.is_none() {
        return Err(invalid(
            "Runtime and Handler are mandatory parameters for functions created with deployment packages.",
        ));
    }
    let image_config =
        request.image_config.as_ref().map(|config| image_config(config, is_image)).transpose()?.flatten();
    check_layers(request.layers.as_deref(), region)?;
    let default_logging = LoggingSettings {
        format: LogFormat::Text,
        application_level: None,
        system_level: None,
        group: format!("/aws/lambda/{name}"),
    };
    let settings = Settings {
        description: request.description.clone().unwrap_or_default(),
        role: request.role.clone(),
        runtime: request.runtime.as_ref().map(|runtime| runtime.as_str().to_owned()).unwrap_or_default(),
        runtime_version_arn: String::new(),
        handler: request.handler.clone().unwrap_or_default(),
        timeout: unsigned(request.timeout).unwrap_or(DEFAULT_TIMEOUT),
        memory: unsigned(request.memory_size).unwrap_or(DEFAULT_MEMORY),
        ephemeral: unsigned(request.ephemeral_storage.as_ref().map(|e| e.size)).unwrap_or(DEFAULT_EPHEMERAL),
        environment: request.environment.as_ref().map(variables).transpose()?,
        tracing_active: request.tracing_config.as_ref().is_some_and(|t| t.mode == Some(TracingMode::Active)),
        logging: logging(&default_logging, request.logging_config.as_ref())?,
        architecture: architecture(request.architectures.as_deref())?.unwrap_or_else(|| host_architecture().to_owned()),
        dead_letter: event_invoke::dead_letter(request.dead_letter_config.as_ref())?,
        image_config,
        snap_start: snap_start(request.snap_start.as_ref()).unwrap_or_default(),
        unknown: Unknown::new(),
    };
    check_snap_start(&settings, is_image)?;
    Ok(settings)
}

/// What a request says of it, if it does.
fn snap_start(config: Option<&SnapStart>) -> Option<bool> {
    config?.apply_on.as_ref().map(|on| *on == SnapStartApplyOn::PublishedVersions)
}

/// What SnapStart goes with: the runtimes that tell when they may be kept, and the smallest `/tmp`, which is kept as well
/// (AWS Lambda documentation, "SnapStart": Java 11, Python 3.12, .NET 8 and later).
fn check_snap_start(settings: &Settings, is_image: bool) -> Result<(), ApiError> {
    if !settings.snap_start {
        return Ok(());
    }
    if is_image {
        return Err(invalid("Emberbox does not support SnapStart for container images yet. Leave it out."));
    }
    let runtime = settings.runtime.as_str();
    let since = |family: &str, first: u32| {
        let version = runtime.strip_prefix(family).and_then(|version| version.parse::<u32>().ok());
        version.is_some_and(|version| version >= first)
    };
    if !(since("java", 11) || since("python3.", 12) || since("dotnet", 8)) {
        return Err(invalid(format!("{runtime} is not supported for SnapStart enabled functions.")));
    }
    if settings.ephemeral > DEFAULT_EPHEMERAL {
        return Err(invalid(format!(
            "SnapStart does not support an EphemeralStorage of more than {DEFAULT_EPHEMERAL} MB, and this function's is {} MB.",
            settings.ephemeral
        )));
    }
    Ok(())
}

/// Whether the code is to be a container image.
pub(crate) fn is_image(request: &CreateFunctionRequest) -> bool {
    request.package_type == Some(PackageType::Image)
}

fn no_zip_parameters(runtime: bool, handler: bool, layers: Option<&[String]>) -> Result<(), ApiError> {
    if runtime || handler || layers.is_some_and(|layers| !layers.is_empty()) {
        return Err(invalid(
            "Please don't provide Handler or Runtime or Layer when the intended function PackageType is Image.",
        ));
    }
    Ok(())
}

/// Empty parts leave what the image says, and an `ImageConfig` of nothing else takes back one before.
fn image_config(config: &WireImageConfig, is_image: bool) -> Result<Option<ImageConfig>, ApiError> {
    let words = |words: &Option<Vec<String>>| words.clone().filter(|words| !words.is_empty());
    let new = ImageConfig {
        entry_point: words(&config.entry_point),
        command: words(&config.command),
        working_directory: config.working_directory.clone().filter(|directory| !directory.is_empty()),
    };
    let new = Some(new).filter(|new| *new != ImageConfig::default());
    if new.is_some() && !is_image {
        return Err(invalid("Please don't provide ImageConfig when the intended function PackageType is Zip."));
    }
    let all =
        new.iter().flat_map(|new| new.entry_point.iter().chain(&new.command).flatten().chain(&new.working_directory));
    if let Some(word) = all.into_iter().find(|word| word.contains('\0')) {
        return Err(invalid(format!("ImageConfig: {word:?} has a zero byte, which no program's argument can have.")));
    }
    Ok(new)
}

/// UpdateFunctionConfiguration's settings: what the request leaves out stays.
pub(crate) fn of_update(
    old: &Settings,
    is_image: bool,
    request: &UpdateFunctionConfigurationRequest,
    region: &str,
) -> Result<Settings, ApiError> {
    unsupported::in_update(request)?;
    if is_image {
        no_zip_parameters(request.runtime.is_some(), request.handler.is_some(), request.layers.as_deref())?;
    }
    check_layers(request.layers.as_deref(), region)?;
    let mut new = old.clone();
    replace(&mut new.description, request.description.clone());
    replace(&mut new.role, request.role.clone());
    replace(&mut new.runtime, request.runtime.as_ref().map(|runtime| runtime.as_str().to_owned()));
    replace(&mut new.handler, request.handler.clone());
    replace(&mut new.timeout, unsigned(request.timeout));
    replace(&mut new.memory, unsigned(request.memory_size));
    replace(&mut new.ephemeral, unsigned(request.ephemeral_storage.as_ref().map(|e| e.size)));
    if let Some(environment) = &request.environment {
        new.environment = Some(variables(environment)?);
    }
    if let Some(mode) = request.tracing_config.as_ref().and_then(|tracing| tracing.mode.as_ref()) {
        new.tracing_active = *mode == TracingMode::Active;
    }
    if request.dead_letter_config.is_some() {
        new.dead_letter = event_invoke::dead_letter(request.dead_letter_config.as_ref())?;
    }
    if let Some(config) = &request.image_config {
        new.image_config = image_config(config, is_image)?;
    }
    new.logging = logging(&old.logging, request.logging_config.as_ref())?;
    replace(&mut new.snap_start, snap_start(request.snap_start.as_ref()));
    check_snap_start(&new, is_image)?;
    Ok(new)
}

/// The one architecture that is asked for, if it is this host's.
pub(crate) fn architecture(wanted: Option<&[Architecture]>) -> Result<Option<String>, ApiError> {
    let Some(wanted) = wanted.and_then(|list| list.first()) else { return Ok(None) };
    if wanted.as_str() == host_architecture() {
        return Ok(Some(wanted.as_str().to_owned()));
    }
    Err(invalid(format!(
        "Architecture {wanted} cannot run here: this Emberbox runs on {}. Build the code for that and set Architectures \
         to it.",
        host_architecture()
    )))
}

/// In Lambda's terms.
pub(crate) fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "arm64",
        other => other,
    }
}

/// AWS's words for a runtime that it no longer takes, if it is one.
pub(crate) fn deprecated_runtime(runtime: &str) -> Option<String> {
    const DEPRECATED: &[&str] = &[
        "dotnet5.0",
        "dotnetcore1.0",
        "dotnetcore2.0",
        "dotnetcore2.1",
        "dotnetcore3.1",
        "go1.x",
        "java8",
        "nodejs",
        "nodejs10.x",
        "nodejs12.x",
        "nodejs14.x",
        "nodejs4.3",
        "nodejs4.3-edge",
        "nodejs6.10",
        "nodejs8.10",
        "provided",
        "python2.7",
        "python3.6",
        "python3.7",
        "ruby2.5",
        "ruby2.7",
    ];
    DEPRECATED.contains(&runtime).then(|| {
        format!(
            "The runtime parameter of {runtime} is no longer supported for creating or updating AWS Lambda functions. We \
             recommend you use a supported runtime while creating or updating functions."
        )
    })
}

/// No layers can be published yet, so none that a function names exists.
fn check_layers(layers: Option<&[String]>, region: &str) -> Result<(), ApiError> {
    let layers = layers.unwrap_or_default();
    if layers.len() > MAX_LAYERS {
        return Err(invalid(format!("Cannot reference more than {MAX_LAYERS} layers.")));
    }
    let Some(first) = layers.first() else { return Ok(()) };
    // arn:aws:lambda:<region>:<account>:layer:<name>:<version>
    if layers.iter().any(|layer| layer.split(':').nth(3) != Some(region)) {
        return Err(invalid(format!(
            "Layers are not in the same region as the function. Layers are expected to be in region {region}."
        )));
    }
    Err(invalid(format!("Layer version {first} does not exist.")))
}

fn variables(environment: &Environment) -> Result<Variables, ApiError> {
    let variables = environment.variables.clone().unwrap_or_default();
    environment::check(&variables)?;
    Ok(Variables::Open(variables))
}

/// What a `LoggingConfig` leaves out stays, but levels belong to the JSON format and begin as INFO.
fn logging(old: &LoggingSettings, config: Option<&LoggingConfig>) -> Result<LoggingSettings, ApiError> {
    let Some(config) = config else { return Ok(old.clone()) };
    let format = match &config.log_format {
        Some(WireLogFormat::Json) => LogFormat::Json,
        Some(_) => LogFormat::Text,
        None => old.format,
    };
    let mut new = LoggingSettings { format, application_level: None, system_level: None, group: old.group.clone() };
    if let Some(group) = &config.log_group {
        new.group.clone_from(group);
    }
    let application = config.application_log_level.as_ref().map(|level| level.as_str().to_owned());
    let system = config.system_log_level.as_ref().map(|level| level.as_str().to_owned());
    match format {
        LogFormat::Json => {
            let info = || Some("INFO".to_owned());
            new.application_level = application.or_else(|| old.application_level.clone()).or_else(info);
            new.system_level = system.or_else(|| old.system_level.clone()).or_else(info);
        }
        LogFormat::Text if application.is_some() || system.is_some() => {
            return Err(invalid("ApplicationLogLevel and SystemLogLevel can only be set when LogFormat is JSON."));
        }
        LogFormat::Text => {}
    }
    Ok(new)
}

fn replace<T>(slot: &mut T, new: Option<T>) {
    if let Some(new) = new {
        *slot = new;
    }
}

/// Ranges were checked before; none allows a negative number.
fn unsigned(value: Option<i32>) -> Option<u32> {
    value.and_then(|value| u32::try_from(value).ok())
}
