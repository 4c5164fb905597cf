//! Published versions and aliases.

use lambda_api::ApiError;
use lambda_api::types::{
    AliasConfiguration, CreateAliasRequest, DeleteAliasRequest, FunctionConfiguration, GetAliasRequest,
    ListAliasesRequest, ListAliasesResponse, ListVersionsByFunctionRequest, ListVersionsByFunctionResponse,
    PublishVersionRequest, UpdateAliasRequest,
};

use super::ControlPlane;
use crate::function::{Function, Stamp};
use crate::name::{Caller, Target, not_found};
use crate::page::page;
use crate::record::function_key;
use crate::rules::{alias, invalid, unsupported};
use crate::view;

impl ControlPlane {
    /// PublishVersion. Publishing the same state again returns the same version.
    pub async fn publish_version(
        &self,
        caller: &Caller,
        request: PublishVersionRequest,
    ) -> Result<FunctionConfiguration, ApiError> {
        unsupported::publish_to(request.publish_to.as_ref())?;
        self.change_function(caller, "PublishVersion", &request.function_name, |function, stamp| {
            function.check_revision(request.revision_id.as_deref())?;
            function.check_settled()?;
            function.check_ready()?;
            let sha256 = &function.record.latest.code.sha256;
            if let Some(given) = request.code_sha256.as_ref().filter(|given| !given.is_empty() && *given != sha256) {
                return Err(invalid(format!(
                    "CodeSHA256 ({given}) is different from current CodeSHA256 in $LATEST ({sha256}). Please try again \
                     with the CodeSHA256 in $LATEST."
                )));
            }
            let published = function.publish(request.description.clone(), stamp);
            Ok(view::configuration(&function.arn, Some(&published.version.name()), &published.version))
        })
        .await
    }

    /// ListVersionsByFunction: `$LATEST` first.
    pub async fn list_versions_by_function(
        &self,
        caller: &Caller,
        request: ListVersionsByFunctionRequest,
    ) -> Result<ListVersionsByFunctionResponse, ApiError> {
        let arn = Target::unqualified(caller, "ListVersionsByFunction", &request.function_name)?;
        let entry = self.inner.function_of(&arn)?;
        let versions = entry.function.all_versions().map(|version| {
            let marker = format!("{:020}", version.number.unwrap_or(0));
            (marker, view::listed(&arn, Some(&version.name()), version))
        });
        let (versions, next_marker) = page(versions, request.marker.as_deref(), request.max_items)?;
        Ok(ListVersionsByFunctionResponse { next_marker, versions: Some(versions) })
    }

    /// CreateAlias.
    pub async fn create_alias(
        &self,
        caller: &Caller,
        request: CreateAliasRequest,
    ) -> Result<AliasConfiguration, ApiError> {
        let arn = Target::unqualified(caller, "CreateAlias", &request.function_name)?;
        // As recorded: a missing function is told with the version that the alias was to have.
        let missing = || not_found(arn.qualified(&request.function_version));
        let rule = |function: &mut Function, stamp: &mut Stamp<'_>| alias::create(function, &request, stamp);
        self.inner.change(&function_key(&arn), missing, rule).await
    }

    /// UpdateAlias.
    pub async fn update_alias(
        &self,
        caller: &Caller,
        request: UpdateAliasRequest,
    ) -> Result<AliasConfiguration, ApiError> {
        self.change_function(caller, "UpdateAlias", &request.function_name, |function, stamp| {
            alias::update(function, &request, stamp)
        })
        .await
    }

    /// GetAlias.
    pub async fn get_alias(&self, caller: &Caller, request: GetAliasRequest) -> Result<AliasConfiguration, ApiError> {
        let arn = Target::unqualified(caller, "GetAlias", &request.function_name)?;
        alias::get(&self.inner.function_of(&arn)?.function, &request.name)
    }

    /// ListAliases, of one version if one is given.
    pub async fn list_aliases(
        &self,
        caller: &Caller,
        request: ListAliasesRequest,
    ) -> Result<ListAliasesResponse, ApiError> {
        let arn = Target::unqualified(caller, "ListAliases", &request.function_name)?;
        let entry = self.inner.function_of(&arn)?;
        let of_version = |version: &str| request.function_version.as_ref().is_none_or(|wanted| wanted == version);
        let aliases = entry.function.record.aliases.iter().filter(|(_, alias)| of_version(&alias.version));
        let aliases = aliases.map(|(name, alias)| (name.clone(), alias::configuration(&entry.function, name, alias)));
        let (aliases, next_marker) = page(aliases, request.marker.as_deref(), request.max_items)?;
        Ok(ListAliasesResponse { next_marker, aliases: Some(aliases) })
    }

    /// DeleteAlias.
    pub async fn delete_alias(&self, caller: &Caller, request: DeleteAliasRequest) -> Result<(), ApiError> {
        self.change_function(caller, "DeleteAlias", &request.function_name, |function, _| {
            alias::delete(function, &request.name);
            Ok(())
        })
        .await
    }

    /// Applies a rule to a function that is named without a qualifier.
    async fn change_function<T>(
        &self,
        caller: &Caller,
        operation: &str,
        function_name: &str,
        rule: impl Fn(&mut Function, &mut Stamp<'_>) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        let arn = Target::unqualified(caller, operation, function_name)?;
        self.inner.change(&function_key(&arn), || not_found(&arn), rule).await
    }
}
