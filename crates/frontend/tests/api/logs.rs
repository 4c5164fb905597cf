//! CloudWatch Logs' reading operations.

use serde_json::{Value, json};

use crate::client::send;
use crate::fakes::{Running, start};

async fn call(server: &Running, operation: &str, request: Value) -> (u16, Value) {
    let target = format!("Logs_20140328.{operation}");
    let reply = send(server.address, "POST", "/", &[("x-amz-target", &target)], request.to_string().as_bytes()).await;
    assert_eq!(reply.header("content-type"), Some("application/x-amz-json-1.1"));
    (reply.status, reply.json())
}

fn messages(answer: &Value) -> Vec<&str> {
    answer["events"].as_array().unwrap().iter().map(|event| event["message"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn events_are_filtered_and_paged() {
    let server = start().await;
    let group = "/aws/lambda/f";
    let (_, answer) = call(&server, "FilterLogEvents", json!({"logGroupName": group, "startTime": 7000})).await;
    assert_eq!(messages(&answer), ["line 7", "line 8", "line 9"]);
    assert_eq!(answer.get("nextToken"), None);
    assert_eq!(answer["events"][0]["logStreamName"], "a");
    assert_eq!(answer["events"][0]["eventId"], "007");

    let arn = "arn:aws:logs:us-east-1:000000000000:log-group:/aws/lambda/f:*";
    let mut request = json!({"logGroupIdentifier": arn, "limit": 4, "logStreamNames": ["b"], "endTime": 8000});
    let (_, answer) = call(&server, "FilterLogEvents", request.clone()).await;
    assert_eq!(messages(&answer), ["line 0", "line 2", "line 4", "line 6"]);
    request["nextToken"] = answer["nextToken"].clone();
    let (_, answer) = call(&server, "FilterLogEvents", request).await;
    assert_eq!(messages(&answer), ["line 8"], "the end time is included");
}

#[tokio::test]
async fn a_stream_is_read_from_either_end() {
    let server = start().await;
    let base = json!({"logGroupName": "/aws/lambda/f", "logStreamName": "a", "limit": 2});
    let with = |key: &str, value: Value| {
        let mut request = base.clone();
        request[key] = value;
        request
    };
    let (_, last) = call(&server, "GetLogEvents", base.clone()).await;
    assert_eq!(messages(&last), ["line 7", "line 9"]);
    let (_, before) = call(&server, "GetLogEvents", with("nextToken", last["nextBackwardToken"].clone())).await;
    assert_eq!(messages(&before), ["line 3", "line 5"]);
    let (_, end) = call(&server, "GetLogEvents", with("nextToken", last["nextForwardToken"].clone())).await;
    assert!(messages(&end).is_empty());
    assert_eq!(end["nextForwardToken"], last["nextForwardToken"], "the end repeats the token");
    let (_, first) = call(&server, "GetLogEvents", with("startFromHead", json!(true))).await;
    assert_eq!(messages(&first), ["line 1", "line 3"]);
    let (_, second) = call(&server, "GetLogEvents", with("nextToken", first["nextForwardToken"].clone())).await;
    assert_eq!(messages(&second), ["line 5", "line 7"]);
    let (status, error) = call(&server, "GetLogEvents", with("nextToken", json!("x"))).await;
    assert_eq!((status, &error["__type"]), (400, &json!("InvalidParameterException")));
}

#[tokio::test]
async fn groups_and_streams_are_described() {
    let server = start().await;
    let (_, answer) =
        call(&server, "DescribeLogGroups", json!({"logGroupNamePrefix": "/aws/lambda/", "limit": 1})).await;
    assert_eq!(answer["logGroups"][0]["logGroupName"], "/aws/lambda/f");
    assert_eq!(answer["logGroups"][0]["arn"], "arn:aws:logs:us-east-1:000000000000:log-group:/aws/lambda/f:*");
    let next = json!({"logGroupNamePrefix": "/aws/lambda/", "limit": 1, "nextToken": answer["nextToken"]});
    let (_, answer) = call(&server, "DescribeLogGroups", next).await;
    assert_eq!((&answer["logGroups"][0]["logGroupName"], answer.get("nextToken")), (&json!("/aws/lambda/g"), None));

    let by_time = json!({"logGroupName": "/aws/lambda/f", "orderBy": "LastEventTime", "descending": true, "limit": 1});
    let (_, answer) = call(&server, "DescribeLogStreams", by_time).await;
    assert_eq!((&answer["logStreams"][0]["logStreamName"], &answer["nextToken"]), (&json!("a"), &json!("1")));
}

#[tokio::test]
async fn what_is_not_there() {
    let server = start().await;
    for (operation, request, kind) in [
        ("FilterLogEvents", json!({"logGroupName": "nothing"}), "ResourceNotFoundException"),
        ("FilterLogEvents", json!({}), "InvalidParameterException"),
        ("FilterLogEvents", json!({"logGroupName": "other", "limit": 10_001}), "InvalidParameterException"),
        ("FilterLogEvents", json!({"logGroupName": "other", "nextToken": "?"}), "InvalidParameterException"),
        ("GetLogEvents", json!({"logGroupName": "other", "logStreamName": "c"}), "ResourceNotFoundException"),
        ("DescribeLogStreams", json!({"logGroupName": "other", "orderBy": "x"}), "InvalidParameterException"),
        ("DescribeLogStreams", json!({"logGroupName": "other", "nextToken": "x"}), "InvalidParameterException"),
    ] {
        let (status, error) = call(&server, operation, request).await;
        assert_eq!((status, error["__type"].as_str()), (400, Some(kind)), "{operation}");
    }
}
