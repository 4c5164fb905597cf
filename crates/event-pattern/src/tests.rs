use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

#[track_caller]
fn check(pattern: Value, matching: &[Value], others: &[Value]) {
    let parsed = Pattern::parse(&pattern.to_string()).unwrap();
    for event in matching {
        assert!(parsed.matches(event), "{pattern} should match {event}");
    }
    for event in others {
        assert!(!parsed.matches(event), "{pattern} should not match {event}");
    }
}

/// The same for the value of one field.
#[track_caller]
fn leaf(conditions: Value, matching: &[Value], others: &[Value]) {
    let wrap = |values: &[Value]| values.iter().map(|v| json!({"a": v})).collect::<Vec<_>>();
    check(json!({"a": conditions}), &wrap(matching), &wrap(others));
}

#[test]
fn exact_values() {
    leaf(json!(["x", "y"]), &[json!("x"), json!("y"), json!(["z", "y"])], &[json!("X"), json!(null), json!({"x": 1})]);
    leaf(json!([300]), &[json!(300), json!(300.0), json!(3.0e2)], &[json!("300"), json!(301)]);
    leaf(json!([9_007_199_254_740_993_u64]), &[], &[json!(9_007_199_254_740_992_u64)]);
    leaf(json!([true]), &[json!(true)], &[json!(false), json!("true"), json!(1)]);
    leaf(json!([null]), &[json!(null)], &[json!(""), json!(0), json!([])]);
    leaf(json!([""]), &[json!("")], &[json!(null), json!(" ")]);
    check(json!({"a": ["x"]}), &[json!({"a": "x", "b": 1})], &[json!({}), json!({"b": "x"})]);
}

#[test]
fn prefixes_and_suffixes() {
    leaf(json!([{"prefix": "ab"}]), &[json!("ab"), json!("abc")], &[json!("Abc"), json!("xab"), json!(1)]);
    leaf(json!([{"suffix": ".png"}]), &[json!("a.png")], &[json!("a.PNG"), json!("png")]);
    leaf(json!([{"prefix": {"equals-ignore-case": "aB"}}]), &[json!("ABc"), json!("abc")], &[json!("ac")]);
    leaf(json!([{"suffix": {"equals-ignore-case": ".pNg"}}]), &[json!("a.PNG")], &[json!("a.jpg")]);
    leaf(json!([{"equals-ignore-case": "alpha"}]), &[json!("ALPHA"), json!("alpha")], &[json!("alphabet")]);
    leaf(json!([{"wildcard": "dir/*.png"}]), &[json!("dir/a/b.png")], &[json!("dir/a.jpg")]);
}

#[test]
fn anything_but() {
    leaf(
        json!([{"anything-but": "x"}]),
        &[json!("y"), json!(1), json!(null), json!(["x", "y"])],
        &[json!("x"), json!([])],
    );
    leaf(json!([{"anything-but": ["x", "y"]}]), &[json!("z")], &[json!("x"), json!("y"), json!(["x", "y"])]);
    leaf(json!([{"anything-but": [1, 2]}]), &[json!(3), json!("1")], &[json!(1), json!(2.0)]);
    leaf(json!([{"anything-but": {"prefix": "ab"}}]), &[json!("b"), json!(5)], &[json!("abc")]);
    leaf(json!([{"anything-but": {"suffix": ["a", "b"]}}]), &[json!("xc")], &[json!("xa"), json!("xb")]);
    leaf(json!([{"anything-but": {"equals-ignore-case": ["A", "b"]}}]), &[json!("c")], &[json!("a"), json!("B")]);
    leaf(json!([{"anything-but": {"wildcard": "*/lib/*"}}]), &[json!("a/b")], &[json!("a/lib/b")]);
    check(json!({"a": [{"anything-but": "x"}]}), &[], &[json!({}), json!({"a": {"b": "y"}})]);
}

#[test]
fn numbers() {
    leaf(json!([{"numeric": [">", 100]}]), &[json!(101), json!(100.5)], &[json!(100), json!("101")]);
    leaf(json!([{"numeric": [">=", 0, "<", 5]}]), &[json!(0), json!(4.9)], &[json!(-1), json!(5)]);
    leaf(json!([{"numeric": ["=", 3.018e2]}]), &[json!(301.8)], &[json!(302)]);
    leaf(json!([{"numeric": ["<=", -5e9]}]), &[json!(-5e9)], &[json!(0)]);
}

#[test]
fn existence_is_of_leaves() {
    leaf(json!([{"exists": true}]), &[json!(1), json!(null), json!("")], &[json!({"b": 1}), json!([])]);
    check(
        json!({"a": [{"exists": false}]}),
        &[json!({}), json!({"b": 1}), json!({"a": {"b": 1}})],
        &[json!({"a": null}), json!({"a": 1})],
    );
    check(
        json!({"a": {"b": [{"exists": false}]}}),
        &[json!({}), json!({"a": {}}), json!({"a": 1})],
        &[json!({"a": {"b": 0}})],
    );
    leaf(json!([{"exists": false}, "x"]), &[json!("x"), json!([])], &[json!("y")]);
}

#[test]
fn networks() {
    leaf(json!([{"cidr": "10.0.0.0/24"}]), &[json!("10.0.0.255")], &[json!("10.0.1.0"), json!("x"), json!("::1")]);
    leaf(json!([{"cidr": "2001:db8::/32"}]), &[json!("2001:db8:1::1")], &[json!("2001:db9::1"), json!("10.0.0.1")]);
    leaf(json!([{"cidr": "0.0.0.0/0"}]), &[json!("1.2.3.4")], &[json!("::1")]);
    leaf(json!([{"cidr": "10.0.0.7/32"}]), &[json!("10.0.0.7")], &[json!("10.0.0.6")]);
}

#[test]
fn alternatives_and_nesting() {
    let pattern = json!({"kind": ["k"], "$or": [{"a": {"b": [1]}}, {"c": [{"prefix": "x"}], "d": ["y"]}]});
    check(
        pattern,
        &[json!({"kind": "k", "a": {"b": 1}}), json!({"kind": "k", "c": "xx", "d": "y"})],
        &[json!({"kind": "k"}), json!({"kind": "k", "c": "xx"}), json!({"kind": "z", "a": {"b": 1}})],
    );
    // Both fields in the same element.
    check(
        json!({"a": {"x": [1], "y": [2]}}),
        &[json!({"a": [{"x": 0}, {"x": 1, "y": 2}]}), json!({"a": {"x": 1, "y": 2}})],
        &[json!({"a": [{"x": 1}, {"y": 2}]}), json!({"a": []}), json!({"a": "s"}), json!({"a": [1]})],
    );
    check(json!({"a": {"$or": [{"x": [1]}, {"y": [2]}]}}), &[json!({"a": {"y": 2}})], &[json!({"y": 2})]);
}

#[test]
fn what_is_no_pattern_is_refused() {
    for (text, place) in [
        ("null", "the root"),
        (r#""simple string""#, "the root"),
        ("[]", "the root"),
        ("{}", "the root"),
        (r#"{"eventSource": "aws:sqs"}"#, "eventSource"),
        (r#"{"eventSource": []}"#, "eventSource"),
        (r#"{"a": {"b": {}}}"#, "a.b"),
        (r#"{"a": {"b": [[1]]}}"#, "a.b"),
        (r#"{"a": [{"prefix": 1}]}"#, "a"),
        (r#"{"a": [{"prefix": "x", "suffix": "y"}]}"#, "a"),
        (r#"{"a": [{}]}"#, "a"),
        (r#"{"a": [{"unknown": 1}]}"#, "a"),
        (r#"{"a": [{"exists": "yes"}]}"#, "a"),
        (r#"{"a": [{"numeric": []}]}"#, "a"),
        (r#"{"a": [{"numeric": [">"]}]}"#, "a"),
        (r#"{"a": [{"numeric": ["!", 1]}]}"#, "a"),
        (r#"{"a": [{"numeric": [">", "1"]}]}"#, "a"),
        (r#"{"a": [{"numeric": [">", 5, "<", 5]}]}"#, "a"),
        (r#"{"a": [{"numeric": ["<", 5, ">", 1]}]}"#, "a"),
        (r#"{"a": [{"numeric": ["=", 5e10]}]}"#, "a"),
        (r#"{"a": [{"anything-but": []}]}"#, "a"),
        (r#"{"a": [{"anything-but": ["x", 1]}]}"#, "a"),
        (r#"{"a": [{"anything-but": {"numeric": ["=", 1]}}]}"#, "a"),
        (r#"{"a": [{"wildcard": "a**b"}]}"#, "a"),
        (r#"{"a": [{"cidr": "10.0.0.0"}]}"#, "a"),
        (r#"{"a": [{"cidr": "10.0.0.0/33"}]}"#, "a"),
        (r#"{"a": [{"cidr": "10.0.0.0/+8"}]}"#, "a"),
        (r#"{"$or": [{"a": [1]}]}"#, "$or"),
        (r#"{"$or": [{"a": [1]}, 2]}"#, "$or"),
    ] {
        let error = Pattern::parse(text).expect_err(text);
        assert!(matches!(&error, PatternError::Rule { path, .. } if path == place), "{text}: {error}");
    }
    assert!(matches!(Pattern::parse("{"), Err(PatternError::Json(_))));
}

#[test]
fn what_a_field_is_wanted_to_be() {
    let wants = |text: &str| Pattern::parse(text).unwrap().wants_object("body");
    assert_eq!(wants(r#"{"body": {"a": [1]}}"#), Some(true));
    assert_eq!(wants(r#"{"body": ["x"]}"#), Some(false));
    assert_eq!(wants(r#"{"other": {"body": [1]}}"#), None);
    assert_eq!(wants(r#"{"$or": [{"body": {"a": [1]}}, {"body": {"b": [1]}}]}"#), Some(true));
    assert_eq!(wants(r#"{"$or": [{"body": ["x"]}, {"body": {"b": [1]}}]}"#), None);
}

/// Any JSON, small.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3..3i64).prop_map(Value::from),
        "[a-c]{0,2}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[a-c]|prefix|exists|numeric|anything-but|[$]or", inner, 0..3)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// A pattern that asks for exactly the leaves of an event.
fn pattern_of(event: &Value) -> Option<Value> {
    match event {
        Value::Object(object) if !object.is_empty() => {
            let fields = object.iter().map(|(name, value)| Some((name.clone(), pattern_of(value)?)));
            fields.collect::<Option<_>>().map(Value::Object)
        }
        Value::Object(_) | Value::Array(_) => None,
        leaf => Some(json!([leaf])),
    }
}

proptest! {
    /// Whatever comes, it neither panics nor hangs.
    #[test]
    fn any_text_is_a_pattern_or_an_error(pattern in any_json(), event in any_json()) {
        if let Ok(pattern) = Pattern::parse(&pattern.to_string()) {
            pattern.matches(&event);
        }
    }

    #[test]
    fn an_event_matches_its_own_values(event in any_json()) {
        if event.is_object() && let Some(pattern) = pattern_of(&event)
            && let Ok(parsed) = Pattern::parse(&pattern.to_string())
        {
            prop_assert!(parsed.matches(&event), "{} {}", pattern, event);
        }
    }

    /// For a single leaf, `anything-but` is the opposite of the test, and `exists` of its own opposite.
    #[test]
    fn opposites(value in prop_oneof!["[a-c]{0,2}".prop_map(Value::from), (-2..2i64).prop_map(Value::from)], wanted in "[a-c]{0,2}") {
        let event = json!({"f": value});
        let holds = |condition: Value| Pattern::parse(&json!({"f": [condition]}).to_string()).unwrap().matches(&event);
        prop_assert_ne!(holds(json!(wanted)), holds(json!({"anything-but": wanted})));
        prop_assert_ne!(holds(json!({"prefix": wanted})), holds(json!({"anything-but": {"prefix": wanted}})));
        prop_assert_ne!(holds(json!({"exists": true})), holds(json!({"exists": false})));
    }
}
