//! `emberbox delete`

use std::process::ExitCode;

use anyhow::Result;
use lambda_api::operations::DeleteFunction;
use lambda_api::types::DeleteFunctionRequest;
use serde_json::json;

use super::print_json;
use crate::cli::Delete;
use crate::client::Client;

/// Deletes a function.
pub async fn run(client: &Client, args: Delete) -> Result<ExitCode> {
    client
        .call::<DeleteFunction>(&DeleteFunctionRequest { function_name: args.name.clone(), ..Default::default() })
        .await?;
    if args.json {
        print_json(&json!({"deleted": args.name}))?;
    } else {
        eprintln!("Deleted {}.", args.name);
    }
    Ok(ExitCode::SUCCESS)
}
