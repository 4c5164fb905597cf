//! What AWS Lambda has and Emberbox has not yet. It is refused, plainly, and never accepted without effect; the empty or
//! "off" form, which tools send routinely, is fine.

use lambda_api::ApiError;
use lambda_api::types::{
    CreateFunctionRequest, FileSystemConfig, FunctionVersionLatestPublished, UpdateFunctionConfigurationRequest,
    VpcConfig,
};

use crate::rules::invalid;

/// Refuses the first feature that is asked for.
pub(crate) fn refuse(features: &[(&str, bool)]) -> Result<(), ApiError> {
    match features.iter().find(|(_, used)| *used) {
        Some((name, _)) => Err(invalid(format!("Emberbox does not support {name} yet. Leave it out."))),
        None => Ok(()),
    }
}

pub(crate) fn in_create(request: &CreateFunctionRequest) -> Result<(), ApiError> {
    refuse(&[
        ("VpcConfig", vpc(request.vpc_config.as_ref())),
        ("FileSystemConfigs", file_systems(request.file_system_configs.as_deref())),
        ("KMSKeyArn", text(request.kms_key_arn.as_deref())),
        ("CodeSigningConfigArn", text(request.code_signing_config_arn.as_deref())),
        ("TenancyConfig", request.tenancy_config.is_some()),
        ("CapacityProviderConfig", request.capacity_provider_config.is_some()),
        ("DurableConfig", request.durable_config.is_some()),
        ("RuntimeConfig", request.runtime_config.is_some()),
        ("AcceleratorConfig", request.accelerator_config.is_some()),
    ])?;
    publish_to(request.publish_to.as_ref())
}

pub(crate) fn in_update(request: &UpdateFunctionConfigurationRequest) -> Result<(), ApiError> {
    refuse(&[
        ("VpcConfig", vpc(request.vpc_config.as_ref())),
        ("FileSystemConfigs", file_systems(request.file_system_configs.as_deref())),
        ("KMSKeyArn", text(request.kms_key_arn.as_deref())),
        ("CapacityProviderConfig", request.capacity_provider_config.is_some()),
        ("DurableConfig", request.durable_config.is_some()),
        ("RuntimeConfig", request.runtime_config.is_some()),
        ("AcceleratorConfig", request.accelerator_config.is_some()),
    ])
}

pub(crate) fn publish_to(publish_to: Option<&FunctionVersionLatestPublished>) -> Result<(), ApiError> {
    refuse(&[("PublishTo", publish_to.is_some())])
}

fn vpc(config: Option<&VpcConfig>) -> bool {
    let some = |ids: &Option<Vec<String>>| ids.as_ref().is_some_and(|ids| !ids.is_empty());
    config.is_some_and(|c| some(&c.subnet_ids) || some(&c.security_group_ids))
}

fn file_systems(configs: Option<&[FileSystemConfig]>) -> bool {
    configs.is_some_and(|c| !c.is_empty())
}

fn text(value: Option<&str>) -> bool {
    value.is_some_and(|value| !value.is_empty())
}
