//! Emits the operations, the binding of their messages to schemas, and the modelled errors.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Context as _;

use super::model::Model;
use super::names;

/// The table of operations.
pub fn operations(model: &Model) -> anyhow::Result<String> {
    let mut out = "crate::operation::define_operations! {\n".to_owned();
    for (name, operation) in &model.operations {
        let http = &operation.http;
        writeln!(
            out,
            "{}{name}({}) -> {}: {}, {:?}, {};",
            names::doc(&operation.documentation, &format!("The operation {name}.")),
            model.input_name(name)?,
            model.output_name(name)?,
            http.method,
            http.request_uri,
            http.response_code,
        )?;
    }
    out += "}\n";
    Ok(out)
}

/// For each input and output the schema it follows, and its raw payload if it has one.
pub fn messages(model: &Model) -> anyhow::Result<String> {
    // A shape may serve several operations, so by name.
    let mut messages = BTreeMap::new();
    for (name, operation) in &model.operations {
        messages.insert(model.input_name(name)?, operation.input.as_ref());
        messages.insert(model.output_name(name)?, operation.output.as_ref());
    }
    let mut out = "use super::{schema, types};\nuse crate::message::message;\n\n".to_owned();
    for (name, reference) in messages {
        let constant = names::constant(&name);
        let shape = reference.map(|reference| model.shape(&reference.shape)).transpose()?;
        let payload = shape.and_then(|shape| shape.payload.as_ref().map(|payload| (shape, payload)));
        let mut raw = None;
        if let Some((shape, payload)) = payload {
            let (_, member) =
                shape.members.iter().find(|(name, _)| name == payload).with_context(|| format!("payload of {name}"))?;
            if model.shape(&member.shape)?.kind == "blob" {
                raw = Some((names::field(payload), shape.is_required(payload)));
            }
        }
        match raw {
            None => writeln!(out, "message!(types::{name}, schema::{constant});")?,
            Some((field, true)) => writeln!(out, "message!(types::{name}, schema::{constant}, {field});")?,
            Some((field, false)) => writeln!(out, "message!(types::{name}, schema::{constant}, {field}?);")?,
        }
    }
    Ok(out)
}

/// The modelled exceptions, as a macro that hands them to the hand-written enum of all errors.
pub fn errors(model: &Model) -> anyhow::Result<String> {
    let mut out =
        "macro_rules! with_modelled_errors {\n($define:ident { $($extra:tt)* }) => {\n$define! {\n".to_owned();
    for (name, shape) in model.shapes.iter().filter(|(_, shape)| shape.exception) {
        let status = shape.error.as_ref().with_context(|| format!("exception {name} has no status"))?.http_status_code;
        let (message, _) = shape
            .members
            .iter()
            .find(|(member, _)| member.eq_ignore_ascii_case("message"))
            .with_context(|| format!("exception {name} has no message"))?;
        let doc = names::doc(&shape.documentation, &format!("{name}."));
        writeln!(out, "{doc}{name}, {status}, {message:?}, typed;")?;
    }
    out += "$($extra)*\n}\n};\n}\npub(crate) use with_modelled_errors;\n";
    Ok(out)
}
