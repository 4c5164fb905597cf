//! A service model as botocore publishes it, with only what the generator uses.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use serde::de::Error as _;

#[derive(Deserialize)]
pub struct Model {
    pub metadata: Metadata,
    pub operations: BTreeMap<String, Operation>,
    pub shapes: BTreeMap<String, Shape>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// What stands before an operation's name in the header `X-Amz-Target`.
    pub target_prefix: Option<String>,
}

#[derive(Deserialize)]
pub struct Operation {
    pub http: Http,
    pub input: Option<Reference>,
    pub output: Option<Reference>,
    #[serde(default)]
    pub documentation: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Http {
    pub method: String,
    pub request_uri: String,
    #[serde(default = "ok")]
    pub response_code: u16,
}

/// The status of a successful response where the model names none.
fn ok() -> u16 {
    200
}

#[derive(Deserialize)]
pub struct Reference {
    pub shape: String,
}

#[derive(Deserialize)]
pub struct Shape {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub documentation: String,
    /// In the order of the model, which is also the order of AWS's validation errors.
    #[serde(default, deserialize_with = "in_order")]
    pub members: Vec<(String, Member)>,
    #[serde(default)]
    pub required: Vec<String>,
    pub payload: Option<String>,
    pub member: Option<Reference>,
    pub key: Option<Reference>,
    pub value: Option<Reference>,
    #[serde(rename = "enum", default)]
    pub values: Vec<String>,
    pub min: Option<f64>,
    pub max: Option<f64>,
    pub pattern: Option<String>,
    #[serde(default)]
    pub sensitive: bool,
    #[serde(default)]
    pub eventstream: bool,
    #[serde(default)]
    pub exception: bool,
    pub error: Option<ErrorTrait>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    pub shape: String,
    #[serde(default)]
    pub documentation: String,
    pub location: Option<String>,
    pub location_name: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ErrorTrait {
    pub http_status_code: u16,
}

fn in_order<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<(String, Member)>, D::Error> {
    serde_json::Map::deserialize(deserializer)?
        .into_iter()
        .map(|(name, value)| Ok((name, serde_json::from_value(value).map_err(D::Error::custom)?)))
        .collect()
}

impl Model {
    /// `absent` names members (shape, member) that count as optional although the model requires them.
    pub fn parse(json: &[u8], absent: &[(&str, &str)]) -> anyhow::Result<Self> {
        let mut model: Self = serde_json::from_slice(json).context("parse the JSON of the service model")?;
        for (shape, member) in absent {
            let required = &mut model.shapes.get_mut(*shape).with_context(|| format!("no shape {shape}"))?.required;
            let before = required.len();
            required.retain(|name| name != member);
            ensure!(required.len() < before, "{shape}.{member} is not required by the model");
        }
        for name in model.reachable() {
            let shape = model.shape(&name)?;
            for (member_name, member) in &shape.members {
                let renamed =
                    member.location.is_none() && member.location_name.as_ref().is_some_and(|n| n != member_name);
                ensure!(!renamed, "{name}.{member_name} has a JSON name of its own, which the generator does not know");
            }
        }
        Ok(model)
    }

    pub fn shape(&self, name: &str) -> anyhow::Result<&Shape> {
        self.shapes.get(name).with_context(|| format!("shape {name} is not in the model"))
    }

    /// Names of all shapes that an operation's input or output uses, directly or not.
    pub fn reachable(&self) -> BTreeSet<String> {
        let mut pending: Vec<&str> = self
            .operations
            .values()
            .flat_map(|operation| [&operation.input, &operation.output])
            .flatten()
            .map(|reference| reference.shape.as_str())
            .collect();
        let mut seen = BTreeSet::new();
        while let Some(name) = pending.pop() {
            if !seen.insert(name.to_owned()) {
                continue;
            }
            let Some(shape) = self.shapes.get(name) else { continue };
            pending.extend(shape.members.iter().map(|(_, member)| member.shape.as_str()));
            pending.extend([&shape.member, &shape.key, &shape.value].into_iter().flatten().map(|r| r.shape.as_str()));
        }
        seen
    }

    /// The shapes that are the input of an operation.
    pub fn input_shapes(&self) -> BTreeSet<&str> {
        self.operations.values().filter_map(|operation| operation.input.as_ref()).map(|r| r.shape.as_str()).collect()
    }

    /// The shapes that are the output of an operation.
    pub fn output_shapes(&self) -> BTreeSet<&str> {
        self.operations.values().filter_map(|operation| operation.output.as_ref()).map(|r| r.shape.as_str()).collect()
    }

    /// Operations without an output shape get an empty structure of their own: its name by the operation's.
    pub fn output_name(&self, operation: &str) -> anyhow::Result<String> {
        let shape = &self.operations[operation].output;
        match shape {
            Some(reference) => Ok(reference.shape.clone()),
            None => self.absent(format!("{operation}Response")),
        }
    }

    /// Like [`Model::output_name`], for the input.
    pub fn input_name(&self, operation: &str) -> anyhow::Result<String> {
        match &self.operations[operation].input {
            Some(reference) => Ok(reference.shape.clone()),
            None => self.absent(format!("{operation}Request")),
        }
    }

    fn absent(&self, name: String) -> anyhow::Result<String> {
        ensure!(!self.shapes.contains_key(&name), "the name {name} for an empty structure is taken by a shape");
        Ok(name)
    }
}

impl Shape {
    pub fn is_required(&self, member: &str) -> bool {
        self.required.iter().any(|name| name == member)
    }
}
