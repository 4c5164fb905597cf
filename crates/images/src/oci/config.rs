//! How a container image wants to be started.

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

/// What stands in the image's configuration for its first process. Nothing of it is used to make an image.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Config {
    /// `Entrypoint`: program and first arguments; empty where there is none.
    pub entrypoint: Vec<String>,
    /// `Cmd`: the arguments after them, or the program where there is no entry point.
    pub command: Vec<String>,
    /// `Env`: names and values, in the image's order.
    pub environment: Vec<(String, String)>,
    /// `WorkingDir`: where it starts; none is the root.
    pub working_directory: Option<String>,
}

impl Config {
    pub(crate) fn new(image: &ImageConfiguration) -> Result<Self, String> {
        let Some(config) = image.config() else { return Ok(Self::default()) };
        let environment = config.env().iter().flatten().map(|entry| match entry.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(format!("the entry {entry:?} of Env is not NAME=VALUE")),
        });
        let made = Self {
            entrypoint: config.entrypoint().clone().unwrap_or_default(),
            command: config.cmd().clone().unwrap_or_default(),
            environment: environment.collect::<Result<_, _>>()?,
            working_directory: config.working_dir().clone().filter(|directory| !directory.is_empty()),
        };
        let arguments = made.entrypoint.iter().chain(&made.command).chain(&made.working_directory);
        let variables = made.environment.iter().flat_map(|(name, value)| [name, value]);
        if let Some(word) = arguments.chain(variables).find(|word| word.contains('\0')) {
            return Err(format!("{word:?} has a zero byte, which no program's argument can have"));
        }
        Ok(made)
    }
}
