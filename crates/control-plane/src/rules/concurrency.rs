//! Reserved concurrency: a guarantee and a cap for one function, taken out of what the account has.

use domain::ConcurrencyLimits;
use lambda_api::ApiError;

use crate::record::AccountRecord;
use crate::rules::invalid;

/// Reserves `wanted` for a function; zero stops it.
pub(crate) fn reserve(
    account: &mut AccountRecord,
    function: &str,
    wanted: u32,
    total: u32,
    min_unreserved: u32,
) -> Result<(), ApiError> {
    let others = account.total_reserved() - account.reserved.get(function).copied().unwrap_or(0);
    let left = total.saturating_sub(others).saturating_sub(wanted);
    // Zero takes nothing from anyone, so it is allowed even where the operator's limits leave too little.
    if wanted > 0 && left < min_unreserved {
        return Err(invalid(format!(
            "Specified ReservedConcurrentExecutions for function decreases account's UnreservedConcurrentExecution below \
             its minimum value of [{min_unreserved}]."
        ))
        .without_type());
    }
    account.reserved.insert(function.to_owned(), wanted);
    Ok(())
}

/// What an invocation of a function is counted against.
pub(crate) fn limits(account: &AccountRecord, function: &str, total: u32) -> ConcurrencyLimits {
    ConcurrencyLimits {
        unreserved: total.saturating_sub(account.total_reserved()),
        reserved: account.reserved.get(function).copied(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever is asked for, the minimum stays unreserved.
        #[test]
        fn a_minimum_is_never_reserved(wishes in prop::collection::vec((0..5u8, 0..1200u32), 0..30)) {
            let mut account = AccountRecord::default();
            for (function, wanted) in wishes {
                let before = account.clone();
                let name = function.to_string();
                match reserve(&mut account, &name, wanted, 1000, 100) {
                    Ok(()) => prop_assert_eq!(limits(&account, &name, 1000).reserved, Some(wanted)),
                    Err(_) => prop_assert_eq!(&account, &before),
                }
                prop_assert!(limits(&account, &name, 1000).unreserved >= 100);
            }
        }
    }
}
