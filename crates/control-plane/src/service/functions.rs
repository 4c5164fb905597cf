//! Create, read, update and delete functions.

use std::sync::Arc;

use domain::{CodeRef, FunctionArn};
use lambda_api::types::{
    Concurrency, CreateFunctionRequest, DeleteFunctionRequest, DeleteFunctionResponse, FunctionCodeLocation,
    FunctionConfiguration, FunctionVersion as AllVersions, GetFunctionCodeSigningConfigRequest,
    GetFunctionCodeSigningConfigResponse, GetFunctionConfigurationRequest, GetFunctionRequest, GetFunctionResponse,
    ListFunctionsRequest, ListFunctionsResponse, UpdateFunctionCodeRequest, UpdateFunctionConfigurationRequest,
};
use lambda_api::{ApiError, ErrorCode};
use store::{Op, Precondition};
use tokio::sync::RwLockReadGuard;

use super::{ControlPlane, Inner, TRIES, service_error, too_busy};
use crate::catalog::Entry;
use crate::function::{Function, New};
use crate::name::{Caller, Target, check_bare_name, is_alias, not_found, version_number};
use crate::page::page;
use crate::record::{
    ACCOUNT, AccountRecord, DELETED, DeletedRecord, FUNCTION, LATEST, Settings, Stored, VERSION, Version, account_key,
    from_bytes, function_key, parse_version_key, to_bytes, version_key,
};
use crate::rules::{code, invalid, settings, tags, unsupported};
use crate::view;

impl ControlPlane {
    /// CreateFunction.
    pub async fn create_function(
        &self,
        caller: &Caller,
        request: CreateFunctionRequest,
    ) -> Result<FunctionConfiguration, ApiError> {
        let inner = &*self.inner;
        check_bare_name(&request.function_name)?;
        let arn = Target::own(caller, "CreateFunction", &request.function_name, None)?.arn;
        let mut settings = settings::of_create(&request, &arn.name, &arn.region)?;
        let is_image = settings::is_image(&request);
        if !is_image {
            inner.fill_runtime(&mut settings, &arn)?;
        }
        let tags = request.tags.clone().unwrap_or_default();
        tags::check(&tags)?;
        if inner.catalog.function(&function_key(&arn)).is_some() {
            return Err(already_exists(&arn));
        }
        let source = code::of_create(&request.code, is_image)?;
        let (code, _storing) = inner.store_code(source, &arn).await?;
        let new = New { arn, settings, code, tags, next_version: 1 };
        inner.create(new, request.publish == Some(true)).await
    }

    /// GetFunction. `Code.Location` is left to the frontend, which knows its own address.
    pub async fn get_function(
        &self,
        caller: &Caller,
        request: GetFunctionRequest,
    ) -> Result<GetFunctionResponse, ApiError> {
        let target = Target::own(caller, "GetFunction", &request.function_name, request.qualifier.as_deref())?;
        let entry = self.inner.function(&target)?;
        let function = &entry.function;
        let version = function.version(target.qualifier.as_deref())?;
        let reserved = self.inner.reserved(&function.arn);
        Ok(GetFunctionResponse {
            configuration: Some(view::configuration(&function.arn, target.qualifier.as_deref(), version)),
            code: Some(match &version.code.image {
                Some(image) => FunctionCodeLocation {
                    repository_type: Some("ECR".to_owned()),
                    image_uri: Some(image.uri.clone()),
                    resolved_image_uri: Some(image.resolved_uri.clone()),
                    ..FunctionCodeLocation::default()
                },
                None => {
                    FunctionCodeLocation { repository_type: Some("S3".to_owned()), ..FunctionCodeLocation::default() }
                }
            }),
            tags: Some(function.record.tags.clone()).filter(|tags| !tags.is_empty()),
            tags_error: None,
            concurrency: reserved.map(|n| Concurrency { reserved_concurrent_executions: i32::try_from(n).ok() }),
        })
    }

    /// GetFunctionConfiguration.
    pub async fn get_function_configuration(
        &self,
        caller: &Caller,
        request: GetFunctionConfigurationRequest,
    ) -> Result<FunctionConfiguration, ApiError> {
        let qualifier = request.qualifier.as_deref();
        let target = Target::own(caller, "GetFunctionConfiguration", &request.function_name, qualifier)?;
        let entry = self.inner.function(&target)?;
        let version = entry.function.version(target.qualifier.as_deref())?;
        Ok(view::configuration(&target.arn, target.qualifier.as_deref(), version))
    }

    /// ListFunctions. `MasterRegion` is about Lambda@Edge, which has no meaning here.
    pub async fn list_functions(
        &self,
        caller: &Caller,
        request: ListFunctionsRequest,
    ) -> Result<ListFunctionsResponse, ApiError> {
        let all = request.function_version == Some(AllVersions::All);
        let functions = self.inner.functions_of(caller);
        let versions = functions.iter().flat_map(|(key, entry)| {
            let count = if all { usize::MAX } else { 1 };
            entry.function.all_versions().take(count).map(move |version| {
                // A space sorts before all that a name may hold, so that markers are in the order of the names.
                (format!("{key} {:020}", version.number.unwrap_or(0)), (&entry.function.arn, version))
            })
        });
        let (versions, next_marker) = page(versions, request.marker.as_deref(), request.max_items)?;
        let show = |(arn, version): (&FunctionArn, &Version)| {
            let name = version.name();
            view::listed(arn, all.then_some(name.as_str()), version)
        };
        Ok(ListFunctionsResponse { next_marker, functions: Some(versions.into_iter().map(show).collect()) })
    }

    /// UpdateFunctionCode.
    pub async fn update_function_code(
        &self,
        caller: &Caller,
        request: UpdateFunctionCodeRequest,
    ) -> Result<FunctionConfiguration, ApiError> {
        let inner = &*self.inner;
        let arn = Target::unqualified(caller, "UpdateFunctionCode", &request.function_name)?;
        let entry = inner.function_of(&arn)?;
        let source = code::of_update(&request, entry.function.record.latest.code.image.is_some())?;
        unsupported::publish_to(request.publish_to.as_ref())?;
        let architecture = settings::architecture(request.architectures.as_deref())?;
        let ready = |function: &Function| {
            function.check_revision(request.revision_id.as_deref())?;
            function.check_settled()
        };
        // Before a long upload from S3; and again when it comes to it.
        ready(&entry.function)?;
        let (code, _storing) = inner.store_code(source, &arn).await?;

        let rule = |function: &mut Function, stamp: &mut crate::function::Stamp<'_>| {
            ready(function)?;
            let mut settings = function.record.latest.settings.clone();
            if let Some(architecture) = &architecture {
                settings.architecture.clone_from(architecture);
            }
            function.update(code.clone(), settings, stamp);
            if request.publish == Some(true) {
                let published = function.publish(None, stamp);
                return Ok(view::configuration(&function.arn, Some(&published.version.name()), &published.version));
            }
            Ok(view::configuration(&function.arn, None, &function.record.latest))
        };
        if request.dry_run == Some(true) {
            let mut function = inner.function_of(&arn)?.function.clone();
            return inner.stamped(|stamp| rule(&mut function, stamp));
        }
        inner.change(&function_key(&arn), || not_found(&arn), rule).await
    }

    /// UpdateFunctionConfiguration.
    pub async fn update_function_configuration(
        &self,
        caller: &Caller,
        request: UpdateFunctionConfigurationRequest,
    ) -> Result<FunctionConfiguration, ApiError> {
        let inner = &*self.inner;
        let arn = Target::unqualified(caller, "UpdateFunctionConfiguration", &request.function_name)?;
        inner
            .change(
                &function_key(&arn),
                || not_found(&arn),
                |function, stamp| {
                    let latest = &function.record.latest;
                    let mut settings =
                        settings::of_update(&latest.settings, latest.code.image.is_some(), &request, &arn.region)?;
                    if request.runtime.is_some() {
                        inner.fill_runtime(&mut settings, &arn)?;
                    }
                    function.check_revision(request.revision_id.as_deref())?;
                    function.check_settled()?;
                    function.update(latest.code.clone(), settings, stamp);
                    Ok(view::configuration(&function.arn, None, &function.record.latest))
                },
            )
            .await
    }

    /// DeleteFunction: the function with everything that belongs to it, or one published version.
    pub async fn delete_function(
        &self,
        caller: &Caller,
        request: DeleteFunctionRequest,
    ) -> Result<DeleteFunctionResponse, ApiError> {
        let target = Target::own(caller, "DeleteFunction", &request.function_name, request.qualifier.as_deref())?;
        let arn = &target.arn;
        match target.qualifier.as_deref() {
            None => self.inner.delete(arn).await?,
            Some(LATEST) => return Err(invalid("$LATEST version cannot be deleted without deleting the function.")),
            Some(name) if is_alias(name) => return Err(invalid("Deletion of aliases is not currently supported.")),
            Some(name) => {
                let delete =
                    |function: &mut Function| version_number(name).map_or(Ok(()), |n| function.delete_version(n));
                let key = function_key(arn);
                self.inner.change(&key, || not_found(arn), |function, _| delete(function)).await?;
            }
        }
        Ok(DeleteFunctionResponse { status_code: Some(204) })
    }

    /// GetFunctionCodeSigningConfig, as for a function without one: with the function's name alone.
    pub async fn get_function_code_signing_config(
        &self,
        caller: &Caller,
        request: GetFunctionCodeSigningConfigRequest,
    ) -> Result<GetFunctionCodeSigningConfigResponse, ApiError> {
        let target = Target::own(caller, "GetFunctionCodeSigningConfig", &request.function_name, None)?;
        let entry = self.inner.function_of(&target.arn)?;
        Ok(GetFunctionCodeSigningConfigResponse {
            code_signing_config_arn: None,
            function_name: entry.function.arn.name.to_string(),
        })
    }
}

impl Inner {
    /// A function of the catalog, whose ARN an error shows as the caller named it.
    pub(super) fn function(&self, target: &Target) -> Result<Arc<Entry>, ApiError> {
        self.catalog.function(&function_key(&target.arn)).ok_or_else(|| not_found(target.full_arn()))
    }

    pub(super) fn function_of(&self, arn: &FunctionArn) -> Result<Arc<Entry>, ApiError> {
        self.catalog.function(&function_key(arn)).ok_or_else(|| not_found(arn))
    }

    /// Every function of the caller's account in its region.
    pub(super) fn functions_of(&self, caller: &Caller) -> Vec<(String, Arc<Entry>)> {
        self.catalog.functions(&format!("{}/", account_key(caller.account.as_str(), &caller.region)))
    }

    pub(super) fn reserved(&self, arn: &FunctionArn) -> Option<u32> {
        let account = self.catalog.account(&account_key(arn.account.as_str(), &arn.region));
        account.record.reserved.get(&*arn.name).copied()
    }

    /// Of the function's account, in its region.
    pub(super) fn unreserved(&self, arn: &FunctionArn) -> u32 {
        let account = self.catalog.account(&account_key(arn.account.as_str(), &arn.region));
        self.config.account_concurrency.saturating_sub(account.record.total_reserved())
    }

    /// Whether there is such a runtime, and which version of it.
    fn fill_runtime(&self, settings: &mut Settings, arn: &FunctionArn) -> Result<(), ApiError> {
        if let Err(how_to_get_it) = self.runtimes.check(&settings.runtime) {
            return Err(invalid(settings::deprecated_runtime(&settings.runtime).unwrap_or(how_to_get_it)));
        }
        settings.runtime_version_arn = self.runtimes.version_arn(&settings.runtime, &arn.region);
        Ok(())
    }

    /// Puts a package into storage, or finds out which image is meant. The caller keeps the package gate until a function
    /// refers to it; if none ever does, it is removed later.
    async fn store_code(
        &self,
        source: code::Source,
        arn: &FunctionArn,
    ) -> Result<(CodeRef, RwLockReadGuard<'_, ()>), ApiError> {
        let (storing, stored) = match source {
            code::Source::Zip(zip) => (self.package_gate.read().await, self.packages.ingest(zip).await),
            code::Source::S3 { bucket, key, version } => {
                (self.package_gate.read().await, self.packages.ingest_s3(&bucket, &key, version.as_deref()).await)
            }
            code::Source::Image(uri) => {
                // Outside of the gate: a registry that answers slowly keeps nobody from removing what is not used.
                let resolved = self.images.resolve(&uri).await.map_err(|fault| code::image_error(&uri, &fault))?;
                let sha256 = resolved.digest.rsplit(':').next().unwrap_or_default().to_owned();
                (self.package_gate.read().await, Ok(CodeRef { sha256, size: 0, image: Some(resolved) }))
            }
        };
        let code = stored.map_err(|error| code::package_error(&error))?;
        // So that it is found, and removed, should no function ever refer to it.
        let stored = Stored::of(&code);
        let (kind, key) = stored.record();
        let record = Op::put(kind, key, &b"{}"[..]);
        self.store.commit(vec![record]).await.map_err(|error| service_error(&error))?;
        self.dropped.lock().insert(stored, self.clock.monotonic());
        let prefix = format!("{}/", account_key(arn.account.as_str(), &arn.region));
        code::check_total(self.code_size(&prefix), code.size, self.config.total_code_size)?;
        Ok((code, storing))
    }

    /// Bytes of code of the functions whose keys start with `prefix`, each version counted by itself as AWS does.
    pub(super) fn code_size(&self, prefix: &str) -> u64 {
        let functions = self.catalog.functions(prefix);
        functions.iter().flat_map(|(_, entry)| entry.function.all_versions()).map(|version| version.code.size).sum()
    }

    async fn create(&self, mut new: New, publish: bool) -> Result<FunctionConfiguration, ApiError> {
        let key = function_key(&new.arn);
        let _turn = self.turn(&key).await;
        for _ in 0..TRIES {
            if self.catalog.function(&key).is_some() {
                return Err(already_exists(&new.arn));
            }
            let deleted = self.store.get(DELETED, &key).await.map_err(|e| service_error(&e))?;
            new.next_version = next_version(deleted.as_ref().map(|record| &*record.value));
            let still_so = deleted.map_or(Precondition::DoesNotExist, |record| Precondition::Version(record.version));
            let mut ops = vec![Op::delete(DELETED, key.clone()).when(still_so)];
            let view = self.stamped(|stamp| {
                let mut function = Function::create(new.clone(), stamp);
                let published = publish.then(|| function.publish(None, stamp));
                if let Some(published) = &published {
                    let number = published.version.number.unwrap_or_default();
                    ops.push(self.put_version(&new.arn, number, published));
                }
                ops.push(self.put_function(&function, Precondition::DoesNotExist));
                // As recorded: the published version, but with the ARN of the function.
                let shown = published.as_ref().map_or(&function.record.latest, |published| &published.version);
                view::configuration(&new.arn, None, shown)
            });
            match self.commit(ops).await {
                Ok(()) => return Ok(view),
                Err(error) if error.retryable() => self.let_others_in().await,
                Err(error) => return Err(service_error(&error)),
            }
        }
        Err(too_busy())
    }

    /// What is stored of a function that cannot be read.
    async fn unread_parts(&self, arn: &FunctionArn) -> Result<Parts, ApiError> {
        let key = function_key(arn);
        let record = self.store.get(FUNCTION, &key).await.map_err(|error| service_error(&error))?;
        let stored = record.ok_or_else(|| not_found(arn))?.version;
        let versions = self.store.scan(VERSION, &format!("{key}/")).await.map_err(|error| service_error(&error))?;
        let versions: Vec<u64> =
            versions.records.iter().filter_map(|(key, _)| Some(parse_version_key(key)?.1)).collect();
        let known = self.catalog.function(&key).map_or(1, |entry| entry.function.record.next_version);
        let next_version = versions.iter().map(|number| number + 1).fold(known, u64::max);
        Ok(Parts { stored, versions, next_version })
    }

    async fn delete(&self, arn: &FunctionArn) -> Result<(), ApiError> {
        let key = function_key(arn);
        let account_key = account_key(arn.account.as_str(), &arn.region);
        let _turn = self.turn(&key).await;
        let _accounts = self.accounts.lock().await;
        for _ in 0..TRIES {
            let Parts { stored, versions, next_version } = if self.catalog.is_unread(&key) {
                self.unread_parts(arn).await?
            } else {
                let entry = self.function_of(arn)?;
                Parts::of(&entry)
            };
            let mut ops = vec![Op::delete(FUNCTION, key.clone()).when(Precondition::Version(stored))];
            ops.extend(versions.into_iter().map(|number| Op::delete(VERSION, version_key(arn, number))));
            if next_version > 1 {
                ops.push(Op::put(DELETED, key.clone(), to_bytes(&DeletedRecord { next_version })));
            }
            let account = self.catalog.account(&account_key);
            let mut record = AccountRecord::clone(&account.record);
            if record.reserved.remove(&*arn.name).is_some() {
                ops.push(put_account(&account_key, &record, account.stored));
            }
            match self.commit(ops).await {
                Ok(()) => return Ok(()),
                Err(error) if error.retryable() => self.let_others_in().await,
                Err(error) => return Err(service_error(&error)),
            }
        }
        Err(too_busy())
    }
}

/// What is deleted with a function, and what is kept of it.
struct Parts {
    /// The version of its record.
    stored: u64,
    versions: Vec<u64>,
    next_version: u64,
}

impl Parts {
    fn of(entry: &Entry) -> Self {
        let Entry { function, stored, .. } = entry;
        let versions = function.versions.keys().copied().collect();
        Self { stored: *stored, versions, next_version: function.record.next_version }
    }
}

/// A record of a deleted function that cannot be read is worth less than the new function.
fn next_version(deleted: Option<&[u8]>) -> u64 {
    let record = deleted.and_then(|bytes| from_bytes::<DeletedRecord>(bytes).ok());
    record.map_or(1, |record| record.next_version)
}

pub(super) fn put_account(key: &str, record: &AccountRecord, stored: Option<u64>) -> Op {
    Op::put(ACCOUNT, key, to_bytes(record)).when(stored.map_or(Precondition::DoesNotExist, Precondition::Version))
}

fn already_exists(arn: &FunctionArn) -> ApiError {
    ApiError::new(ErrorCode::ResourceConflictException, format!("Function already exist: {}", arn.name))
}
