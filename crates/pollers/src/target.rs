//! Where records and dead letters go.

use std::fmt;

/// A destination or a dead letter queue, by its ARN.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Target {
    /// As configured.
    pub arn: String,
    /// Region in the ARN; empty for S3.
    pub region: String,
    /// Account in the ARN; empty for S3.
    pub account: String,
    /// What it is.
    pub service: Service,
}

/// A service that takes records.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Service {
    /// A queue, by name.
    Sqs(String),
    /// A topic, by name.
    Sns(String),
    /// A function.
    Lambda {
        /// Its name.
        function: String,
        /// Version or alias.
        qualifier: Option<String>,
    },
    /// An event bus, by name.
    EventBridge(String),
    /// A bucket, by name.
    S3(String),
}

/// No ARN of a service that takes records.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no ARN of an SQS queue, SNS topic, Lambda function, EventBridge event bus or S3 bucket")]
pub struct TargetError(pub String);

impl Target {
    /// Takes an ARN apart.
    pub fn parse(arn: &str) -> Result<Self, TargetError> {
        let error = || TargetError(arn.to_owned());
        let parts: Vec<&str> = arn.splitn(6, ':').collect();
        let ["arn", partition, service, region, account, resource] = parts[..] else { return Err(error()) };
        if !partition.starts_with("aws") || resource.is_empty() || (service != "s3" && region.is_empty()) {
            return Err(error());
        }
        let named = |name: &str| (!name.is_empty() && !name.contains(':')).then(|| name.to_owned()).ok_or_else(error);
        let service = match service {
            "sqs" => Service::Sqs(named(resource)?),
            "sns" => Service::Sns(named(resource)?),
            "s3" => Service::S3(named(resource)?),
            "events" => Service::EventBridge(named(resource.strip_prefix("event-bus/").ok_or_else(error)?)?),
            "lambda" => {
                let rest = resource.strip_prefix("function:").ok_or_else(error)?;
                let (function, qualifier) = match rest.split_once(':') {
                    Some((function, qualifier)) => (function, Some(named(qualifier)?)),
                    None => (rest, None),
                };
                Service::Lambda { function: named(function)?, qualifier }
            }
            _ => return Err(error()),
        };
        Ok(Self { arn: arn.to_owned(), region: region.to_owned(), account: account.to_owned(), service })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.arn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_five_services() {
        let service = |arn| Target::parse(arn).expect(arn).service;
        assert_eq!(service("arn:aws:sqs:us-east-1:000000000000:q"), Service::Sqs("q".into()));
        assert_eq!(service("arn:aws:sns:us-east-1:000000000000:t"), Service::Sns("t".into()));
        assert_eq!(service("arn:aws:s3:::b"), Service::S3("b".into()));
        assert_eq!(
            service("arn:aws:events:us-east-1:000000000000:event-bus/default"),
            Service::EventBridge("default".into())
        );
        assert_eq!(
            service("arn:aws:lambda:us-east-1:000000000000:function:f:live"),
            Service::Lambda { function: "f".into(), qualifier: Some("live".into()) }
        );
    }

    #[test]
    fn refuses_the_rest() {
        for arn in [
            "",
            "q",
            "arn:aws:sqs:us-east-1:0",
            "arn:aws:kinesis:r:0:s",
            "arn:aws:lambda:r:0:layer:x",
            "arn:aws:sns:r:0:",
        ] {
            assert!(Target::parse(arn).is_err(), "{arn}");
        }
    }
}
