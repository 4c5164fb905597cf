//! What customers keep secret is in no `Debug` of a message, however deep it stands.

use bytes::Bytes;
use lambda_api::types::*;

const SECRET: &str = "hunter2";

#[test]
fn environments_code_and_payloads_are_not_shown() {
    let environment = Environment { variables: Some([("PASSWORD".to_owned(), SECRET.to_owned())].into()) };
    let code = FunctionCode {
        zip_file: Some(Bytes::from_static(SECRET.as_bytes())),
        s3_bucket: Some("bucket".into()),
        ..Default::default()
    };
    let create = CreateFunctionRequest {
        function_name: "f".into(),
        environment: Some(environment.clone()),
        code,
        ..Default::default()
    };
    let update = UpdateFunctionConfigurationRequest { environment: Some(environment), ..Default::default() };
    let variables = Some([("PASSWORD".to_owned(), SECRET.to_owned())].into());
    let shown = FunctionConfiguration {
        environment: Some(EnvironmentResponse { variables, error: None }),
        ..Default::default()
    };
    let invoke = InvocationRequest {
        function_name: "f".into(),
        payload: Some(Bytes::from_static(SECRET.as_bytes())),
        ..Default::default()
    };
    for text in [format!("{create:?}"), format!("{update:?}"), format!("{shown:#?}"), format!("{invoke:?}")] {
        assert!(!text.contains(SECRET) && !text.contains("PASSWORD"), "{text}");
        assert!(text.contains("hidden"), "{text}");
    }
    let text = format!("{create:?}");
    for there in ["function_name: \"f\"", "Environment { variables: Some(hidden) }", "s3_bucket: Some(\"bucket\")"] {
        assert!(text.contains(there), "{there} in {text}");
    }
    assert!(format!("{:?}", Environment::default()).contains("variables: None"));
}
