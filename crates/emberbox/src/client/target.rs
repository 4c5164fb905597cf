//! Which endpoint, region and credentials a client command uses: options first, then the environment, then the files of
//! `~/.aws`, in the order of the AWS CLI.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Result, bail};
use http::Uri;

use crate::cli;

/// Where Emberbox listens unless told otherwise.
pub const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:4566";

/// An AWS service that a client command calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Service {
    /// AWS Lambda.
    Lambda,
    /// Amazon CloudWatch Logs; Emberbox serves it at the same endpoint.
    Logs,
    /// Amazon SQS.
    Sqs,
}

impl Service {
    /// The name in signatures and in AWS's host names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lambda => "lambda",
            Self::Logs => "logs",
            Self::Sqs => "sqs",
        }
    }
}

/// Keys to sign with.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    /// Access key id.
    pub id: String,
    /// Secret access key.
    pub secret: String,
    /// Session token of temporary keys.
    pub token: Option<String>,
}

/// All of it, resolved.
pub struct Target {
    /// Base URL for Lambda, without a path.
    pub endpoint: Uri,
    /// Base URL for CloudWatch Logs.
    pub logs_endpoint: Uri,
    /// Base URL for SQS.
    pub sqs_endpoint: Uri,
    /// Region.
    pub region: String,
    /// `None`: requests go unsigned, which an Emberbox without credentials accepts.
    pub keys: Option<Keys>,
}

impl Target {
    /// An Emberbox without credentials.
    pub fn unsigned(endpoint: &str) -> Result<Self> {
        let endpoint = parse_endpoint(endpoint)?;
        Ok(Self {
            logs_endpoint: endpoint.clone(),
            sqs_endpoint: endpoint.clone(),
            endpoint,
            region: "us-east-1".into(),
            keys: None,
        })
    }
}

/// Sections of an ini file: `[name]`, then `key = value`.
type Sections = HashMap<String, HashMap<String, String>>;

/// Looks a variable up.
type Environment = Box<dyn Fn(&str) -> Option<String>>;

/// Environment and files, apart from the process so that tests can give their own.
pub struct Surroundings {
    env: Environment,
    credentials: Sections,
    config: Sections,
}

impl Surroundings {
    /// Those of this process.
    pub fn real() -> Self {
        let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let file = |variable: &str, default: &str| {
            let home = env("HOME").map(PathBuf::from);
            let path = env(variable).map(PathBuf::from).or_else(|| Some(home?.join(".aws").join(default)));
            parse_ini(&path.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default())
        };
        Self {
            credentials: file("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
            config: file("AWS_CONFIG_FILE", "config"),
            env: Box::new(env),
        }
    }

    fn env(&self, names: &[&str]) -> Option<String> {
        names.iter().find_map(|name| (self.env)(name))
    }

    /// Decides.
    pub fn resolve(&self, options: &cli::Target) -> Result<Target> {
        let named = options.profile.clone().or_else(|| self.env(&["AWS_PROFILE", "AWS_DEFAULT_PROFILE"]));
        let profile = named.clone().unwrap_or_else(|| "default".into());
        let in_config = if profile == "default" { profile.clone() } else { format!("profile {profile}") };
        let setting = |key: &str| {
            let of = |sections: &Sections, name: &str| sections.get(name)?.get(key).cloned();
            of(&self.credentials, &profile).or_else(|| of(&self.config, &in_config))
        };
        if named.is_some() && !self.credentials.contains_key(&profile) && !self.config.contains_key(&in_config) {
            bail!("there is no profile `{profile}` in ~/.aws/credentials or ~/.aws/config");
        }
        let region = options
            .region
            .clone()
            .or_else(|| self.env(&["AWS_REGION", "AWS_DEFAULT_REGION"]))
            .or_else(|| setting("region"))
            .unwrap_or_else(|| "us-east-1".into());
        let from_env = || {
            Some(Keys {
                id: self.env(&["AWS_ACCESS_KEY_ID"])?,
                secret: self.env(&["AWS_SECRET_ACCESS_KEY"])?,
                token: self.env(&["AWS_SESSION_TOKEN"]),
            })
        };
        let from_profile = || {
            Some(Keys {
                id: setting("aws_access_key_id")?,
                secret: setting("aws_secret_access_key")?,
                token: setting("aws_session_token"),
            })
        };
        // As in the AWS CLI, a profile that was named on the command line wins over keys in the environment.
        let keys = match options.profile {
            Some(_) => from_profile(),
            None => from_env().or_else(from_profile),
        };
        let base = |service: Service| {
            let variable = match service {
                Service::Lambda => "AWS_ENDPOINT_URL_LAMBDA",
                Service::Logs => "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS",
                Service::Sqs => "AWS_ENDPOINT_URL_SQS",
            };
            let lambda = || self.env(&["AWS_ENDPOINT_URL_LAMBDA"]);
            let url = options
                .endpoint
                .clone()
                .or_else(|| self.env(&[variable]))
                .or_else(lambda)
                .or_else(|| self.env(&["AWS_ENDPOINT_URL"]))
                .or_else(|| setting("endpoint_url"))
                .unwrap_or_else(|| DEFAULT_ENDPOINT.into());
            if url == "aws" {
                return parse_endpoint(&format!("https://{}.{region}.amazonaws.com", service.name()));
            }
            parse_endpoint(&url)
        };
        Ok(Target {
            endpoint: base(Service::Lambda)?,
            logs_endpoint: base(Service::Logs)?,
            sqs_endpoint: base(Service::Sqs)?,
            region: region.clone(),
            keys,
        })
    }
}

/// The base URL that a user wrote.
pub fn parse_endpoint(url: &str) -> Result<Uri> {
    let uri: Option<Uri> = url.trim_end_matches('/').parse().ok();
    match uri {
        Some(uri)
            if matches!(uri.scheme_str(), Some("http" | "https"))
                && uri.host().is_some()
                && uri.path_and_query().is_none_or(|p| p == "/") =>
        {
            Ok(uri)
        }
        _ => bail!("`{url}` is no endpoint; write a URL such as {DEFAULT_ENDPOINT}, or `aws` for AWS Lambda itself"),
    }
}

fn parse_ini(text: &str) -> Sections {
    let mut sections = Sections::new();
    let mut current = String::new();
    for line in text.lines() {
        let nested = line.starts_with([' ', '\t']);
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            current = name.trim().to_owned();
            sections.entry(current.clone()).or_default();
        } else if let Some((key, value)) = line.split_once('=')
            && !nested
        {
            let section = sections.entry(current.clone()).or_default();
            section.insert(key.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    sections
}

#[cfg(test)]
mod tests {
    use super::*;

    fn around(env: &[(&str, &str)]) -> Surroundings {
        let env: HashMap<String, String> = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Surroundings {
            env: Box::new(move |name| env.get(name).cloned()),
            credentials: parse_ini(
                "[default]\naws_access_key_id = D\naws_secret_access_key=DS\n\n# other\n[work]\naws_access_key_id=W\naws_secret_access_key=W=S\naws_session_token = T\n",
            ),
            config: parse_ini(
                "[default]\nregion = eu-west-1\ns3 =\n  region = nested\n[profile work]\nregion=eu-central-1\nendpoint_url=http://work:1\n",
            ),
        }
    }

    fn options(endpoint: Option<&str>, profile: Option<&str>) -> cli::Target {
        cli::Target { endpoint: endpoint.map(Into::into), profile: profile.map(Into::into), region: None }
    }

    #[test]
    fn defaults_come_from_the_default_profile() {
        let target = around(&[]).resolve(&options(None, None)).unwrap();
        assert_eq!(target.endpoint, DEFAULT_ENDPOINT);
        assert_eq!(target.logs_endpoint, DEFAULT_ENDPOINT);
        assert_eq!(target.region, "eu-west-1");
        assert_eq!(target.keys.unwrap().id, "D");
    }

    #[test]
    fn environment_wins_over_files_and_options_over_both() {
        let env = [
            ("AWS_ENDPOINT_URL", "http://general:1/"),
            ("AWS_ENDPOINT_URL_LAMBDA", "http://lambda:2"),
            ("AWS_ACCESS_KEY_ID", "E"),
            ("AWS_SECRET_ACCESS_KEY", "ES"),
            ("AWS_REGION", "us-west-2"),
        ];
        let target = around(&env).resolve(&options(None, None)).unwrap();
        assert_eq!(target.endpoint, "http://lambda:2");
        assert_eq!(target.logs_endpoint, "http://lambda:2", "Emberbox serves both at one endpoint");
        assert_eq!((target.region.as_str(), target.keys.unwrap().id.as_str()), ("us-west-2", "E"));
        let target = around(&env).resolve(&options(Some("aws"), Some("work"))).unwrap();
        assert_eq!(target.endpoint, "https://lambda.us-west-2.amazonaws.com");
        assert_eq!(target.logs_endpoint, "https://logs.us-west-2.amazonaws.com");
        let keys = target.keys.unwrap();
        assert_eq!((keys.id.as_str(), keys.secret.as_str(), keys.token.as_deref()), ("W", "W=S", Some("T")));
    }

    #[test]
    fn profiles() {
        let target = around(&[("AWS_PROFILE", "work")]).resolve(&options(None, None)).unwrap();
        assert_eq!((target.endpoint.to_string().as_str(), target.region.as_str()), ("http://work:1/", "eu-central-1"));
        assert!(around(&[]).resolve(&options(None, Some("nobody"))).is_err());
    }

    #[test]
    fn wrong_endpoints_are_explained() {
        for bad in ["127.0.0.1:4566", "ftp://x", "http://", "http://x/path", "nonsense"] {
            let error = around(&[]).resolve(&options(Some(bad), None)).err().expect(bad).to_string();
            assert!(error.contains(DEFAULT_ENDPOINT), "{error}");
        }
    }
}
