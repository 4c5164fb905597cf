//! How the API shows a version. Which members there are depends on the operation.

use domain::{FunctionArn, ImageConfig, LogFormat};
use lambda_api::types::{
    Architecture, DeadLetterConfig, EnvironmentResponse, EphemeralStorage, FunctionConfiguration,
    ImageConfig as WireImageConfig, ImageConfigResponse, LastUpdateStatus, LastUpdateStatusReasonCode,
    LogFormat as WireLogFormat, LoggingConfig, PackageType, Runtime, RuntimeVersionConfig, SnapStartApplyOn,
    SnapStartOptimizationStatus, SnapStartResponse, State as WireState, StateReasonCode, TracingConfigResponse,
    TracingMode,
};

use crate::record::{FailureCode, Snapshot, State, Update, Version};

/// AWS's reason while a version is made, and while it is updated.
const CREATING: &str = "The function is being created.";

/// As CreateFunction, GetFunctionConfiguration, the updates and PublishVersion show it.
pub(crate) fn configuration(arn: &FunctionArn, qualifier: Option<&str>, version: &Version) -> FunctionConfiguration {
    let mut view = listed(arn, qualifier, version);
    if version.code.image.is_none() {
        view.runtime_version_config = Some(RuntimeVersionConfig {
            runtime_version_arn: Some(version.settings.runtime_version_arn.clone()),
            error: None,
        });
    }
    let (state, reason, code) = match &version.state {
        State::Pending => (WireState::Pending, Some(CREATING), Some(StateReasonCode::Creating)),
        // AWS has none; there, SnapStart never does without.
        State::Active => match &version.snapshot {
            Snapshot::Missing(reason) => (WireState::Active, Some(reason.as_str()), None),
            _ => (WireState::Active, None, None),
        },
        State::Failed { reason, code } => (WireState::Failed, Some(reason.as_str()), Some(state_code(*code))),
    };
    view.state = Some(state);
    view.state_reason = reason.map(str::to_owned);
    view.state_reason_code = code;
    let (status, reason, code) = match &version.update {
        Update::None => return view,
        Update::InProgress => (
            LastUpdateStatus::InProgress,
            Some(CREATING),
            Some(LastUpdateStatusReasonCode::Unknown("Creating".to_owned())),
        ),
        Update::Successful => (LastUpdateStatus::Successful, None, None),
        Update::Failed { reason, code } => {
            // The names are the same in both.
            let code = LastUpdateStatusReasonCode::from(state_code(*code).as_str());
            (LastUpdateStatus::Failed, Some(reason.as_str()), Some(code))
        }
    };
    view.last_update_status = Some(status);
    view.last_update_status_reason = reason.map(str::to_owned);
    view.last_update_status_reason_code = code;
    view
}

fn state_code(code: FailureCode) -> StateReasonCode {
    match code {
        FailureCode::InvalidRuntime => StateReasonCode::InvalidRuntime,
        FailureCode::InvalidImage => StateReasonCode::InvalidImage,
        FailureCode::ImageDeleted => StateReasonCode::ImageDeleted,
        FailureCode::ImageAccessDenied => StateReasonCode::ImageAccessDenied,
        FailureCode::InternalError => StateReasonCode::InternalError,
        FailureCode::InitTimeout => StateReasonCode::FunctionErrorInitTimeout,
        FailureCode::RuntimeInitError => StateReasonCode::FunctionErrorRuntimeInitError,
        FailureCode::ExtensionInitError => StateReasonCode::FunctionErrorExtensionInitError,
        FailureCode::InvalidEntryPoint => StateReasonCode::FunctionErrorInvalidEntryPoint,
        FailureCode::InvalidWorkingDirectory => StateReasonCode::FunctionErrorInvalidWorkingDirectory,
        FailureCode::InitResourceExhausted => StateReasonCode::FunctionErrorInitResourceExhausted,
    }
}

/// As ListFunctions and ListVersionsByFunction show it: without states and runtime version.
pub(crate) fn listed(arn: &FunctionArn, qualifier: Option<&str>, version: &Version) -> FunctionConfiguration {
    let settings = &version.settings;
    let is_zip = version.code.image.is_none();
    FunctionConfiguration {
        function_name: Some(arn.name.to_string()),
        function_arn: Some(qualifier.map_or_else(|| arn.to_string(), |qualifier| arn.qualified(qualifier))),
        runtime: is_zip.then(|| Runtime::from(settings.runtime.as_str())),
        role: Some(settings.role.clone()),
        handler: is_zip.then(|| settings.handler.clone()),
        code_size: i64::try_from(version.code.size).ok(),
        description: Some(settings.description.clone()),
        timeout: i32::try_from(settings.timeout).ok(),
        memory_size: i32::try_from(settings.memory).ok(),
        last_modified: Some(version.last_modified.clone()),
        code_sha256: Some(version.code.sha256.clone()),
        version: Some(version.name()),
        dead_letter_config: settings.dead_letter.clone().map(|arn| DeadLetterConfig { target_arn: Some(arn) }),
        environment: settings
            .environment
            .as_ref()
            .map(|variables| EnvironmentResponse { variables: Some(variables.get().clone()), error: None }),
        tracing_config: Some(TracingConfigResponse {
            mode: Some(if settings.tracing_active { TracingMode::Active } else { TracingMode::PassThrough }),
        }),
        revision_id: Some(version.revision_id.clone()),
        package_type: Some(if is_zip { PackageType::Zip } else { PackageType::Image }),
        image_config_response: settings.image_config.as_ref().map(image_config),
        architectures: Some(vec![Architecture::from(settings.architecture.as_str())]),
        ephemeral_storage: i32::try_from(settings.ephemeral).ok().map(|size| EphemeralStorage { size }),
        snap_start: Some(SnapStartResponse {
            apply_on: Some(match settings.snap_start {
                true => SnapStartApplyOn::PublishedVersions,
                false => SnapStartApplyOn::None,
            }),
            optimization_status: Some(match version.snapshot {
                Snapshot::Taken => SnapStartOptimizationStatus::On,
                _ => SnapStartOptimizationStatus::Off,
            }),
        }),
        logging_config: Some(LoggingConfig {
            log_format: Some(match settings.logging.format {
                LogFormat::Text => WireLogFormat::Text,
                LogFormat::Json => WireLogFormat::Json,
            }),
            application_log_level: settings.logging.application_level.as_deref().map(Into::into),
            system_log_level: settings.logging.system_level.as_deref().map(Into::into),
            log_group: Some(settings.logging.group.clone()),
        }),
        ..FunctionConfiguration::default()
    }
}

fn image_config(config: &ImageConfig) -> ImageConfigResponse {
    let ImageConfig { entry_point, command, working_directory } = config.clone();
    ImageConfigResponse { image_config: Some(WireImageConfig { entry_point, command, working_directory }), error: None }
}
