//! Emits the routing tree: one level per path segment.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{bail, ensure};

use super::model::Model;

#[derive(Default)]
struct Node {
    literals: BTreeMap<String, Node>,
    label: Option<Box<Node>>,
    greedy: bool,
    routes: Vec<Route>,
}

struct Route {
    method: String,
    query: Option<(String, String)>,
    operation: String,
    labels: Vec<String>,
}

pub fn routes(model: &Model) -> anyhow::Result<String> {
    let mut root = Node::default();
    for (name, operation) in &model.operations {
        let uri = &operation.http.request_uri;
        let (path, query) = match uri.split_once('?') {
            None => (uri.as_str(), None),
            Some((path, literal)) => match literal.split_once('=') {
                Some((key, value)) if !value.contains('&') => (path, Some((key.to_owned(), value.to_owned()))),
                _ => bail!("{name}: query literal {literal} is not one key with one value"),
            },
        };
        let mut node = &mut root;
        let mut labels = Vec::new();
        for segment in path.split('/').filter(|segment| !segment.is_empty()) {
            node = match segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
                None => node.literals.entry(segment.to_owned()).or_default(),
                Some(label) => {
                    labels.push(label.trim_end_matches('+').to_owned());
                    let next = node.label.get_or_insert_default();
                    next.greedy = label.ends_with('+');
                    next
                }
            };
        }
        node.routes.push(Route { method: operation.http.method.clone(), query, operation: name.clone(), labels });
    }
    let mut out = "use crate::OperationId;\nuse crate::route::{Node, Route};\n\n".to_owned();
    write!(out, "pub static ROOT: Node = {};", emit(&root)?)?;
    Ok(out)
}

fn emit(node: &Node) -> anyhow::Result<String> {
    // Then the router never has to go back and try another branch.
    ensure!(node.literals.is_empty() || node.label.is_none(), "a path has a literal and a label at the same place");
    let mut out = "Node { literals: &[".to_owned();
    for (segment, child) in &node.literals {
        write!(out, "({segment:?}, {}),", emit(child)?)?;
    }
    match &node.label {
        None => out += "], label: None",
        Some(child) => write!(out, "], label: Some(&{})", emit(child)?)?,
    }
    write!(out, ", greedy: {}, routes: &[", node.greedy)?;
    // Routes that ask for a query literal first: they are the more specific.
    let (specific, general): (Vec<&Route>, _) = node.routes.iter().partition(|route| route.query.is_some());
    for route in specific.into_iter().chain(general) {
        write!(
            out,
            "Route {{ method: {:?}, query: {:?}, operation: OperationId::{}, labels: &{:?} }},",
            route.method, route.query, route.operation, route.labels
        )?;
    }
    out += "] }";
    Ok(out)
}
