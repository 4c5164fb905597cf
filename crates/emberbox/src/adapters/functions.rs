//! The control plane, for the Frontend: from an operation's request to the method that carries it out.

use std::future::Future;

use async_trait::async_trait;
use bytes::Bytes;
use control_plane::{Caller, ControlPlane};
use frontend::Identity;
use frontend::ports::{self, Call, Target};
use http::Response;
use lambda_api::{ApiError, Operation, OperationId, decode, encode, operations};

/// The control plane in this process.
#[derive(Clone)]
pub struct Functions(pub ControlPlane);

#[async_trait]
impl ports::Functions for Functions {
    fn resolve(
        &self,
        identity: &Identity,
        name: &str,
        qualifier: Option<&str>,
        random: f64,
    ) -> Result<Target, ApiError> {
        let resolved = self.0.resolve(&caller(identity), name, qualifier, random)?;
        Ok(Target {
            version: resolved.version,
            invoked_arn: resolved.invoked_arn,
            limits: resolved.limits,
            recursion_allowed: resolved.recursion_allowed,
        })
    }

    fn unreadable(&self) -> Option<usize> {
        self.0.follows().then(|| self.0.unreadable_records())
    }

    async fn manage(&self, call: Call<'_>) -> Option<Result<Response<Bytes>, ApiError>> {
        let (plane, who) = (&self.0, &caller(call.caller));
        let answer = match call.routed.operation {
            OperationId::GetFunction => self.get_function(call).await,
            OperationId::GetAccountSettings => {
                carry_out::<operations::GetAccountSettings, _>(call, |_| plane.get_account_settings(who)).await
            }
            OperationId::CreateFunction => {
                carry_out::<operations::CreateFunction, _>(call, |input| plane.create_function(who, input)).await
            }
            OperationId::GetFunctionConfiguration => {
                carry_out::<operations::GetFunctionConfiguration, _>(call, |input| {
                    plane.get_function_configuration(who, input)
                })
                .await
            }
            OperationId::ListFunctions => {
                carry_out::<operations::ListFunctions, _>(call, |input| plane.list_functions(who, input)).await
            }
            OperationId::UpdateFunctionCode => {
                carry_out::<operations::UpdateFunctionCode, _>(call, |input| plane.update_function_code(who, input))
                    .await
            }
            OperationId::UpdateFunctionConfiguration => {
                carry_out::<operations::UpdateFunctionConfiguration, _>(call, |input| {
                    plane.update_function_configuration(who, input)
                })
                .await
            }
            OperationId::DeleteFunction => {
                carry_out::<operations::DeleteFunction, _>(call, |input| plane.delete_function(who, input)).await
            }
            OperationId::GetFunctionCodeSigningConfig => {
                carry_out::<operations::GetFunctionCodeSigningConfig, _>(call, |input| {
                    plane.get_function_code_signing_config(who, input)
                })
                .await
            }
            OperationId::PublishVersion => {
                carry_out::<operations::PublishVersion, _>(call, |input| plane.publish_version(who, input)).await
            }
            OperationId::ListVersionsByFunction => {
                carry_out::<operations::ListVersionsByFunction, _>(call, |input| {
                    plane.list_versions_by_function(who, input)
                })
                .await
            }
            OperationId::CreateAlias => {
                carry_out::<operations::CreateAlias, _>(call, |input| plane.create_alias(who, input)).await
            }
            OperationId::GetAlias => {
                carry_out::<operations::GetAlias, _>(call, |input| plane.get_alias(who, input)).await
            }
            OperationId::ListAliases => {
                carry_out::<operations::ListAliases, _>(call, |input| plane.list_aliases(who, input)).await
            }
            OperationId::UpdateAlias => {
                carry_out::<operations::UpdateAlias, _>(call, |input| plane.update_alias(who, input)).await
            }
            OperationId::PutFunctionConcurrency => {
                carry_out::<operations::PutFunctionConcurrency, _>(call, |input| {
                    plane.put_function_concurrency(who, input)
                })
                .await
            }
            OperationId::GetFunctionConcurrency => {
                carry_out::<operations::GetFunctionConcurrency, _>(call, |input| {
                    plane.get_function_concurrency(who, input)
                })
                .await
            }
            OperationId::PutFunctionEventInvokeConfig => {
                carry_out::<operations::PutFunctionEventInvokeConfig, _>(call, |input| {
                    plane.put_function_event_invoke_config(who, input)
                })
                .await
            }
            OperationId::UpdateFunctionEventInvokeConfig => {
                carry_out::<operations::UpdateFunctionEventInvokeConfig, _>(call, |input| {
                    plane.update_function_event_invoke_config(who, input)
                })
                .await
            }
            OperationId::GetFunctionEventInvokeConfig => {
                carry_out::<operations::GetFunctionEventInvokeConfig, _>(call, |input| {
                    plane.get_function_event_invoke_config(who, input)
                })
                .await
            }
            OperationId::ListFunctionEventInvokeConfigs => {
                carry_out::<operations::ListFunctionEventInvokeConfigs, _>(call, |input| {
                    plane.list_function_event_invoke_configs(who, input)
                })
                .await
            }
            OperationId::CreateEventSourceMapping => {
                carry_out::<operations::CreateEventSourceMapping, _>(call, |input| {
                    plane.create_event_source_mapping(who, input)
                })
                .await
            }
            OperationId::GetEventSourceMapping => {
                carry_out::<operations::GetEventSourceMapping, _>(call, |input| {
                    plane.get_event_source_mapping(who, input)
                })
                .await
            }
            OperationId::UpdateEventSourceMapping => {
                carry_out::<operations::UpdateEventSourceMapping, _>(call, |input| {
                    plane.update_event_source_mapping(who, input)
                })
                .await
            }
            OperationId::DeleteEventSourceMapping => {
                carry_out::<operations::DeleteEventSourceMapping, _>(call, |input| {
                    plane.delete_event_source_mapping(who, input)
                })
                .await
            }
            OperationId::ListEventSourceMappings => {
                carry_out::<operations::ListEventSourceMappings, _>(call, |input| {
                    plane.list_event_source_mappings(who, input)
                })
                .await
            }
            OperationId::PutFunctionRecursionConfig => {
                carry_out::<operations::PutFunctionRecursionConfig, _>(call, |input| {
                    plane.put_function_recursion_config(who, input)
                })
                .await
            }
            OperationId::GetFunctionRecursionConfig => {
                carry_out::<operations::GetFunctionRecursionConfig, _>(call, |input| {
                    plane.get_function_recursion_config(who, input)
                })
                .await
            }
            OperationId::AddPermission => {
                carry_out::<operations::AddPermission, _>(call, |input| plane.add_permission(who, input)).await
            }
            OperationId::GetPolicy => {
                carry_out::<operations::GetPolicy, _>(call, |input| plane.get_policy(who, input)).await
            }
            OperationId::ListTags => {
                carry_out::<operations::ListTags, _>(call, |input| plane.list_tags(who, input)).await
            }
            OperationId::DeleteAlias => {
                carry_out::<operations::DeleteAlias, _>(call, |input| nothing(plane.delete_alias(who, input))).await
            }
            OperationId::DeleteFunctionConcurrency => {
                carry_out::<operations::DeleteFunctionConcurrency, _>(call, |input| {
                    nothing(plane.delete_function_concurrency(who, input))
                })
                .await
            }
            OperationId::DeleteFunctionEventInvokeConfig => {
                carry_out::<operations::DeleteFunctionEventInvokeConfig, _>(call, |input| {
                    nothing(plane.delete_function_event_invoke_config(who, input))
                })
                .await
            }
            OperationId::RemovePermission => {
                carry_out::<operations::RemovePermission, _>(call, |input| nothing(plane.remove_permission(who, input)))
                    .await
            }
            OperationId::TagResource => {
                carry_out::<operations::TagResource, _>(call, |input| nothing(plane.tag_resource(who, input))).await
            }
            OperationId::UntagResource => {
                carry_out::<operations::UntagResource, _>(call, |input| nothing(plane.untag_resource(who, input))).await
            }
            _ => return None,
        };
        Some(answer)
    }
}

/// Reads the input, does the work, writes the output.
async fn carry_out<Op: Operation, F>(
    call: Call<'_>,
    work: impl FnOnce(Op::Input) -> F,
) -> Result<Response<Bytes>, ApiError>
where
    F: Future<Output = Result<Op::Output, ApiError>>,
{
    let input = decode::<Op>(call.routed, call.query, call.headers, call.body)?;
    // Boxed, or else the caller's future would have room for every operation's.
    let output = Box::pin(work(input)).await?;
    Ok(encode::<Op>(&output))
}

/// Some operations have an output without members.
async fn nothing<T: Default>(work: impl Future<Output = Result<(), ApiError>>) -> Result<T, ApiError> {
    work.await.map(|()| T::default())
}

impl Functions {
    /// As the others, with the download address that only the Frontend can make.
    async fn get_function(&self, call: Call<'_>) -> Result<Response<Bytes>, ApiError> {
        let input = decode::<operations::GetFunction>(call.routed, call.query, call.headers, call.body)?;
        let mut output = self.0.get_function(&caller(call.caller), input).await?;
        let sha256 = output.configuration.as_ref().and_then(|c| c.code_sha256.clone());
        if let (Some(code), Some(sha256)) = (&mut output.code, sha256)
            && code.image_uri.is_none()
        {
            code.location = (call.code_url)(&sha256);
        }
        Ok(encode::<operations::GetFunction>(&output))
    }
}

fn caller(identity: &Identity) -> Caller {
    Caller { account: identity.account.clone(), region: identity.region.clone(), principal: None }
}
