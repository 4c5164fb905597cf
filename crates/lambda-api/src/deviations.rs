//! Where AWS answers otherwise than its own service model says, each with what it was learned from.

use crate::error::{ApiError, ErrorCode};
use crate::validate::java_set_order;

/// Enums whose values `decode` lets pass: the server knows the set, the model does not. Runtimes are data of an
/// installation; what it does not have is answered with [`unknown_runtime`].
pub(crate) fn is_open_enum(name: &str) -> bool {
    name == "Runtime"
}

/// Lists whose constraint on elements does not end with "Member must not be null", as recorded from AWS.
pub(crate) fn elements_may_be_null(list: &str) -> bool {
    matches!(list, "SubnetIds" | "SecurityGroupIds")
}

/// The order in which AWS prints the values of an enum. It is that of a Java hash set, but for one enum recorded
/// otherwise.
pub(crate) fn printed_order<'a>(name: &str, values: &[&'a str]) -> Vec<&'a str> {
    match name {
        "EventSourcePosition" => vec!["LATEST", "AT_TIMESTAMP", "TRIM_HORIZON"],
        _ => java_set_order(values.iter().copied()),
    }
}

/// AWS's answer to a runtime that it does not have, with the ones that there are. Not a ValidationException, and without
/// quotes around the value, as recorded from AWS.
pub fn unknown_runtime<'a>(runtime: &str, available: impl IntoIterator<Item = &'a str>) -> ApiError {
    let available = java_set_order(available).join(", ");
    let message = format!(
        "Value {runtime} at 'runtime' failed to satisfy constraint: Member must satisfy enum value set: [{available}] or \
         be a valid ARN"
    );
    ApiError::new(ErrorCode::InvalidParameterValueException, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_runtime_is_answered_as_recorded() {
        let recorded = "nodejs20.x, python3.14, provided.al2023, python3.12, python3.13, nodejs24.x, nodejs22.x, java25, \
                        python3.10, python3.11, java21, ruby3.3, ruby3.4, ruby3.2, python3.8, python3.9, java17, nodejs16.x, \
                        dotnet10, dotnet8, java11, dotnet6, nodejs18.x, provided.al2, java8.al2";
        let available = crate::types::Runtime::VALUES
            .iter()
            .copied()
            .filter(|value| recorded.split(", ").any(|recorded| recorded == *value));
        let error = unknown_runtime("PYTHON3.9", available);
        assert_eq!(
            error.message,
            format!(
                "Value PYTHON3.9 at 'runtime' failed to satisfy constraint: Member must satisfy enum value set: \
                 [{recorded}] or be a valid ARN"
            )
        );
        assert_eq!((error.code, error.kind), (ErrorCode::InvalidParameterValueException, Some("User")));
    }
}
