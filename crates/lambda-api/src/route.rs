//! From method, path and query string to an operation, by a walk down the generated tree of path segments.

use http::Method;

use crate::OperationId;
use crate::generated::routes::ROOT;
use crate::uri;

/// A place in the tree: what may follow in the path, and the operations whose path ends here. A place has literals or a
/// label, never both, so the walk never goes back.
#[derive(Debug)]
pub struct Node {
    pub literals: &'static [(&'static str, Node)],
    pub label: Option<&'static Node>,
    /// Whether the label that leads here takes the rest of the path.
    pub greedy: bool,
    pub routes: &'static [Route],
}

/// An operation at the end of its path.
#[derive(Debug)]
pub struct Route {
    pub method: &'static str,
    /// A query parameter that the operation asks for; these routes come first.
    pub query: Option<(&'static str, &'static str)>,
    pub operation: OperationId,
    pub labels: &'static [&'static str],
}

/// The operation that a request asks for, and the labels of its path, unescaped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routed {
    /// The operation.
    pub operation: OperationId,
    /// Name and value of each label.
    pub labels: Vec<(&'static str, String)>,
}

impl Routed {
    /// The value of a label by its name in the model, such as `FunctionName`.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(label, _)| *label == name).map(|(_, value)| value.as_str())
    }
}

/// Why a request leads to no operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteError {
    /// No operation has such a path.
    NotFound,
    /// Operations have this path, but not with this method.
    MethodNotAllowed,
}

impl std::fmt::Display for RouteError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotFound => "no operation has this path",
            Self::MethodNotAllowed => "no operation has this path with this method",
        })
    }
}

impl std::error::Error for RouteError {}

/// More labels than any path of the model has; a test holds that.
const MAX_LABELS: usize = 4;

/// Finds the operation of a request. `path` is the path as it came, still escaped; a slash at its end is ignored, as AWS
/// does. Allocates the labels only.
pub fn route(method: &Method, path: &str, query: Option<&str>) -> Result<Routed, RouteError> {
    route_in(&ROOT, method, path, query)
}

fn route_in(root: &'static Node, method: &Method, path: &str, query: Option<&str>) -> Result<Routed, RouteError> {
    let path = path.strip_prefix('/').ok_or(RouteError::NotFound)?;
    let path = path.strip_suffix('/').unwrap_or(path);
    let mut values = [""; MAX_LABELS];
    let mut found = 0;
    let mut node = root;
    let mut rest = Some(path);
    while let Some(remaining) = rest {
        let (segment, after) = match remaining.split_once('/') {
            Some((segment, after)) => (segment, Some(after)),
            None => (remaining, None),
        };
        rest = after;
        if let Some(next) = node.label {
            let slot = values.get_mut(found).ok_or(RouteError::NotFound)?;
            found += 1;
            node = next;
            if node.greedy {
                *slot = remaining;
                break;
            }
            *slot = segment;
        } else {
            let (_, next) =
                node.literals.iter().find(|(literal, _)| *literal == segment).ok_or(RouteError::NotFound)?;
            node = next;
        }
    }
    if node.routes.is_empty() {
        return Err(RouteError::NotFound);
    }
    let route = node
        .routes
        .iter()
        .find(|route| route.method == method.as_str() && route.query.is_none_or(|literal| has_literal(query, literal)))
        .ok_or(RouteError::MethodNotAllowed)?;
    let labels = route.labels.iter().zip(values).map(|(name, value)| (*name, uri::unescape(value))).collect();
    Ok(Routed { operation: route.operation, labels })
}

fn has_literal(query: Option<&str>, (name, value): (&str, &str)) -> bool {
    query.is_some_and(|query| uri::query_pairs(query).any(|pair| pair.0 == name && pair.1 == value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routed(method: Method, path: &str, query: Option<&str>) -> (OperationId, Vec<String>) {
        let routed = route(&method, path, query).unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        (routed.operation, routed.labels.into_iter().map(|(_, value)| value).collect())
    }

    #[test]
    fn labels_arrive_plain_or_escaped() {
        let arn = "arn:aws:lambda:us-east-1:000000000000:function:f".to_owned();
        for path in [
            "/2015-03-31/functions/arn:aws:lambda:us-east-1:000000000000:function:f/invocations",
            "/2015-03-31/functions/arn%3Aaws%3Alambda%3aus-east-1:000000000000:function:f/invocations",
        ] {
            assert_eq!(routed(Method::POST, path, None), (OperationId::Invoke, vec![arn.clone()]));
        }
        let path = "/2015-03-31/functions/f/policy/a%2Fb";
        assert_eq!(routed(Method::DELETE, path, None), (OperationId::RemovePermission, vec!["f".into(), "a/b".into()]));
    }

    #[test]
    fn query_literals_choose() {
        let path = "/2019-09-30/functions/f/provisioned-concurrency";
        let list = Some("MaxItems=1&List=ALL");
        assert_eq!(routed(Method::GET, path, list).0, OperationId::ListProvisionedConcurrencyConfigs);
        assert_eq!(routed(Method::GET, path, Some("Qualifier=1")).0, OperationId::GetProvisionedConcurrencyConfig);
        assert_eq!(
            routed(Method::GET, "/2018-10-31/layers", Some("find=LayerVersion")).0,
            OperationId::GetLayerVersionByArn
        );
        assert_eq!(routed(Method::GET, "/2018-10-31/layers/", None).0, OperationId::ListLayers);
    }

    #[test]
    fn what_leads_nowhere() {
        let error = |method, path| route(&method, path, None).expect_err("no operation");
        assert_eq!(error(Method::PATCH, "/2015-03-31/functions"), RouteError::MethodNotAllowed);
        for path in ["", "/", "*", "/2015-03-31", "/2015-03-31/functions/f/nothing", "/2015-03-31/functions/f/code/x"] {
            assert_eq!(error(Method::GET, path), RouteError::NotFound, "{path}");
        }
    }

    #[test]
    fn every_operation_is_reached_by_its_template() {
        for &operation in OperationId::ALL {
            let (path, query) = match operation.uri_template().split_once('?') {
                Some((path, query)) => (path, Some(query)),
                None => (operation.uri_template(), None),
            };
            let labels = path.matches('{').count();
            assert!(labels <= MAX_LABELS);
            let (found, values) = routed(operation.method(), path, query);
            assert_eq!((found, values.len()), (operation, labels));
        }
    }

    #[test]
    fn a_greedy_label_takes_the_rest() {
        static LEAF: Node = Node {
            literals: &[],
            label: None,
            greedy: true,
            routes: &[Route { method: "GET", query: None, operation: OperationId::ListTags, labels: &["Resource"] }],
        };
        static TREE: Node = Node { literals: &[], label: Some(&LEAF), greedy: false, routes: &[] };
        let routed = route_in(&TREE, &Method::GET, "/a/b%20c/d", None).expect("reached");
        assert_eq!(routed.label("Resource"), Some("a/b c/d"));
    }
}
