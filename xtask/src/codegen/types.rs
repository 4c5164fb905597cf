//! Emits the structs and enums of the wire model.

use std::fmt::Write as _;

use anyhow::{Context as _, bail, ensure};

use super::model::{Member, Model, Shape};
use super::names;

const HEADER: &str = "use std::collections::BTreeMap;\n\nuse bytes::Bytes;\nuse serde::{Deserialize, Serialize};\n\n\
                      use super::*;\nuse crate::wire::{Timestamp, empty_structure};\n\n";

/// The structs that are inputs of operations.
pub fn inputs(model: &Model) -> anyhow::Result<String> {
    let mut out = HEADER.to_owned();
    for name in model.input_shapes() {
        out += &structure(model, name)?;
    }
    for operation in model.operations.keys() {
        if model.operations[operation].input.is_none() {
            out += &empty_structure(&model.input_name(operation)?, &format!("The input of {operation}: nothing."));
        }
    }
    used_imports_only(out)
}

/// The structs that are outputs of operations.
pub fn outputs(model: &Model) -> anyhow::Result<String> {
    let mut out = HEADER.to_owned();
    let inputs = model.input_shapes();
    for name in model.output_shapes() {
        ensure!(!inputs.contains(name), "{name} is both an input and an output");
        out += &structure(model, name)?;
    }
    for operation in model.operations.keys() {
        if model.operations[operation].output.is_none() {
            out += &empty_structure(&model.output_name(operation)?, &format!("The output of {operation}: nothing."));
        }
    }
    used_imports_only(out)
}

/// The structs inside inputs and outputs.
pub fn structures(model: &Model) -> anyhow::Result<String> {
    let mut out = HEADER.to_owned();
    let (inputs, outputs) = (model.input_shapes(), model.output_shapes());
    for name in model.reachable() {
        let is_message = inputs.contains(name.as_str()) || outputs.contains(name.as_str());
        if model.shape(&name)?.kind == "structure" && !is_message {
            out += &structure(model, &name)?;
        }
    }
    used_imports_only(out)
}

/// The enums.
pub fn enums(model: &Model) -> anyhow::Result<String> {
    let mut out = "use crate::wire::string_enum;\n\n".to_owned();
    for name in model.reachable() {
        let shape = model.shape(&name)?;
        if shape.values.is_empty() {
            continue;
        }
        let doc = names::doc(&shape.documentation, &format!("The values of `{name}`."));
        writeln!(out, "string_enum! {{\n{doc}pub enum {name} {{")?;
        let mut variants = Vec::new();
        for value in &shape.values {
            let variant = names::variant(value);
            ensure!(!variants.contains(&variant), "two values of {name} give the variant {variant}");
            writeln!(out, "{variant} => {value:?},")?;
            variants.push(variant);
        }
        out += "}\n}\n\n";
    }
    Ok(out)
}

fn structure(model: &Model, name: &str) -> anyhow::Result<String> {
    let shape = model.shape(name)?;
    let doc = names::doc(&shape.documentation, &format!("The members of `{name}`."));
    if shape.members.is_empty() {
        return Ok(format!("empty_structure! {{\n{doc}pub struct {name};\n}}\n\n"));
    }
    let mut out = format!(
        "{doc}#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]\n#[serde(default)]\npub struct {name} {{\n"
    );
    for (member_name, member) in &shape.members {
        out += &field(model, shape, member_name, member).with_context(|| format!("member {name}.{member_name}"))?;
    }
    out += "}\n\n";
    Ok(out)
}

fn empty_structure(name: &str, doc: &str) -> String {
    format!("empty_structure! {{\n/// {doc}\npub struct {name};\n}}\n\n")
}

fn field(model: &Model, parent: &Shape, name: &str, member: &Member) -> anyhow::Result<String> {
    let target = model.shape(&member.shape)?;
    let required = parent.is_required(name);
    let is_payload_blob = parent.payload.as_deref() == Some(name) && target.kind == "blob";
    let mut serde = Vec::new();
    if is_payload_blob {
        // Travels as the raw body; `Message::payload` reaches it.
        serde.push("skip".to_owned());
    } else {
        serde.push(format!("rename = {name:?}"));
        if target.kind == "blob" {
            serde.push("with = \"crate::wire::blob\"".to_owned());
        }
        if !required {
            serde.push("skip_serializing_if = \"Option::is_none\"".to_owned());
        }
    }
    let rust = rust_type(model, &member.shape)?;
    let rust = if required { rust } else { format!("Option<{rust}>") };
    let doc = names::doc(&member.documentation, &format!("The member `{name}`."));
    Ok(format!("{doc}#[serde({})]\npub {}: {rust},\n", serde.join(", "), names::field(name)))
}

fn rust_type(model: &Model, name: &str) -> anyhow::Result<String> {
    let shape = model.shape(name)?;
    Ok(match shape.kind.as_str() {
        "structure" => name.to_owned(),
        "string" if shape.values.is_empty() => "String".to_owned(),
        "string" => name.to_owned(),
        "integer" => "i32".to_owned(),
        "long" => "i64".to_owned(),
        "double" | "float" => "f64".to_owned(),
        "boolean" => "bool".to_owned(),
        "timestamp" => "Timestamp".to_owned(),
        "blob" => "Bytes".to_owned(),
        "list" => format!("Vec<{}>", rust_type(model, &shape.member.as_ref().context("list without member")?.shape)?),
        "map" => {
            format!(
                "BTreeMap<String, {}>",
                rust_type(model, &shape.value.as_ref().context("map without value")?.shape)?
            )
        }
        other => bail!("{name} has the type {other}, which the generator does not know"),
    })
}

/// Drops the imports that a file does not use: the header is the same for all.
fn used_imports_only(code: String) -> anyhow::Result<String> {
    let mut code = code;
    if !code.contains("BTreeMap<") {
        code = code.replace("use std::collections::BTreeMap;\n\n", "");
    }
    if !code.contains("Bytes>") && !code.contains(": Bytes") {
        code = code.replace("use bytes::Bytes;\n", "");
    }
    let timestamp = code.contains("<Timestamp>") || code.contains(": Timestamp");
    let empty = code.contains("empty_structure! {");
    let import = match (timestamp, empty) {
        (true, true) => return Ok(code),
        (true, false) => "use crate::wire::Timestamp;\n",
        (false, true) => "use crate::wire::empty_structure;\n",
        (false, false) => "",
    };
    Ok(code.replace("use crate::wire::{Timestamp, empty_structure};\n", import))
}
