//! Emits the schema tables that decoding, validation and encoding interpret.

use std::fmt::Write as _;

use anyhow::{Context as _, bail};

use super::model::{Member, Model, Shape};
use super::names;

pub fn schema(model: &Model) -> anyhow::Result<String> {
    let mut out = "use crate::schema::{Location, Member, Pattern, Shape, Structure};\n\n".to_owned();
    for name in model.reachable() {
        let shape = model.shape(&name)?;
        out += &match shape.kind.as_str() {
            "structure" => structure(model, &name, shape)?,
            _ => simple(model, &name, shape)?,
        };
    }
    for operation in model.operations.keys() {
        for (reference, name) in [
            (&model.operations[operation].input, model.input_name(operation)?),
            (&model.operations[operation].output, model.output_name(operation)?),
        ] {
            if reference.is_none() {
                writeln!(
                    out,
                    "pub static {}: Structure = Structure {{ members: &[], payload: None }};\n",
                    names::constant(&name)
                )?;
            }
        }
    }
    Ok(out)
}

fn structure(model: &Model, name: &str, shape: &Shape) -> anyhow::Result<String> {
    let mut out = format!("pub static {}: Structure = Structure {{ members: &[", names::constant(name));
    for (member_name, member) in &shape.members {
        write!(
            out,
            "Member::{}({member_name:?}, {:?}, {}, {}),",
            if shape.is_required(member_name) { "required" } else { "optional" },
            names::path(member_name),
            reference(model, &member.shape)?,
            location(model, shape, member_name, member).with_context(|| format!("member {name}.{member_name}"))?,
        )?;
    }
    writeln!(out, "], payload: {:?} }};\n", shape.payload)?;
    Ok(out)
}

fn location(model: &Model, parent: &Shape, name: &str, member: &Member) -> anyhow::Result<String> {
    let wire_name = member.location_name.as_deref().unwrap_or(name);
    Ok(match member.location.as_deref() {
        Some("uri") => format!("Location::Label({wire_name:?})"),
        Some("querystring") => format!("Location::Query({wire_name:?})"),
        Some("header") => format!("Location::Header({:?})", wire_name.to_ascii_lowercase()),
        Some("statusCode") => "Location::StatusCode".to_owned(),
        Some(other) => bail!("location {other} is not known to the generator"),
        None if parent.payload.as_deref() == Some(name) => match model.shape(&member.shape)? {
            target if target.eventstream => "Location::EventStream".to_owned(),
            target if target.kind == "blob" => "Location::RawPayload".to_owned(),
            _ => "Location::JsonPayload".to_owned(),
        },
        None => "Location::Body".to_owned(),
    })
}

fn simple(model: &Model, name: &str, shape: &Shape) -> anyhow::Result<String> {
    let constant = names::constant(name);
    let size = |bound: Option<f64>| bound.map(|bound| bound as u64);
    let whole = |bound: Option<f64>| bound.map(|bound| bound as i64);
    let sizes = format!("min: {:?}, max: {:?}", size(shape.min), size(shape.max));
    let sensitive = shape.sensitive;
    let mut out = String::new();
    let value = match shape.kind.as_str() {
        "string" if !shape.values.is_empty() => {
            format!("Shape::Enum {{ name: {name:?}, values: &{:?} }}", shape.values)
        }
        "string" => {
            let pattern = match &shape.pattern {
                None => "None".to_owned(),
                Some(pattern) => {
                    writeln!(out, "static {constant}_PATTERN: Pattern = Pattern::new(r#\"{pattern}\"#);")?;
                    format!("Some(&{constant}_PATTERN)")
                }
            };
            format!("Shape::String {{ {sizes}, pattern: {pattern}, sensitive: {sensitive} }}")
        }
        "integer" | "long" => {
            format!("Shape::Integer {{ min: {:?}, max: {:?} }}", whole(shape.min), whole(shape.max))
        }
        "double" | "float" => format!("Shape::Double {{ min: {:?}, max: {:?} }}", shape.min, shape.max),
        "boolean" => "Shape::Boolean".to_owned(),
        "timestamp" => "Shape::Timestamp".to_owned(),
        "blob" => format!("Shape::Blob {{ {sizes} }}"),
        "list" => format!(
            "Shape::List {{ name: {name:?}, member: {}, {sizes} }}",
            reference(model, &shape.member.as_ref().context("list without member")?.shape)?
        ),
        "map" => format!(
            "Shape::Map {{ key: {}, value: {}, {sizes}, sensitive: {sensitive} }}",
            reference(model, &shape.key.as_ref().context("map without key")?.shape)?,
            reference(model, &shape.value.as_ref().context("map without value")?.shape)?,
        ),
        other => bail!("{name} has the type {other}, which the generator does not know"),
    };
    writeln!(out, "pub static {constant}: Shape = {value};\n")?;
    Ok(out)
}

fn reference(model: &Model, name: &str) -> anyhow::Result<String> {
    let constant = names::constant(name);
    Ok(match model.shape(name)?.kind.as_str() {
        "structure" => format!("&Shape::Structure(&{constant})"),
        _ => format!("&{constant}"),
    })
}
