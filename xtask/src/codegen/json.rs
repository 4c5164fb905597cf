//! Emits the operations and errors of a service whose requests and responses are all body: no paths, no constraints but
//! which members are required.

use std::fmt::Write as _;

use anyhow::Context as _;

use super::model::Model;
use super::names;

/// The table of operations, with the members that a request must have.
pub fn operations(model: &Model) -> anyhow::Result<String> {
    let prefix = &model.metadata.target_prefix.as_ref().context("the service has no target prefix")?;
    let mut out = format!("crate::operation::define_operations! {{\n{prefix:?};\n");
    for (name, operation) in &model.operations {
        let required = match &operation.input {
            Some(reference) => model.shape(&reference.shape)?.required.as_slice(),
            None => &[],
        };
        writeln!(
            out,
            "{}{name}({}) -> {}: {required:?};",
            names::doc(&operation.documentation, &format!("The operation {name}.")),
            model.input_name(name)?,
            model.output_name(name)?,
        )?;
    }
    out += "}\n";
    Ok(out)
}

/// The modelled exceptions, as a macro that hands them to the hand-written enum of all errors.
pub fn errors(model: &Model) -> anyhow::Result<String> {
    let mut out = "macro_rules! with_modelled_errors {\n($define:ident) => {\n$define! {\n".to_owned();
    for (name, shape) in model.shapes.iter().filter(|(_, shape)| shape.exception) {
        writeln!(out, "{}{name};", names::doc(&shape.documentation, &format!("{name}.")))?;
    }
    out += "}\n};\n}\npub(crate) use with_modelled_errors;\n";
    Ok(out)
}
