//! Resource policies and tags.

use std::collections::BTreeMap;

use lambda_api::types::{
    AddPermissionRequest, AddPermissionResponse, GetPolicyRequest, GetPolicyResponse, ListTagsRequest,
    ListTagsResponse, RemovePermissionRequest, TagResourceRequest, UntagResourceRequest,
};
use lambda_api::{ApiError, ErrorCode};

use super::ControlPlane;
use crate::name::{Caller, Target, not_found};
use crate::record::function_key;
use crate::rules::{policy, tags};

impl ControlPlane {
    /// AddPermission.
    pub async fn add_permission(
        &self,
        caller: &Caller,
        request: AddPermissionRequest,
    ) -> Result<AddPermissionResponse, ApiError> {
        let target = Target::own(caller, "AddPermission", &request.function_name, request.qualifier.as_deref())?;
        let qualifier = target.qualifier.as_deref();
        let statement = self
            .inner
            .change(
                &function_key(&target.arn),
                || not_found(&target.arn),
                |function, stamp| policy::add(function, qualifier, &request, stamp),
            )
            .await?;
        Ok(AddPermissionResponse { statement: Some(statement.to_string()) })
    }

    /// RemovePermission.
    pub async fn remove_permission(&self, caller: &Caller, request: RemovePermissionRequest) -> Result<(), ApiError> {
        let target = Target::own(caller, "RemovePermission", &request.function_name, request.qualifier.as_deref())?;
        let (qualifier, revision) = (target.qualifier.as_deref(), request.revision_id.as_deref());
        let missing = || {
            ApiError::new(ErrorCode::ResourceNotFoundException, format!("No policy found for: {}", target.full_arn()))
        };
        self.inner
            .change(&function_key(&target.arn), missing, |function, stamp| {
                policy::remove(function, qualifier, &request.statement_id, revision, stamp)
            })
            .await
    }

    /// GetPolicy.
    pub async fn get_policy(&self, caller: &Caller, request: GetPolicyRequest) -> Result<GetPolicyResponse, ApiError> {
        let target = Target::own(caller, "GetPolicy", &request.function_name, request.qualifier.as_deref())?;
        let entry = self.inner.catalog.function(&function_key(&target.arn));
        let function = entry.as_ref().map(|entry| &entry.function);
        let (policy, revision_id) = policy::get(function, target.qualifier.as_deref())?;
        Ok(GetPolicyResponse { policy: Some(policy), revision_id: Some(revision_id) })
    }

    /// TagResource.
    pub async fn tag_resource(&self, caller: &Caller, request: TagResourceRequest) -> Result<(), ApiError> {
        if let Some(uuid) = tags::event_source(&request.resource) {
            let add = |tags: &mut BTreeMap<_, _>| tags::add(tags, &request.tags);
            return self.inner.tag_event_source(caller, &request.resource, uuid, add).await;
        }
        let arn = tags::function(caller, "TagResource", &request.resource)?;
        self.inner
            .change(
                &function_key(&arn),
                || not_found(&arn),
                |function, stamp| {
                    tags::add(&mut function.record.tags, &request.tags)?;
                    function.record.latest.revision_id = stamp.id();
                    Ok(())
                },
            )
            .await
    }

    /// UntagResource. Tags that are not there are no error.
    pub async fn untag_resource(&self, caller: &Caller, request: UntagResourceRequest) -> Result<(), ApiError> {
        if let Some(uuid) = tags::event_source(&request.resource) {
            let remove = |tags: &mut BTreeMap<_, _>| {
                tags.retain(|key, _| !request.tag_keys.contains(key));
                Ok(())
            };
            return self.inner.tag_event_source(caller, &request.resource, uuid, remove).await;
        }
        let arn = tags::function(caller, "UntagResource", &request.resource)?;
        self.inner
            .change(
                &function_key(&arn),
                || not_found(&arn),
                |function, stamp| {
                    let before = function.record.tags.len();
                    function.record.tags.retain(|key, _| !request.tag_keys.contains(key));
                    if function.record.tags.len() < before {
                        function.record.latest.revision_id = stamp.id();
                    }
                    Ok(())
                },
            )
            .await
    }

    /// ListTags.
    pub async fn list_tags(&self, caller: &Caller, request: ListTagsRequest) -> Result<ListTagsResponse, ApiError> {
        if let Some(uuid) = tags::event_source(&request.resource) {
            let tags = self.inner.event_source_tags(caller, &request.resource, uuid)?;
            return Ok(ListTagsResponse { tags: Some(tags) });
        }
        let arn = tags::function(caller, "ListTags", &request.resource)?;
        let entry = self.inner.function_of(&arn)?;
        Ok(ListTagsResponse { tags: Some(entry.function.record.tags.clone()) })
    }
}
