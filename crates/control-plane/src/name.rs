//! Who asks, and for which function.

use std::borrow::Cow;
use std::sync::Arc;

use domain::{AccountId, FunctionArn, FunctionRef};
use lambda_api::{ApiError, ErrorCode};

use crate::record::LATEST;
use crate::rules::invalid;

/// Characters of a new function's name that is given as such and not in an ARN, for which the model's 140 hold
/// (AWS Lambda API reference, CreateFunction, `FunctionName`).
const BARE_NAME: usize = 64;

/// The authenticated caller of an operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Caller {
    /// Whose functions it sees.
    pub account: AccountId,
    /// The region that it talks to.
    pub region: Arc<str>,
    /// Its ARN, for resource policies and messages; without one it is the account itself.
    pub principal: Option<String>,
}

impl Caller {
    pub(crate) fn principal_arn(&self) -> Cow<'_, str> {
        match &self.principal {
            Some(arn) => arn.into(),
            None => format!("arn:aws:iam::{}:root", self.account).into(),
        }
    }
}

/// The function that a request is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Target {
    pub arn: FunctionArn,
    pub qualifier: Option<String>,
}

impl Target {
    /// Takes a `FunctionName` of any form, and the `Qualifier` beside it, for an operation on the caller's own function.
    pub fn own(
        caller: &Caller,
        operation: &str,
        function_name: &str,
        qualifier: Option<&str>,
    ) -> Result<Self, ApiError> {
        let target = Self::any(caller, function_name, qualifier)?;
        if target.arn.account == caller.account { Ok(target) } else { Err(denied(caller, operation, &target)) }
    }

    /// The same for an operation that other accounts may be allowed to call.
    pub fn any(caller: &Caller, function_name: &str, qualifier: Option<&str>) -> Result<Self, ApiError> {
        let Some(named) = FunctionRef::parse(function_name) else {
            return Err(ApiError::new(
                ErrorCode::InvalidParameterValueException,
                format!("'{function_name}' is neither a function name nor a function ARN."),
            ));
        };
        if let Some(region) = named.region.filter(|region| **region != *caller.region) {
            return Err(ApiError::new(
                ErrorCode::ResourceNotFoundException,
                format!("Functions from '{region}' are not reachable in this region ('{}')", caller.region),
            ));
        }
        if let (Some(derived), Some(given)) = (&named.qualifier, qualifier)
            && derived != given
        {
            return Err(ApiError::new(
                ErrorCode::InvalidParameterValueException,
                "The derived qualifier from the function name does not match the specified qualifier.",
            ));
        }
        // The parser takes nothing else for an account.
        let account = named.account.and_then(|id| AccountId::parse(&id)).unwrap_or_else(|| caller.account.clone());
        let arn = FunctionArn { region: caller.region.clone(), account, name: named.name.into() };
        Ok(Self { arn, qualifier: qualifier.map(str::to_owned).or(named.qualifier) })
    }

    /// For an operation on a function as a whole.
    pub fn unqualified(caller: &Caller, operation: &str, function_name: &str) -> Result<FunctionArn, ApiError> {
        let target = Self::own(caller, operation, function_name, None)?;
        match target.qualifier.as_deref() {
            None | Some(LATEST) => Ok(target.arn),
            Some(_) => Err(ApiError::new(
                ErrorCode::InvalidParameterValueException,
                "This operation is permitted on Lambda functions only. Aliases and versions do not support this \
                 operation. Please specify either a function name or an unqualified function ARN.",
            )),
        }
    }

    /// The ARN as the caller named the function: with the qualifier only if one was given.
    pub fn full_arn(&self) -> String {
        match &self.qualifier {
            Some(qualifier) => self.arn.qualified(qualifier),
            None => self.arn.text(),
        }
    }
}

/// Refuses the too long name of a new function. Not a ValidationException, though it has the words of one.
pub(crate) fn check_bare_name(function_name: &str) -> Result<(), ApiError> {
    if function_name.contains(':') || function_name.len() <= BARE_NAME {
        return Ok(());
    }
    Err(invalid(format!(
        "1 validation error detected: Value '{function_name}' at 'functionName' failed to satisfy constraint: Member must \
         have length less than or equal to {BARE_NAME}"
    )))
}

/// The caller is of another account, and nothing allows it.
pub(crate) fn denied(caller: &Caller, operation: &str, target: &Target) -> ApiError {
    ApiError::new(
        ErrorCode::AccessDeniedException,
        format!(
            "User: {} is not authorized to perform: lambda:{operation} on resource: {} because no resource-based policy \
             allows the lambda:{operation} action",
            caller.principal_arn(),
            target.full_arn()
        ),
    )
}

/// There is no such function, version or alias.
pub(crate) fn not_found(arn: impl std::fmt::Display) -> ApiError {
    ApiError::new(ErrorCode::ResourceNotFoundException, format!("Function not found: {arn}"))
}

/// A published version's number; `None` for `$LATEST` and aliases.
pub(crate) fn version_number(qualifier: &str) -> Option<u64> {
    qualifier.bytes().all(|b| b.is_ascii_digit()).then(|| qualifier.parse().ok()).flatten()
}

/// Whether a qualifier can only be an alias: not a number, and without the `$` of `$LATEST`.
pub(crate) fn is_alias(qualifier: &str) -> bool {
    !qualifier.bytes().all(|b| b.is_ascii_digit()) && !qualifier.contains('$')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller() -> Caller {
        Caller {
            account: AccountId::parse("111111111111").unwrap(),
            region: "us-east-1".into(),
            principal: Some("arn:aws:iam::111111111111:user/me".into()),
        }
    }

    #[test]
    fn every_form_of_a_name_is_the_same_function() {
        for name in [
            "f",
            "function:f",
            "111111111111:f",
            "111111111111:function:f",
            "arn:aws:lambda:us-east-1:111111111111:function:f",
        ] {
            let target = Target::own(&caller(), "GetFunction", name, Some("live")).unwrap();
            assert_eq!(target.full_arn(), "arn:aws:lambda:us-east-1:111111111111:function:f:live", "{name}");
            let target = Target::own(&caller(), "GetFunction", &format!("{name}:live"), None).unwrap();
            assert_eq!(target.qualifier.as_deref(), Some("live"), "{name}");
        }
    }

    #[test]
    fn other_accounts_and_regions_are_refused() {
        let arn = "arn:aws:lambda:us-east-1:222222222222:function:f";
        let error = Target::own(&caller(), "GetFunction", arn, None).unwrap_err();
        assert_eq!(error.code, ErrorCode::AccessDeniedException);
        assert!(error.message.contains("user/me is not authorized to perform: lambda:GetFunction"), "{error}");
        assert!(Target::any(&caller(), arn, None).is_ok());
        let error = Target::any(&caller(), "arn:aws:lambda:eu-west-1:111111111111:function:f", None).unwrap_err();
        assert_eq!(error.message, "Functions from 'eu-west-1' are not reachable in this region ('us-east-1')");
    }

    #[test]
    fn a_bare_name_has_64_characters_at_most() {
        assert!(check_bare_name(&"a".repeat(64)).is_ok());
        assert!(check_bare_name(&format!("111111111111:function:{}", "a".repeat(65))).is_ok());
        let error = check_bare_name(&"a".repeat(65)).unwrap_err();
        assert_eq!((error.code, error.kind), (ErrorCode::InvalidParameterValueException, Some("User")));
        assert!(error.message.ends_with("Member must have length less than or equal to 64"), "{error}");
    }

    #[test]
    fn qualifiers_by_their_look() {
        assert_eq!(version_number("12"), Some(12));
        assert_eq!(version_number("$LATEST"), None);
        assert_eq!(version_number("99999999999999999999999"), None);
        assert!(is_alias("2024-01-02") && !is_alias("2024") && !is_alias("a$b"));
    }
}
