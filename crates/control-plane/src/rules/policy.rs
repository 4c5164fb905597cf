//! Resource policies: who else may call a function, version or alias.

use domain::AccountId;
use lambda_api::types::AddPermissionRequest;
use lambda_api::{ApiError, ErrorCode};
use serde_json::{Map, Value, json};

use crate::function::{Function, Stamp};
use crate::name::Caller;
use crate::record::{LATEST, Policy, Unknown};
use crate::rules::invalid;

/// Size of a policy in bytes.
const LIMIT: usize = 20 * 1024;

/// AddPermission. Returns the statement.
pub(crate) fn add(
    function: &mut Function,
    qualifier: Option<&str>,
    request: &AddPermissionRequest,
    stamp: &mut Stamp<'_>,
) -> Result<Value, ApiError> {
    if qualifier == Some(LATEST) {
        return Err(invalid("We currently do not support adding policies for $LATEST."));
    }
    function.check_qualifier(qualifier)?;
    check_revision(function, qualifier, request.revision_id.as_deref(), "GetPolicy")?;
    let statement = statement(&qualified(function, qualifier), request)?;
    let mut policy = function.policy(qualifier).cloned().unwrap_or_else(|| Policy {
        revision_id: String::new(),
        statements: Vec::new(),
        unknown: Unknown::new(),
    });
    if policy.statements.iter().any(|s| s["Sid"] == request.statement_id.as_str()) {
        return Err(ApiError::new(
            ErrorCode::ResourceConflictException,
            format!(
                "The statement id ({}) provided already exists. Please provide a new statement id, or remove the \
                 existing statement.",
                request.statement_id
            ),
        ));
    }
    policy.statements.push(statement.clone());
    let size = document(&policy).len();
    if size > LIMIT {
        return Err(ApiError::new(
            ErrorCode::PolicyLengthExceededException,
            format!("The final policy size ({size}) is bigger than the limit ({LIMIT})."),
        ));
    }
    policy.revision_id = touch(function, qualifier, stamp);
    function.record.policies.insert(qualifier.unwrap_or(LATEST).to_owned(), policy);
    Ok(statement)
}

/// RemovePermission. A policy without statements is gone.
pub(crate) fn remove(
    function: &mut Function,
    qualifier: Option<&str>,
    statement_id: &str,
    revision_id: Option<&str>,
    stamp: &mut Stamp<'_>,
) -> Result<(), ApiError> {
    function.check_qualifier(qualifier)?;
    let Some(mut policy) = function.policy(qualifier).cloned() else {
        return Err(missing("No policy is associated with the given resource."));
    };
    let Some(position) = policy.statements.iter().position(|s| s["Sid"] == statement_id) else {
        return Err(missing(format!("Statement {statement_id} is not found in resource policy.")));
    };
    check_revision(function, qualifier, revision_id, "GetFunction/GetAlias")?;
    policy.statements.remove(position);
    policy.revision_id = touch(function, qualifier, stamp);
    let key = qualifier.unwrap_or(LATEST);
    if policy.statements.is_empty() {
        function.record.policies.remove(key);
    } else {
        function.record.policies.insert(key.to_owned(), policy);
    }
    Ok(())
}

/// GetPolicy: the document and its revision.
pub(crate) fn get(function: Option<&Function>, qualifier: Option<&str>) -> Result<(String, String), ApiError> {
    let policy = function.and_then(|f| f.policy(qualifier));
    let policy = policy.ok_or_else(|| missing("The resource you requested does not exist."))?;
    Ok((document(policy), policy.revision_id.clone()))
}

/// Whether the policy of what was named lets a caller from another account invoke it. A condition is about a service or
/// an organisation that calls for someone; a direct caller meets none.
pub(crate) fn allows_invoke(function: &Function, qualifier: Option<&str>, caller: &Caller) -> bool {
    let statements = function.policy(qualifier).map(|p| p.statements.as_slice()).unwrap_or_default();
    statements.iter().any(|statement| {
        let action = matches!(statement["Action"].as_str(), Some("*" | "lambda:*" | "lambda:InvokeFunction"));
        action && statement.get("Condition").is_none() && is_principal(&statement["Principal"], caller)
    })
}

fn is_principal(principal: &Value, caller: &Caller) -> bool {
    if principal == "*" {
        return true;
    }
    match principal["AWS"].as_str() {
        Some(arn) => arn == format!("arn:aws:iam::{}:root", caller.account) || arn == caller.principal_arn(),
        None => false,
    }
}

fn statement(resource: &str, request: &AddPermissionRequest) -> Result<Value, ApiError> {
    if request.function_url_auth_type.is_some() && request.action != "lambda:InvokeFunctionUrl" {
        return Err(invalid("FunctionUrlAuthType is only supported for lambda:InvokeFunctionUrl action"));
    }
    let mut statement = json!({
        "Sid": request.statement_id,
        "Effect": "Allow",
        "Principal": principal(&request.principal)?,
        "Action": request.action,
        "Resource": resource,
    });
    let condition = condition(request);
    if !condition.is_empty() {
        statement["Condition"] = Value::Object(condition);
    }
    Ok(statement)
}

fn principal(text: &str) -> Result<Value, ApiError> {
    // Services of AWS, and those of Amazon's that invoke functions, such as alexa-appkit.amazon.com.
    if [".amazonaws.com", ".amazonaws.com.cn", ".amazon.com"].iter().any(|end| text.ends_with(end)) {
        return Ok(json!({ "Service": text }));
    }
    if let Some(account) = AccountId::parse(text) {
        return Ok(json!({ "AWS": format!("arn:aws:iam::{account}:root") }));
    }
    let mut parts = text.split(':');
    let is_arn = parts.next() == Some("arn") && parts.nth(1).is_some_and(|service| matches!(service, "iam" | "sts"));
    match text {
        "*" => Ok(json!("*")),
        _ if is_arn => Ok(json!({ "AWS": text })),
        _ => Err(invalid("The provided principal was invalid. Please check the principal and try again.")),
    }
}

fn condition(request: &AddPermissionRequest) -> Map<String, Value> {
    let auth_type = request.function_url_auth_type.as_ref().map(|t| t.as_str().to_owned());
    let equals: Map<String, Value> = [
        ("AWS:SourceAccount", request.source_account.clone()),
        ("lambda:EventSourceToken", request.event_source_token.clone()),
        ("lambda:FunctionUrlAuthType", auth_type),
        ("aws:PrincipalOrgID", request.principal_org_id.clone()),
    ]
    .into_iter()
    .filter_map(|(key, value)| Some((key.to_owned(), Value::from(value?))))
    .collect();
    let mut condition = Map::new();
    if !equals.is_empty() {
        condition.insert("StringEquals".to_owned(), Value::Object(equals));
    }
    if let Some(arn) = &request.source_arn {
        condition.insert("ArnLike".to_owned(), json!({ "AWS:SourceArn": arn }));
    }
    if let Some(invoked_via_url) = request.invoked_via_function_url {
        condition.insert("Bool".to_owned(), json!({ "lambda:InvokedViaFunctionUrl": invoked_via_url.to_string() }));
    }
    condition
}

fn document(policy: &Policy) -> String {
    json!({ "Version": "2012-10-17", "Id": "default", "Statement": policy.statements }).to_string()
}

/// A policy's revision is also that of its function, version or alias, until the latter changes by itself. Either is
/// accepted as a guard.
fn check_revision(
    function: &Function,
    qualifier: Option<&str>,
    expected: Option<&str>,
    operation: &str,
) -> Result<(), ApiError> {
    let Some(expected) = expected else { return Ok(()) };
    let policy = function.policy(qualifier).is_some_and(|policy| policy.revision_id == expected);
    if policy || revision(function, qualifier) == Some(expected) {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::PreconditionFailedException,
        format!(
            "The Revision Id provided does not match the latest Revision Id. Call the {operation} API to retrieve the \
             latest Revision Id"
        ),
    ))
}

fn revision<'a>(function: &'a Function, qualifier: Option<&str>) -> Option<&'a str> {
    match qualifier.and_then(|name| function.record.aliases.get(name)) {
        Some(alias) => Some(&alias.revision_id),
        None => function.version(qualifier).ok().map(|version| version.revision_id.as_str()),
    }
}

/// Gives what the policy belongs to a new revision, which is the policy's as well.
fn touch(function: &mut Function, qualifier: Option<&str>, stamp: &mut Stamp<'_>) -> String {
    let id = stamp.id();
    if let Some(alias) = qualifier.and_then(|name| function.record.aliases.get_mut(name)) {
        alias.revision_id.clone_from(&id);
    } else if let Some(number) = qualifier.and_then(crate::name::version_number) {
        function.set_revision(number, &id);
    } else {
        function.record.latest.revision_id.clone_from(&id);
    }
    id
}

fn qualified(function: &Function, qualifier: Option<&str>) -> String {
    match qualifier {
        Some(qualifier) => function.arn.qualified(qualifier),
        None => function.arn.to_string(),
    }
}

fn missing(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::ResourceNotFoundException, message)
}
