//! Embedded SQS.
