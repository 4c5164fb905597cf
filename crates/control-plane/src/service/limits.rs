//! Reserved concurrency and the account's settings.

use lambda_api::ApiError;
use lambda_api::types::{
    AccountLimit, AccountUsage, Concurrency, DeleteFunctionConcurrencyRequest, GetAccountSettingsResponse,
    GetFunctionConcurrencyRequest, GetFunctionConcurrencyResponse, PutFunctionConcurrencyRequest,
};
use store::Precondition;

use super::functions::put_account;
use super::{ControlPlane, Inner, TRIES, service_error, too_busy};
use crate::name::{Caller, Target, not_found};
use crate::record::{AccountRecord, LATEST, account_key, function_key};
use crate::rules::concurrency;

/// Sizes of one package, in bytes (AWS Lambda quotas).
const CODE_SIZE_ZIPPED: i64 = 52_428_800;
const CODE_SIZE_UNZIPPED: i64 = 262_144_000;

impl ControlPlane {
    /// PutFunctionConcurrency; zero stops the function.
    pub async fn put_function_concurrency(
        &self,
        caller: &Caller,
        request: PutFunctionConcurrencyRequest,
    ) -> Result<Concurrency, ApiError> {
        let arn = Target::unqualified(caller, "PutFunctionConcurrency", &request.function_name)?;
        // Checked before: it is not negative.
        let wanted = u32::try_from(request.reserved_concurrent_executions).unwrap_or(0);
        let config = self.inner.config;
        self.inner
            .change_reserved(&arn, |account| {
                concurrency::reserve(account, &arn.name, wanted, config.account_concurrency, config.min_unreserved)
            })
            .await?;
        Ok(Concurrency { reserved_concurrent_executions: Some(request.reserved_concurrent_executions) })
    }

    /// GetFunctionConcurrency.
    pub async fn get_function_concurrency(
        &self,
        caller: &Caller,
        request: GetFunctionConcurrencyRequest,
    ) -> Result<GetFunctionConcurrencyResponse, ApiError> {
        let arn = Target::unqualified(caller, "GetFunctionConcurrency", &request.function_name)?;
        self.inner.function_of(&arn)?;
        let reserved = self.inner.reserved(&arn).and_then(|n| i32::try_from(n).ok());
        Ok(GetFunctionConcurrencyResponse { reserved_concurrent_executions: reserved })
    }

    /// DeleteFunctionConcurrency.
    pub async fn delete_function_concurrency(
        &self,
        caller: &Caller,
        request: DeleteFunctionConcurrencyRequest,
    ) -> Result<(), ApiError> {
        let arn = Target::unqualified(caller, "DeleteFunctionConcurrency", &request.function_name)?;
        self.inner
            .change_reserved(&arn, |account| {
                account.reserved.remove(&*arn.name);
                Ok(())
            })
            .await
    }

    /// GetAccountSettings: limits and use of the caller's account in its region.
    pub async fn get_account_settings(&self, caller: &Caller) -> Result<GetAccountSettingsResponse, ApiError> {
        let inner = &*self.inner;
        let key = account_key(caller.account.as_str(), &caller.region);
        let total = inner.config.account_concurrency;
        let unreserved = total.saturating_sub(inner.catalog.account(&key).record.total_reserved());
        let size = |bytes: u64| i64::try_from(bytes).ok();
        Ok(GetAccountSettingsResponse {
            account_limit: Some(AccountLimit {
                total_code_size: size(inner.config.total_code_size),
                code_size_unzipped: Some(CODE_SIZE_UNZIPPED),
                code_size_zipped: Some(CODE_SIZE_ZIPPED),
                concurrent_executions: i32::try_from(total).ok(),
                unreserved_concurrent_executions: i32::try_from(unreserved).ok(),
            }),
            account_usage: Some(AccountUsage {
                total_code_size: size(inner.code_size(&format!("{key}/"))),
                function_count: size(inner.functions_of(caller).len() as u64),
            }),
        })
    }
}

impl Inner {
    /// Applies a rule to what the functions of an account share, as long as the function is there.
    async fn change_reserved(
        &self,
        arn: &domain::FunctionArn,
        rule: impl Fn(&mut AccountRecord) -> Result<(), ApiError>,
    ) -> Result<(), ApiError> {
        let account_key = account_key(arn.account.as_str(), &arn.region);
        let _turn = self.turn(&function_key(arn)).await;
        let _accounts = self.accounts.lock().await;
        for _ in 0..TRIES {
            let entry = self.catalog.function(&function_key(arn)).ok_or_else(|| not_found(arn.qualified(LATEST)))?;
            let account = self.catalog.account(&account_key);
            let mut record = AccountRecord::clone(&account.record);
            rule(&mut record)?;
            if record == *account.record {
                return Ok(());
            }
            // The function's record goes with it, so that a deletion at the same time leaves no reservation behind.
            let ops = vec![
                put_account(&account_key, &record, account.stored),
                self.put_function(&entry.function, Precondition::Version(entry.stored)),
            ];
            match self.commit(ops).await {
                Ok(()) => return Ok(()),
                Err(error) if error.retryable() => self.let_others_in().await,
                Err(error) => return Err(service_error(&error)),
            }
        }
        Err(too_busy())
    }
}
