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
    let hidden = shape.members.iter().map(|(_, member)| is_sensitive(model, &member.shape));
    let hidden: Vec<bool> = hidden.collect::<anyhow::Result<_>>()?;
    // What customers keep secret gets into no log, whoever logs the structure.
    let debug = if hidden.contains(&true) { "" } else { "Debug, " };
    let mut out = format!(
        "{doc}#[derive({debug}Clone, PartialEq, Default, Serialize, Deserialize)]\n#[serde(default)]\npub struct {name} {{\n"
    );
    for (member_name, member) in &shape.members {
        out += &field(model, shape, member_name, member).with_context(|| format!("member {name}.{member_name}"))?;
    }
    out += "}\n\n";
    if debug.is_empty() {
        out += &debug_without(name, shape, &hidden);
    }
    Ok(out)
}

/// Whether the model marks what a member holds, or its elements, as sensitive.
fn is_sensitive(model: &Model, name: &str) -> anyhow::Result<bool> {
    let shape = model.shape(name)?;
    for part in [&shape.member, &shape.key, &shape.value].into_iter().flatten() {
        if model.shape(&part.shape)?.sensitive {
            return Ok(true);
        }
    }
    Ok(shape.sensitive)
}

/// In the place of the derived one: the members that are `hidden` are shown to be there, and no more.
fn debug_without(name: &str, shape: &Shape, hidden: &[bool]) -> String {
    let mut out = format!(
        "impl std::fmt::Debug for {name} {{\nfn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {{\n\
         f.debug_struct({name:?})\n"
    );
    for ((member, _), hidden) in shape.members.iter().zip(hidden) {
        let field = names::field(member);
        let value = match (hidden, shape.is_required(member)) {
            (false, _) => format!("&self.{field}"),
            (true, true) => "&crate::wire::Hidden".to_owned(),
            (true, false) => format!("&self.{field}.as_ref().map(|_| crate::wire::Hidden)"),
        };
        out += &format!(".field({:?}, {value})\n", field.trim_start_matches("r#"));
    }
    out += ".finish()\n}\n}\n\n";
    out
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

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: &str = r#"{
        "metadata": {},
        "operations": {"Put": {"http": {"method": "POST", "requestUri": "/"}, "input": {"shape": "PutRequest"}}},
        "shapes": {
            "PutRequest": {"type": "structure", "required": ["Name", "Key"], "members": {
                "Name": {"shape": "Text"}, "Key": {"shape": "Secret"}, "Variables": {"shape": "Map"}, "Lines": {"shape": "List"},
                "Inner": {"shape": "Inner"}
            }},
            "Inner": {"type": "structure", "members": {"Name": {"shape": "Text"}}},
            "Text": {"type": "string"},
            "Secret": {"type": "string", "sensitive": true},
            "List": {"type": "list", "member": {"shape": "Secret"}},
            "Map": {"type": "map", "key": {"shape": "Text"}, "value": {"shape": "Secret"}}
        }
    }"#;

    #[test]
    fn what_the_model_calls_sensitive_is_not_shown() {
        let model = Model::parse(MODEL.as_bytes(), &[]).unwrap();
        let code = inputs(&model).unwrap();
        assert!(code.contains("#[derive(Clone, PartialEq, Default, Serialize, Deserialize)]"), "{code}");
        for line in [
            ".field(\"name\", &self.name)",
            ".field(\"key\", &crate::wire::Hidden)",
            ".field(\"variables\", &self.variables.as_ref().map(|_| crate::wire::Hidden))",
            ".field(\"lines\", &self.lines.as_ref().map(|_| crate::wire::Hidden))",
            ".field(\"inner\", &self.inner)",
        ] {
            assert!(code.contains(line), "{line} in {code}");
        }
        assert!(structures(&model).unwrap().contains("#[derive(Debug, Clone,"), "the others are as before");
    }
}
