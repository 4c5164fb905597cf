//! Environment variables of a function.

use std::collections::BTreeMap;

use lambda_api::ApiError;

use crate::rules::invalid;

/// All variables as JSON, in bytes.
const LIMIT: usize = 4096;

/// Set by Lambda, and not to be overridden (AWS Lambda documentation, "Defined runtime environment variables").
const RESERVED: &[&str] = &[
    "_HANDLER",
    "_X_AMZN_TRACE_ID",
    "AWS_ACCESS_KEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_DEFAULT_REGION",
    "AWS_EXECUTION_ENV",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
    "AWS_LAMBDA_FUNCTION_NAME",
    "AWS_LAMBDA_FUNCTION_VERSION",
    "AWS_LAMBDA_INITIALIZATION_TYPE",
    "AWS_LAMBDA_LOG_GROUP_NAME",
    "AWS_LAMBDA_LOG_STREAM_NAME",
    "AWS_LAMBDA_RUNTIME_API",
    "AWS_REGION",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "LAMBDA_RUNTIME_DIR",
    "LAMBDA_TASK_ROOT",
];

pub(crate) fn check(variables: &BTreeMap<String, String>) -> Result<(), ApiError> {
    let used: Vec<&str> = variables.keys().map(String::as_str).filter(|key| RESERVED.contains(key)).collect();
    if !used.is_empty() {
        return Err(invalid(format!(
            "Lambda was unable to configure your environment variables because the environment variables you have \
             provided contains reserved keys that are currently not supported for modification. Reserved keys used in \
             this request: {}",
            used.join(", ")
        )));
    }
    let measured = serde_json::to_string(variables).expect("a map of strings is JSON");
    if measured.len() > LIMIT {
        return Err(invalid(format!(
            "Lambda was unable to configure your environment variables because the environment variables you have \
             provided exceeded the 4KB limit. String measured: {measured}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn reserved_names_are_listed() {
        let error = check(&variables(&[("AWS_REGION", "x"), ("OK", "y"), ("_HANDLER", "z")])).unwrap_err();
        assert!(error.message.ends_with("Reserved keys used in this request: AWS_REGION, _HANDLER"), "{error}");
        check(&variables(&[("PATH", "/x"), ("TZ", "UTC"), ("AWS_LAMBDA_EXEC_WRAPPER", "/opt/x")])).unwrap();
    }

    #[test]
    fn the_limit_is_that_of_the_json() {
        // {"A":"…"} has eight bytes around the value.
        check(&variables(&[("A", &"x".repeat(LIMIT - 8))])).unwrap();
        let error = check(&variables(&[("A", &"x".repeat(LIMIT - 7))])).unwrap_err();
        assert!(error.message.contains("exceeded the 4KB limit. String measured: {\"A\":\"xxx"), "{error}");
    }
}
