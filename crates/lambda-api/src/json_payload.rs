//! What AWS says of a body that is not JSON: the words of the Java parser Jackson, which it runs on.

use serde::de::IgnoredAny;

use crate::error::{ApiError, ErrorCode};

/// Refuses an invocation payload that is not one JSON value, as AWS does. An empty payload is fine.
pub fn check_json_payload(payload: &[u8]) -> Result<(), ApiError> {
    if payload.is_empty() {
        return Ok(());
    }
    let is_json = std::str::from_utf8(payload).is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok());
    if is_json { Ok(()) } else { Err(not_json(&format!("Could not parse payload into json: {}", complaint(payload)))) }
}

/// The error for a request body that is not JSON.
pub(crate) fn body_not_json(body: &[u8]) -> ApiError {
    not_json(&complaint(body))
}

fn not_json(complaint: &str) -> ApiError {
    ApiError::new(
        ErrorCode::InvalidRequestContentException,
        format!("Could not parse request body into json: {complaint}"),
    )
}

const EXPECTED: &str = "(JSON String, Number, Array, Object or token 'null', 'true' or 'false')";

/// What is wrong with bytes that are not JSON, and where.
fn complaint(body: &[u8]) -> String {
    let start = body.iter().position(|byte| !byte.is_ascii_whitespace()).unwrap_or(body.len());
    let (text, at) = match (body.get(start), std::str::from_utf8(body)) {
        (None, _) => ("No content to map due to end-of-input".to_owned(), start),
        (Some(&first), _) if !starts_token(first) => {
            (format!("Unexpected character ({}): expected a valid value {EXPECTED}", described(first)), start)
        }
        (Some(_), Err(error)) => {
            let at = error.valid_up_to();
            let byte = body.get(at).copied().unwrap_or(0);
            // Jackson has read the byte that it complains of.
            (format!("Invalid UTF-8 start byte 0x{byte:x}"), at + 1)
        }
        (Some(_), Ok(text)) => match serde_json::from_str::<IgnoredAny>(text) {
            Err(error) if error.is_eof() => ("Unexpected end-of-input".to_owned(), body.len()),
            Err(_) if body[start].is_ascii_alphabetic() => {
                let word: String = text[start..].chars().take_while(char::is_ascii_alphanumeric).collect();
                (format!("Unrecognized token '{word}': was expecting {EXPECTED}"), start + word.len())
            }
            Err(error) => {
                let at = offset(text, error.line(), error.column());
                let byte = body.get(at).copied().unwrap_or(0);
                (format!("Unexpected character ({})", described(byte)), at)
            }
            Ok(_) => ("Unexpected content".to_owned(), start),
        },
    };
    let before = &body[..at.min(body.len())];
    let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
    let column = at - before.iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1) + 1;
    format!(
        "{text}\n at [Source: REDACTED (`StreamReadFeature.INCLUDE_SOURCE_IN_LOCATION` disabled); line: {line}, column: \
         {column}]"
    )
}

fn starts_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'"' | b'{' | b'[' | b'-')
}

/// A character as Jackson names it.
fn described(byte: u8) -> String {
    match byte {
        0x20..=0x7e => format!("'{}' (code {byte})", char::from(byte)),
        _ => format!("(CTRL-CHAR, code {byte})"),
    }
}

/// The byte that serde_json's line and column mean.
fn offset(text: &str, line: usize, column: usize) -> usize {
    let line_start: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    line_start + column.saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(payload: &[u8]) -> String {
        check_json_payload(payload).expect_err("refused").message
    }

    #[test]
    fn payloads_are_refused_in_the_recorded_words() {
        assert_eq!(
            message(b"n\x87r\x9e\xe9\xb5\xd7I\xee\x9bmt"),
            "Could not parse request body into json: Could not parse payload into json: Invalid UTF-8 start byte 0x87\n at \
             [Source: REDACTED (`StreamReadFeature.INCLUDE_SOURCE_IN_LOCATION` disabled); line: 1, column: 3]"
        );
        assert_eq!(
            message(b"\x99\xeb,j\x07\xa1zYh"),
            "Could not parse request body into json: Could not parse payload into json: Unexpected character ((CTRL-CHAR, \
             code 153)): expected a valid value (JSON String, Number, Array, Object or token 'null', 'true' or 'false')\n \
             at [Source: REDACTED (`StreamReadFeature.INCLUDE_SOURCE_IN_LOCATION` disabled); line: 1, column: 1]"
        );
    }

    #[test]
    fn other_bad_payloads_get_a_place() {
        assert!(message(b"hello").contains("Unrecognized token 'hello'"));
        assert!(message(b"{\"a\":").contains("Unexpected end-of-input"));
        assert!(
            message(b"{\n\"a\" 1}").contains("Unexpected character ('1' (code 49))"),
            "{}",
            message(b"{\n\"a\" 1}")
        );
        assert!(message(b"{} {}").contains("column: 4"));
        assert!(message(b"   ").contains("end-of-input"));
    }

    #[test]
    fn json_passes() {
        for payload in [&b""[..], b"null", b" {\"a\": [1, 2.5e3, \"\\u00e9\"]} ", b"\"x\""] {
            assert_eq!(check_json_payload(payload), Ok(()));
        }
    }
}
