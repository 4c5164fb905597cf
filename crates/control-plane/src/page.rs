//! Lists in pages.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use lambda_api::{ApiError, ErrorCode};

/// What AWS returns at most per call, whatever `MaxItems` says.
const PAGE: usize = 50;

/// The next page of `items`, which are in the order of their keys, and the marker of the page after it.
///
/// The marker holds the key of the last item, so that items which come or go between two calls neither repeat nor hide
/// others.
pub(crate) fn page<T>(
    items: impl IntoIterator<Item = (String, T)>,
    marker: Option<&str>,
    max_items: Option<i32>,
) -> Result<(Vec<T>, Option<String>), ApiError> {
    let after = marker.filter(|marker| !marker.is_empty()).map(decode).transpose()?;
    let size = max_items.and_then(|n| usize::try_from(n).ok()).unwrap_or(PAGE).clamp(1, PAGE);
    let mut rest = items.into_iter().filter(|(key, _)| after.as_ref().is_none_or(|after| key > after)).peekable();
    let mut page = Vec::new();
    let mut last = String::new();
    while page.len() < size
        && let Some((key, item)) = rest.next()
    {
        last = key;
        page.push(item);
    }
    let next = rest.peek().is_some().then(|| URL_SAFE_NO_PAD.encode(last));
    Ok((page, next))
}

fn decode(marker: &str) -> Result<String, ApiError> {
    let key = URL_SAFE_NO_PAD.decode(marker).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    key.ok_or_else(|| ApiError::new(ErrorCode::InvalidParameterValueException, "Invalid pagination token"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_cover_everything_once() {
        let items: Vec<_> = (0..120).map(|i| (format!("{i:03}"), i)).collect();
        for max in [None, Some(1), Some(7), Some(50), Some(10_000)] {
            let (mut seen, mut marker) = (Vec::new(), None);
            loop {
                let (page, next) = page(items.clone(), marker.as_deref(), max).unwrap();
                assert!(page.len() <= 50 && !page.is_empty());
                seen.extend(page);
                marker = next;
                if marker.is_none() {
                    break;
                }
            }
            assert_eq!(seen, (0..120).collect::<Vec<_>>(), "{max:?}");
        }
    }

    #[test]
    fn a_marker_that_is_none_of_ours_is_refused() {
        assert!(page(vec![(String::new(), 1)], Some("%%"), None).is_err());
        assert_eq!(page(Vec::<(String, i32)>::new(), None, None).unwrap(), (vec![], None));
    }
}
